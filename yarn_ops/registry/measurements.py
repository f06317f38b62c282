"""What suites have measured, cell by cell, so that no cell of a checkpoint is measured twice."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from yarn_ops.records import Score
from yarn_ops.registry.columns import database_now
from yarn_ops.registry.database import Database, open_database
from yarn_ops.registry.tables import ALL_DEPTHS, MeasurementRow

SCORE = ("task", "context_tokens", "seed", "value", "low", "high", "samples")


class Measurements:
    """Of all checkpoints. RegistryError from every method when the database fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def close(self) -> None:
        self._database.close()

    def known(
        self, checkpoint_digest: str, protocol: str, cell: str, cell_tokens: int, seed: int
    ) -> tuple[Score, ...] | None:
        """The scores of a cell in the order they were kept; None while it is not measured."""
        rows = (
            select(MeasurementRow)
            .where(
                MeasurementRow.checkpoint_digest == checkpoint_digest,
                MeasurementRow.protocol == protocol,
                MeasurementRow.cell == cell,
                MeasurementRow.cell_tokens == cell_tokens,
                MeasurementRow.seed == seed,
            )
            .order_by(MeasurementRow.id)
        )
        with self._database.begin() as session:
            found = tuple(map(_score, session.scalars(rows)))
        return found or None

    def keep(
        self,
        checkpoint_digest: str,
        protocol: str,
        cell: str,
        cell_tokens: int,
        seed: int,
        scores: tuple[Score, ...],
    ) -> None:
        """Keep a cell's scores, all or none; what is kept already stays."""
        if not scores:
            return
        rows = [
            {
                "checkpoint_digest": checkpoint_digest,
                "protocol": protocol,
                "cell": cell,
                "cell_tokens": cell_tokens,
                "measured_at": database_now(),
                "depth": ALL_DEPTHS if score.depth is None else score.depth,
                **{name: getattr(score, name) for name in SCORE},
            }
            for score in scores
        ]
        with self._database.begin() as session:
            session.execute(self._database.insert(MeasurementRow).values(rows).on_conflict_do_nothing())

    def of_checkpoint(self, checkpoint_digest: str) -> list[Score]:
        """Everything that was ever measured of a checkpoint, oldest first."""
        rows = (
            select(MeasurementRow)
            .where(MeasurementRow.checkpoint_digest == checkpoint_digest)
            .order_by(MeasurementRow.id)
        )
        with self._database.begin() as session:
            return [_score(row) for row in session.scalars(rows)]


def open_measurements(url: str) -> Measurements:
    """Those in the database at `url`; RegistryError when it cannot be used as it is."""
    return Measurements(open_database(url))


def _score(row: Any) -> Score:
    return Score(
        depth=None if row.depth == ALL_DEPTHS else row.depth, **{name: getattr(row, name) for name in SCORE}
    )
