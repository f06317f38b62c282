"""Leases: the right of one process to do one piece of work, a stage or a cell, kept in the work's own row.

A lease expires unless it is renewed. Its fence grows with every claim, and a write under an older fence is
refused: a holder that lost its lease unnoticed changes nothing. A device belongs to a stage's lease.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sqlalchemy import and_, not_, or_, update
from sqlalchemy.orm import Session

from yarn_ops.errors import LeaseLost, RegistryError
from yarn_ops.registry.columns import database_now
from yarn_ops.registry.database import Database
from yarn_ops.registry.holder import has_ended
from yarn_ops.registry.tables import CellRow, StageRunRow

log = logging.getLogger(__name__)

NONE: Mapping[str, Any] = MappingProxyType({})
LeasedRow = type[StageRunRow] | type[CellRow]


@dataclass(frozen=True)
class Lease:
    """The right to do the work in a row of `table` until another process claims it, or `life_s` have passed
    since it was claimed or renewed."""

    table: LeasedRow
    key: str
    work: str
    """what it is, for people"""
    fence: int
    life_s: float


def claim(
    database: Database,
    table: LeasedRow,
    key: str,
    work: str,
    *,
    holder: str,
    life_s: float,
    first: Mapping[str, Any] = NONE,
    again: Mapping[str, Any] = NONE,
    always: Mapping[str, Any] = NONE,
) -> Lease | None:
    """The lease of a piece of work, for one of all who ask; None while another's lives, or when it is done.

    A holder that is a process of this machine and has ended is not waited for. `first`, `again`, `always`:
    further columns that the first claim of the row writes, a later one, and any.
    """
    ours = {
        **always,
        "holder": holder,
        "lease_expires": database_now(life_s),
        "started_at": database_now(),
    }
    statement = (
        database.insert(table)
        .values(key=key, fence=1, **first, **ours)
        .on_conflict_do_update(
            index_elements=["key"],
            set_={**ours, **again, "fence": table.fence + 1},
            where=and_(not_(table.is_done()), is_free(table)),
        )
        .returning(table.fence)
    )
    with database.begin() as session:
        fence = session.scalar(statement)
        if fence is None and _take_from_the_dead(session, table, key, work):
            fence = session.scalar(statement)
    return None if fence is None else Lease(table, key, work, fence, life_s)


def is_free(table: LeasedRow) -> Any:
    """SQL condition: no process holds a living lease of the row."""
    return or_(table.lease_expires.is_(None), table.lease_expires < database_now())


def held_row(lease: Lease) -> Any:
    """UPDATE of the lease's row, while the lease is ours."""
    table = lease.table
    return update(table).where(table.key == lease.key, table.fence == lease.fence, table.is_at_work())


def write(session: Session, lease: Lease, **values: Any) -> None:
    """Write columns of the lease's row. LeaseLost, and nothing written, when the lease is another's."""
    if session.execute(held_row(lease).values(**values).returning(lease.table.key)).first() is None:
        raise LeaseLost(
            f"{lease.work}: another process has taken it over; "
            "nothing was recorded, run again to use its result"
        )


def renew(database: Database, lease: Lease) -> None:
    """Let the lease live for `life_s` from now. LeaseLost when another process has claimed the work."""
    with database.begin() as session:
        write(session, lease, lease_expires=database_now(lease.life_s))


def _take_from_the_dead(session: Session, table: LeasedRow, key: str, work: str) -> bool:
    """Free the row of a holder that is seen to have ended; whether it was so."""
    row: Any = session.get(table, key)
    if row is None or row.lease_expires is None or row.holder is None or not has_ended(row.holder):
        return False
    log.warning("%s: its holder %s has ended without giving it back", work, row.holder)
    freed = update(table).where(table.key == key, table.fence == row.fence, table.is_at_work())
    session.execute(freed.values(lease_expires=None))
    return True


@dataclass
class Renewal:
    """A thread's renewals of a lease, at a third of its life, until its work ends or it is lost."""

    lost: threading.Event = field(default_factory=threading.Event)
    """set when the lease could not be renewed: another process may do the work now, so stop"""
    _ended: threading.Event = field(default_factory=threading.Event)
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def last(self, write: Callable[[], None]) -> None:
        """Make the write that ends the lease, and renew no more: that would report a lost lease."""
        with self._writing:
            write()
            self._ended.set()

    def _run(self, database: Database, lease: Lease, claimed_at: float) -> None:
        """An unreachable database is tried again while the lease lives."""
        every_s, renewed_at = lease.life_s / 3, claimed_at
        while not self._ended.wait(every_s):
            asked_at = time.monotonic()
            try:
                with self._writing:
                    if self._ended.is_set():
                        return
                    renew(database, lease)
                renewed_at = asked_at
                continue
            except LeaseLost:
                pass
            except RegistryError as error:
                log.warning("%s: its lease was not renewed: %s", lease.work, error)
                if time.monotonic() + every_s < renewed_at + lease.life_s:
                    continue
            self.lost.set()
            return


@contextmanager
def renewed(database: Database, lease: Lease, claimed_at: float) -> Iterator[Renewal]:
    """Within the block a thread renews the lease; when it is left, no renewal is under way, nor comes.

    `claimed_at`: when it was asked for, by `time.monotonic`: a lease lives from before the answer.
    """
    renewal = Renewal()
    arguments, name = (database, lease, claimed_at), f"lease of {lease.work}"
    thread = threading.Thread(target=renewal._run, args=arguments, name=name, daemon=True)
    thread.start()
    try:
        yield renewal
    finally:
        renewal._ended.set()
        thread.join()


def give_back(database: Database, lease: Lease, **values: Any) -> None:
    """Let anybody claim the work at once; nothing when it is done, or another's now.

    A database that fails is a warning: what the work did matters more, and the lease expires by itself.
    """
    try:
        with database.begin() as session:
            session.execute(held_row(lease).values(**{"lease_expires": None, **values}))
    except RegistryError as error:
        log.warning("%s: it was not given back: %s", lease.work, error)
