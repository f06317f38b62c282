"""Clocks that jump by an hour: of all that runs on the machine, or of one run alone.

The stack has to run with the clock of `clock.c`, as `infra/faults --tables clock` starts it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from service import Missed, Outcome, Service, wait

OFFSET = "CLOCK_OFFSET_FILE"
RIGHT, AHEAD = "0", "3600"
SEEN_S = 1.0
"""within which every process has the new time"""
JUMPS = ("the machine's, an hour on", "the machine's, an hour back")
ALONE = "one run's, an hour ahead of S3"
KINDS = (*JUMPS, ALONE)
FAILED_S = 300.0


def jump(service: Service, kind: str, stage: str) -> Outcome | None:
    """A run in the midst of whose stage the clocks jump, while the reconciler passes too."""
    if kind == ALONE:
        return _alone(service) if stage == "register" else None
    offset = Path(os.environ[OFFSET])
    on = kind == JUMPS[0]
    offset.write_text(RIGHT if on else AHEAD)
    time.sleep(SEEN_S)
    submitted = service.submit(stage)
    try:
        with service.held_in(submitted, stage):
            offset.write_text(AHEAD if on else RIGHT)
            time.sleep(SEEN_S)
        service.reconcile()
        return service.ended(submitted, service.let_it_end(submitted))
    except (Missed, TimeoutError) as late:
        return Outcome(time.monotonic() - submitted.began, fault=f"{type(late).__name__}: {late}")
    finally:
        offset.write_text(RIGHT)


def _alone(service: Service) -> Outcome:
    """S3 refuses who is not of its time; the run says so, and goes on once its clock is set."""
    offset = service.layout.home / "offset-of-one-run"
    offset.write_text(AHEAD)
    submitted = service.submit("register", {OFFSET: str(offset)})
    try:
        wait(lambda: service.state(submitted) in ("FAILED", "CRASHED"), FAILED_S, "was not refused")
        said = service.message(submitted)
        if "this machine's clock differs from the server's; set it" not in said:
            return Outcome(time.monotonic() - submitted.began, fault=f"said: {said[:200]}")
        offset.write_text(RIGHT)
        return service.ended(submitted, service.let_it_end(submitted), "said so first")
    except TimeoutError as late:
        return Outcome(time.monotonic() - submitted.began, fault=str(late))
