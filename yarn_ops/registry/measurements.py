"""What suites have measured, cell by cell, so that no cell of a checkpoint is measured twice.

Any number of processes, on any number of machines, may measure the cells of one suite: each claims a cell
under a lease with a fencing number, as stages are claimed, and its scores are written under that number.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from yarn_ops.digests import digest_of
from yarn_ops.errors import LeaseLost, RegistryError
from yarn_ops.records import CellKey, Score
from yarn_ops.registry.columns import database_now
from yarn_ops.registry.database import Database, open_database
from yarn_ops.registry.holder import has_ended, this_process
from yarn_ops.registry.registry import Lease
from yarn_ops.registry.renewal import Renewal
from yarn_ops.registry.tables import ALL_DEPTHS, CellRow, MeasurementRow

log = logging.getLogger(__name__)

SCORE = ("task", "context_tokens", "seed", "value", "low", "high", "samples", "items")
LEASE_S = 60.0

Keep = Callable[[tuple[Score, ...]], None]


class Measurements:
    """Of all checkpoints: a suite's journal. RegistryError from every method when the database fails."""

    def __init__(self, database: Database, lease_s: float, holder: str) -> None:
        self._database = database
        self._lease_s = lease_s
        self._holder = holder

    def close(self) -> None:
        self._database.close()

    def known(self, key: CellKey) -> tuple[Score, ...] | None:
        """The scores of a cell in the order they were kept; None while it is not measured."""
        rows = (
            select(MeasurementRow)
            .where(*(getattr(MeasurementRow, name) == value for name, value in _columns(key).items()))
            .order_by(MeasurementRow.id)
        )
        with self._database.begin() as session:
            found = tuple(map(_score, session.scalars(rows)))
            if not found and not session.scalar(select(CellRow.finished_at).where(CellRow.key == _key(key))):
                return None
        return found

    @contextmanager
    def claimed(self, key: CellKey) -> Iterator[Keep | None]:
        """The right to measure a cell within the block, for one of all who ask: what keeps its scores.

        None: another process is at it, or has been. A holder that is a process of this machine and has ended
        is not waited for. Keeping raises LeaseLost when another has taken the cell over: nothing is written.
        """
        asked_at = time.monotonic()
        lease = self._claim(key)
        if lease is None:
            yield None
            return
        renewal = Renewal(lease, self._renew)
        renewal.start(asked_at)
        try:
            yield lambda scores: renewal.last(lambda: self._keep(key, lease, scores))
        finally:
            renewal.end()
            self._give_back(lease)

    def of_checkpoint(self, checkpoint_digest: str) -> list[Score]:
        """Everything that was ever measured of a checkpoint, oldest first."""
        rows = (
            select(MeasurementRow)
            .where(MeasurementRow.checkpoint_digest == checkpoint_digest)
            .order_by(MeasurementRow.id)
        )
        with self._database.begin() as session:
            return [_score(row) for row in session.scalars(rows)]

    def _claim(self, key: CellKey) -> Lease | None:
        name, life_s = f"{key.cell} at {key.context_tokens}", self._lease_s
        ours = {
            "holder": self._holder, "lease_expires": database_now(life_s), "started_at": database_now(),
        }  # fmt: skip
        told = {
            "checkpoint_digest": key.checkpoint_digest, "cell": key.cell, "cell_tokens": key.context_tokens,
        }  # fmt: skip
        free = or_(CellRow.lease_expires.is_(None), CellRow.lease_expires < database_now())
        claim = self._database.insert(CellRow).values(key=_key(key), fence=1, **told, **ours)
        claim = claim.on_conflict_do_update(
            index_elements=["key"],
            set_={**ours, "fence": CellRow.fence + 1},
            where=and_(CellRow.finished_at.is_(None), free),
        ).returning(CellRow.fence)
        with self._database.begin() as session:
            fence = session.scalar(claim)
            if fence is None and self._free_of_the_dead(session, key, name):
                fence = session.scalar(claim)
        return None if fence is None else Lease(_key(key), name, fence, life_s)

    def _free_of_the_dead(self, session: Session, key: CellKey, name: str) -> bool:
        """Take a cell from a holder that is seen to have ended; whether it was so."""
        row = session.get(CellRow, _key(key))
        if row is None or row.finished_at is not None or not has_ended(row.holder):
            return False
        log.warning("%s: its holder %s has ended without giving it back", name, row.holder)
        freed = update(CellRow).where(CellRow.key == row.key, CellRow.fence == row.fence)
        session.execute(freed.values(lease_expires=None))
        return True

    def _renew(self, lease: Lease) -> None:
        with self._database.begin() as session:
            _write(session, lease, lease_expires=database_now(lease.life_s))

    def _keep(self, key: CellKey, lease: Lease, scores: tuple[Score, ...]) -> None:
        """All scores or none, with the end of the lease."""
        rows = [
            {
                **_columns(key),
                **{name: getattr(score, name) for name in SCORE},
                "depth": ALL_DEPTHS if score.depth is None else score.depth,
                "measured_at": database_now(),
            }
            for score in scores
        ]
        with self._database.begin() as session:
            _write(session, lease, lease_expires=None, finished_at=database_now())
            if rows:
                session.execute(self._database.insert(MeasurementRow).values(rows).on_conflict_do_nothing())

    def _give_back(self, lease: Lease) -> None:
        """Let anybody claim a cell that was not kept; nothing when it was, or is another's now."""
        try:
            with self._database.begin() as session:
                session.execute(_held(lease).values(lease_expires=None))
        except RegistryError as error:  # what the block did matters more, and the lease expires by itself
            log.warning("%s: it was not given back: %s", lease.stage, error)


def open_measurements(url: str, lease_s: float = LEASE_S, holder: str | None = None) -> Measurements:
    """Those in the database at `url`; RegistryError when it cannot be used as it is.

    `holder`: who claims cells; left out, this process.
    """
    return Measurements(open_database(url), lease_s, holder or this_process())


def _held(lease: Lease) -> Any:
    """UPDATE of the lease's cell, while the lease is ours."""
    return update(CellRow).where(
        CellRow.key == lease.key, CellRow.fence == lease.fence, CellRow.finished_at.is_(None)
    )


def _write(session: Session, lease: Lease, **values: Any) -> None:
    if session.execute(_held(lease).values(**values).returning(CellRow.key)).first() is None:
        raise LeaseLost(f"{lease.stage}: another process has taken it over; nothing was recorded")


def _key(key: CellKey) -> str:
    return digest_of(asdict(key))


def _columns(key: CellKey) -> dict[str, str | int]:
    columns = asdict(key)
    columns["cell_tokens"] = columns.pop("context_tokens")  # a score of the cell may be of another length
    return columns


def _score(row: Any) -> Score:
    return Score(
        depth=None if row.depth == ALL_DEPTHS else row.depth, **{name: getattr(row, name) for name in SCORE}
    )
