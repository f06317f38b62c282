"""Devices: one stage at a time has a GPU, or a processor, to itself.

A device belongs to the lease of the stage that uses it: what renews, ends, expires or fences the one does so
to the other. Who waits says so in its own row, so that the next one is the most urgent, then the oldest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from yarn_ops.errors import LeaseLost, RegistryError
from yarn_ops.registry.columns import database_now
from yarn_ops.registry.hold import LONGEST_POLL_S, Held
from yarn_ops.registry.holder import has_ended
from yarn_ops.registry.leases import Lease, held_row, is_free
from yarn_ops.registry.registry import NO_DEVICE, Registry
from yarn_ops.registry.tables import StageRunRow

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QueuedStage:
    """A stage that has the device, or gets it before us."""

    key: str
    stage: str
    run_id: str
    holder: str
    has_it: bool
    expired: bool


@contextmanager
def occupied(
    registry: Registry,
    held: Held,
    device: str,
    *,
    rank: int,
    on_wait: Callable[[QueuedStage], None] | None = None,
) -> Iterator[None]:
    """Have the device to ourselves within the block, as long as the stage's lease is ours.

    Waits for whoever has it and for whoever waits with a lower `rank`, or the same one for longer; `on_wait`
    hears, once, of the first. Nobody waits for a holder that has ended. LeaseLost: the stage is another's.
    """
    lease = held.lease
    assert lease is not None, "joined a finished stage: there is nothing to compute"
    while (first := take(registry, lease, device, rank)) is not None:
        ended = has_ended(first.holder)
        if ended or first.expired:
            log.warning("device %s: %s has not given it back", device, first.holder)
            registry.take_from(first.key, first.holder, if_expired=not ended)
            continue
        if on_wait is not None:
            on_wait(first)
            on_wait = None
        if held.lost.wait(LONGEST_POLL_S):
            raise LeaseLost(f"{lease.work}: lost while it waited for {device}")
    try:
        yield
    finally:
        give_back(registry, lease)


def take(registry: Registry, lease: Lease, device: str, rank: int) -> QueuedStage | None:
    """Take the device, or stay in its queue and learn who comes first. LeaseLost when the lease is gone."""
    while True:
        with registry.begin() as session:
            since, place = _ask(session, lease, device, rank)
            if since is not None:
                return None
            first = _first(session, lease, device, place)
            if first is not None:
                return first
            # Of two who see it free, the index lets one have it; the other looks again.
            with suppress(IntegrityError), session.begin_nested():
                session.execute(held_row(lease).values(device_since=database_now()))
                return None


def give_back(registry: Registry, lease: Lease) -> None:
    """Let others have the device; nothing when the lease is gone, and the device with it."""
    try:
        with registry.begin() as session:
            session.execute(held_row(lease).values(**NO_DEVICE))
    except RegistryError as error:  # what the stage did matters more; the device is free when the stage ends
        log.warning("%s: its device was not given back: %s", lease.work, error)


def keys_at_work(registry: Registry) -> set[str]:
    """The keys of all stages that have a device."""
    with registry.begin() as session:
        return set(session.scalars(select(StageRunRow.key).where(StageRunRow.device_since.is_not(None))))


Place = tuple[int, datetime, str]
"""rank, when the stage was claimed, its key"""


def _ask(session: Session, lease: Lease, device: str, rank: int) -> tuple[datetime | None, Place]:
    """(when this stage got the device or None, its place in the queue)."""
    columns = (StageRunRow.device_since, StageRunRow.started_at)
    asked = session.execute(
        held_row(lease).values(device=device, device_rank=rank).returning(*columns)
    ).first()
    if asked is None:
        raise LeaseLost(f"{lease.work}: another process has taken it over; run again")
    return asked.device_since, (rank, asked.started_at, lease.key)


def _first(session: Session, lease: Lease, device: str, place: Place) -> QueuedStage | None:
    """The stage that has the device, else the first in the queue before `place`; None when it is free."""
    others = session.execute(
        select(StageRunRow, is_free(StageRunRow).label("expired")).where(
            StageRunRow.device == device, StageRunRow.key != lease.key
        )
    ).all()
    found = [
        QueuedStage(
            row.key, row.stage, row.run_id, row.holder or "", row.device_since is not None, bool(expired)
        )
        for row, expired in others
        if row.device_since is not None or (row.device_rank or 0, row.started_at, row.key) < place
    ]
    return max(found, key=lambda queued: queued.has_it, default=None)
