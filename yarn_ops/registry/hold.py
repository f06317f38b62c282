"""Hold a stage's lease while it is computed: wait for others, renew, notice the loss."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from yarn_ops.errors import LeaseLost, RegistryError, Stopped
from yarn_ops.records import Record
from yarn_ops.registry.leases import Lease, Renewal, renewed
from yarn_ops.registry.registry import Registry

log = logging.getLogger(__name__)

LONGEST_POLL_S = 1.0


@dataclass
class Held:
    """A stage that this process holds (`record` is None: compute it and `complete`), or that is finished."""

    registry: Registry
    record: dict[str, Any] | None
    """what another process computed while this one waited, as JSON"""
    lease: Lease | None
    renewal: Renewal | None = None

    @property
    def lost(self) -> threading.Event:
        """Set when the lease could not be renewed: another process may compute the stage now, so stop."""
        assert self.renewal is not None
        return self.renewal.lost

    def complete(self, record: Record) -> None:
        """Record the result. LeaseLost when another process has taken the stage over: nothing is written."""
        lease, renewal = self.lease, self.renewal
        assert lease is not None and renewal is not None, "joined a finished stage: nothing to complete"
        renewal.last(lambda: self.registry.complete(lease, record))


@contextmanager
def hold(
    registry: Registry,
    key: str,
    *,
    stage: str,
    run_id: str,
    holder: str,
    lease_s: float,
    on_wait: Callable[[str], None] | None = None,
) -> Iterator[Held]:
    """Claim a stage, waiting while another process computes it, and renew the lease until the end.

    Yields a `Held` with a `record` when the stage is, or in the meantime was, finished. Otherwise the body
    computes and calls `complete`. An exception of the body is recorded as the stage's failure and goes on
    up; a request to stop (Stopped, KeyboardInterrupt, …) or an end without `complete` gives the stage back.
    A holder that has ended (`leases.claim`) is not waited for. `on_wait` hears, once, for whom we wait.
    """
    claim = partial(registry.claim, key, stage=stage, run_id=run_id, holder=holder, lease_s=lease_s)
    held, claimed_at = _claim_or_join(registry, key, claim, min(LONGEST_POLL_S, lease_s / 3), on_wait)
    lease = held.lease
    if lease is None:
        yield held
        return
    failure: Exception | None = None
    try:
        with renewed(registry.database, lease, claimed_at) as held.renewal:
            yield held
    except (Stopped, LeaseLost):
        raise
    except Exception as error:
        failure = error
        raise
    finally:
        _give_back(registry, lease, failure)


def _claim_or_join(
    registry: Registry, key: str, claim: Callable[[], Lease | None], poll_s: float,
    on_wait: Callable[[str], None] | None,
) -> tuple[Held, float]:  # fmt: skip
    """(what we hold, when we asked for it by `time.monotonic`): a lease lives from before the answer."""
    while True:
        asked_at = time.monotonic()
        record = registry.finished(key)
        if record is not None:
            return Held(registry, record, None), asked_at
        lease = claim()
        if lease is not None:
            return Held(registry, None, lease), asked_at
        other = registry.holder(key)
        if other is None:
            continue
        if on_wait is not None:
            on_wait(other)
            on_wait = None
        time.sleep(poll_s)


def _give_back(registry: Registry, lease: Lease, failure: Exception | None) -> None:
    if failure is None:
        registry.release(lease)
        return
    try:
        registry.fail(lease, f"{type(failure).__name__}: {failure}")
    except RegistryError as refusal:  # the body's own end matters more, and the lease expires by itself
        log.warning("%s: its end was not recorded: %s", lease.work, refusal)
