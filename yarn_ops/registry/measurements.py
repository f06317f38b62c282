"""What suites have measured, cell by cell, so that no cell of a checkpoint is measured twice."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import select

from yarn_ops.records import CellKey, Score
from yarn_ops.registry.columns import database_now
from yarn_ops.registry.database import Database, open_database
from yarn_ops.registry.tables import ALL_DEPTHS, MeasurementRow

SCORE = ("task", "context_tokens", "seed", "value", "low", "high", "samples", "items")


class Measurements:
    """Of all checkpoints: a suite's journal. RegistryError from every method when the database fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
        return found or None

    def keep(self, key: CellKey, scores: tuple[Score, ...]) -> None:
        """Keep a cell's scores, all or none; what is kept already stays."""
        if not scores:
            return
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


def _columns(key: CellKey) -> dict[str, str | int]:
    columns = asdict(key)
    columns["cell_tokens"] = columns.pop("context_tokens")  # a score of the cell may be of another length
    return columns


def _score(row: Any) -> Score:
    return Score(
        depth=None if row.depth == ALL_DEPTHS else row.depth, **{name: getattr(row, name) for name in SCORE}
    )
