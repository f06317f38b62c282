"""Cells of a suite: kept once, found again, told apart by everything that moves their figures."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import update

from yarn_ops.digests import digest_of
from yarn_ops.errors import LeaseLost
from yarn_ops.registry import this_process
from yarn_ops.registry.columns import database_now
from yarn_ops.registry.measurements import Measurements, open_measurements, scores_by_cell
from yarn_ops.registry.registry import Registry
from yarn_ops.registry.tables import CellRow
from yarn_ops.scores import CellKey, Score, Scorecard

CELL = CellKey("c" * 64, "p" * 64, "needle/code", 2048, 0)


def scores(value: float) -> tuple[Score, ...]:
    return (
        Score(task="needle/code", context_tokens=2048, value=value, low=0.5, high=1.0, samples=32, seed=0),
        Score(task="needle/code", context_tokens=2048, depth=0.25, value=value, samples=4, seed=0),
    )


def keep(measurements: Measurements, found: tuple[Score, ...]) -> None:
    with measurements.claimed(CELL) as write:
        assert write is not None
        write(found)


def kept(database_url: str) -> Measurements:
    measurements = open_measurements(database_url)
    keep(measurements, scores(0.75))
    return measurements


def test_a_cell_comes_back_as_it_was_kept(registry: Registry, database_url: str) -> None:
    measurements = kept(database_url)
    assert measurements.known(CELL) == scores(0.75)
    measurements.close()


def test_what_is_kept_stays_and_other_cells_are_unknown(registry: Registry, database_url: str) -> None:
    measurements = kept(database_url)
    with measurements.claimed(CELL) as write:
        assert write is None
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
    keep(measurements, (score,))
    assert measurements.known(CELL) == (score,)
    measurements.close()


def test_of_16_threads_one_measures_a_cell(registry: Registry, database_url: str) -> None:
    measurements, start = open_measurements(database_url), threading.Barrier(16)
    done = threading.Barrier(16)

    def race(_: int) -> bool:
        start.wait()
        with measurements.claimed(CELL) as write:
            done.wait()
            if write is not None:
                write(scores(0.75))
            return write is not None

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(race, range(16))) == 1
    with measurements.claimed(CELL) as write:
        assert write is None and measurements.known(CELL) == scores(0.75)
    measurements.close()


def test_a_cell_of_no_scores_is_known_too(registry: Registry, database_url: str) -> None:
    measurements = open_measurements(database_url)
    assert measurements.known(CELL) is None
    keep(measurements, ())
    assert measurements.known(CELL) == ()
    measurements.close()


def test_a_cell_that_was_not_kept_is_anybodys_at_once(registry: Registry, database_url: str) -> None:
    measurements = open_measurements(database_url)
    with pytest.raises(KeyboardInterrupt), measurements.claimed(CELL):
        raise KeyboardInterrupt
    keep(measurements, scores(0.75))
    measurements.close()


ENDED = this_process().replace(str(os.getpid()), "999999999", 1)
"""who measured, were it a process of this machine that runs no more"""


@pytest.mark.parametrize(
    ("holder", "expired", "taken"),
    [("a process elsewhere", False, False), ("a process elsewhere", True, True), (ENDED, False, True)],
    ids=["alive", "expired", "ended"],
)
def test_who_is_gone_loses_the_cell_and_can_write_no_more(
    registry: Registry, database_url: str, holder: str, expired: bool, taken: bool
) -> None:
    other, ours = open_measurements(database_url, holder=holder), open_measurements(database_url)
    with other.claimed(CELL) as late:
        assert late is not None
        if expired:
            with registry.begin() as session:
                session.execute(update(CellRow).values(lease_expires=database_now(-1.0)))
        with ours.claimed(CELL) as write:
            assert (write is not None) == taken
            if write is not None:
                with pytest.raises(LeaseLost, match="needle/code at 2048: another process has taken it over"):
                    late(scores(0.1))
                assert ours.known(CELL) is None
                write(scores(0.75))
    assert ours.known(CELL) == (scores(0.75) if taken else None)
    other.close()
    ours.close()


def test_a_lease_is_renewed_while_the_cell_is_measured(registry: Registry, database_url: str) -> None:
    slow = open_measurements(database_url, 0.6, "a process elsewhere")
    ours = open_measurements(database_url)
    with slow.claimed(CELL) as write:
        assert write is not None
        time.sleep(1.0)
        with ours.claimed(CELL) as taken:
            assert taken is None
        write(scores(0.75))
    assert ours.known(CELL) == scores(0.75)
    slow.close()
    ours.close()


def measured(task: str, value: float, seed: int = 0, samples: int = 4) -> Score:
    return Score(task=task, context_tokens=2048, value=value, samples=samples, seed=seed)


def test_scores_of_runs_are_told_apart_by_what_was_asked(registry: Registry, database_url: str) -> None:
    """By the cell's protocol; of what was made of cells by theirs; of lost cells by recipe and documents."""
    card = Scorecard(
        model_digest="c" * 64, original_context_tokens=512, parents=("c" * 64, "texts"),
        scores=(
            measured("needle/code", 0.5), measured("ruler/one", 0.25), measured("ruler/average", 0.3),
            measured("recall/code", 0.75), measured("recall/prose", 1.0), measured("capacity/sees", 2048.0),
            measured("perplexity/single-pass", 9.0), measured("loss/same-targets", 2.0, samples=8),
        ),
    )  # fmt: skip
    run = registry.begin_run({"evaluate": {"windows": 4}}, "d" * 64).id
    lease = registry.claim("e" * 64, stage="evaluate", run_id=run, holder="a process", lease_s=60)
    assert lease is not None
    registry.complete(lease, card)
    journal = open_measurements(database_url)
    kept_cells = [
        ("p", "needle/code", 0.5), ("q", "ruler/one", 0.25), ("r", "recall/code", 0.75),
        ("s", "recall/code", 0.5), ("t", "recall/prose", 1.0), ("u", "recall/prose", 1.0),
        ("v", "loss/same-targets", 1.0), ("w", "loss/same-targets", 3.0),
    ]  # fmt: skip
    for protocol, task, value in kept_cells:
        with journal.claimed(replace(CELL, protocol=protocol, cell=task)) as write:
            assert write is not None
            write((measured(task, value),))
    journal.close()
    found = {cell.task: cell.protocol for cell in scores_by_cell(registry, "c" * 64)}
    assert (found["needle/code"], found["ruler/one"]) == ("p", "q")
    assert found["recall/code"] == "r", "the cell with its value"
    assert found["ruler/average"] == digest_of(["q"])
    assert found["loss/same-targets"] == digest_of(["v", "w"]), "made of windows of two cells"
    assert found["perplexity/single-pass"] == digest_of([{"windows": 4}, ["texts"]])
    assert found.keys() == {score.task for score in card.scores} - {"recall/prose", "capacity/sees"}
    assert scores_by_cell(registry, "f" * 64) == {}
