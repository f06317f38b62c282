"""Cells of a suite: kept once, found again, told apart by everything that moves their figures."""

from __future__ import annotations

from yarn_ops.records import Score
from yarn_ops.registry.measurements import Measurements, open_measurements
from yarn_ops.registry.registry import Registry

CELL = ("c" * 64, "p" * 64, "needle/code", 2048, 0)


def scores(value: float) -> tuple[Score, ...]:
    return (
        Score(task="needle/code", context_tokens=2048, value=value, low=0.5, high=1.0, samples=32, seed=0),
        Score(task="needle/code", context_tokens=2048, depth=0.25, value=value, samples=4, seed=0),
    )


def kept(database_url: str) -> Measurements:
    measurements = open_measurements(database_url)
    measurements.keep(*CELL, scores(0.75))
    return measurements


def test_a_cell_comes_back_as_it_was_kept(registry: Registry, database_url: str) -> None:
    measurements = kept(database_url)
    assert measurements.known(*CELL) == scores(0.75)
    assert measurements.of_checkpoint(CELL[0]) == list(scores(0.75))
    measurements.close()


def test_what_is_kept_stays_and_other_cells_are_unknown(registry: Registry, database_url: str) -> None:
    measurements = kept(database_url)
    measurements.keep(*CELL, scores(0.1))
    assert measurements.known(*CELL) == scores(0.75)
    for place, other in enumerate(("d" * 64, "q" * 64, "passkey", 1024, 1)):
        cell = [*CELL]
        cell[place] = other  # type: ignore[call-overload]
        assert measurements.known(*cell) is None  # type: ignore[arg-type]
    measurements.close()
