"""Cells of a suite: kept once, found again, told apart by everything that moves their figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from yarn_ops.records import CellKey, Score
from yarn_ops.registry.measurements import Measurements, open_measurements
from yarn_ops.registry.registry import Registry

CELL = CellKey("c" * 64, "p" * 64, "needle/code", 2048, 0)


def scores(value: float) -> tuple[Score, ...]:
    return (
        Score(task="needle/code", context_tokens=2048, value=value, low=0.5, high=1.0, samples=32, seed=0),
        Score(task="needle/code", context_tokens=2048, depth=0.25, value=value, samples=4, seed=0),
    )


def kept(database_url: str) -> Measurements:
    measurements = open_measurements(database_url)
    measurements.keep(CELL, scores(0.75))
    return measurements


def test_a_cell_comes_back_as_it_was_kept(registry: Registry, database_url: str) -> None:
    measurements = kept(database_url)
    assert measurements.known(CELL) == scores(0.75)
    assert measurements.of_checkpoint(CELL.checkpoint_digest) == list(scores(0.75))
    measurements.close()


def test_what_is_kept_stays_and_other_cells_are_unknown(registry: Registry, database_url: str) -> None:
    measurements = kept(database_url)
    measurements.keep(CELL, scores(0.1))
    assert measurements.known(CELL) == scores(0.75)
    others = {
        "checkpoint_digest": "d" * 64, "protocol": "q" * 64, "cell": "passkey", "context_tokens": 1024,
        "seed": 1,
    }  # fmt: skip
    for name, value in others.items():
        assert measurements.known(replace(CELL, **{name: value})) is None
    measurements.close()


@pytest.mark.parametrize(
    "items",
    [(1.0, 0.0, 1.0), (0.0,) * 8, (1.0,) * 200, (0.25, 1e-300, 3.0), (1.0, 0.5)],
)
def test_items_come_back_one_by_one(registry: Registry, database_url: str, items: tuple[float, ...]) -> None:
    score = Score(task="needle/code", context_tokens=2048, value=0.5, samples=len(items), seed=0, items=items)
    measurements = open_measurements(database_url)
    measurements.keep(CELL, (score,))
    assert measurements.known(CELL) == (score,)
    measurements.close()
