"""A run whose clock is an hour off: S3 refuses it, it says so, and goes on once its clock is set.

The stack has to run with the clock of `clock.c`, as `infra/faults --tables clock` starts it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from service import Outcome, Service, wait

OFFSET = "CLOCK_OFFSET_FILE"
KINDS: Mapping[str, int] = {"a run's, an hour ahead": 3600, "a run's, an hour behind": -3600}
SAID = "this machine's clock differs from the server's; set it"
REFUSED_S = 300.0


def jump(service: Service, kind: str) -> Outcome:
    """A run that begins with a wrong clock, which is set right when it has failed."""
    offset = service.paths.home / "offset-of-one-run"
    offset.write_text(str(KINDS[kind]))
    submitted = service.submit("register", {OFFSET: str(offset)})
    try:
        wait(lambda: service.state(submitted) in ("FAILED", "CRASHED"), REFUSED_S, "was not refused")
        told = service.message(submitted)
        offset.write_text("0")
        if SAID not in told:
            return Outcome(time.monotonic() - submitted.began, fault=f"told {told[:200]}")
        return service.ended(submitted, service.let_it_end(submitted), "told so first")
    except TimeoutError as late:
        return Outcome(time.monotonic() - submitted.began, fault=str(late))
