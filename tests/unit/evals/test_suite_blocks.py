"""A suite in blocks: the same scores to the last bit, however it is divided and whoever measures what."""

from __future__ import annotations

import copy
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from suite_parts import SPEC, documents, measured, planned, run_of

from yarn_ops.data.haystack import Haystack
from yarn_ops.evals.cells import Size
from yarn_ops.evals.journal import JsonLines
from yarn_ops.evals.plan import CellPlan
from yarn_ops.evals.run import Measured
from yarn_ops.evals.tasks import grid
from yarn_ops.registry import upgrade
from yarn_ops.registry.measurements import Measurements, open_measurements
from yarn_ops.scores import CellKey

SIZE = Size(2, 3, 4, 0, ("context", "needle/code", "copy", "mqar"))


@pytest.fixture(scope="module")
def haystack(encode: Any) -> Haystack:
    """Random words in tokens below 97, each text beginning alike."""
    whole = documents(encode, tokens=3000)
    return Haystack(
        whole.texts, tuple(ids % 97 for ids in whole.documents), (5, 6),
        lambda text: [token % 97 for token in whole.encode(text)], "tiny",
    )  # fmt: skip


def run(plan: CellPlan, model: Any, journal: Any, notes: list[str] | None = None) -> Measured:
    def progress(done: int, total: int, note: str) -> None:
        if notes is not None:
            notes.append(note)

    return measured(plan, lambda: model, SPEC, journal, progress=progress)


@pytest.fixture
def divided(haystack: Haystack, monkeypatch: pytest.MonkeyPatch) -> CellPlan:
    """A block of each text."""
    monkeypatch.setattr(grid, "BLOCK_TOKENS", 256)
    return planned(SIZE, (128, 256), haystack)


def test_divided_or_not_the_scores_and_what_is_read_are_the_same(
    haystack: Haystack, divided: CellPlan, tiny_llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    cells = planned(SIZE, (128, 256), haystack)
    assert all(len(cell.blocks) == 1 for cell in cells.cells if cell.name != "context")
    whole = run(cells, tiny_llama, JsonLines(tmp_path / "whole"))
    parts = run(divided, tiny_llama, JsonLines(tmp_path / "parts"))
    names = {block.name for cell in divided.cells for block in cell.blocks if block.context_tokens == 256}
    assert {"context", "needle/code 1/3", "needle/code 3/3", "copy 2/3", "mqar 1/3"} <= names
    assert parts.scores == whole.scores
    assert parts.read_tokens == whole.read_tokens
    assert parts.computed > whole.computed == sum(len(cell.blocks) for cell in cells.cells)


def test_every_text_is_in_one_block(haystack: Haystack, monkeypatch: pytest.MonkeyPatch) -> None:
    for tokens in (1, 700, 1500, 10**6):
        monkeypatch.setattr(grid, "BLOCK_TOKENS", tokens)
        for cell in planned(Size(2, 7, 4, 0, ("needle/code",)), (128, 256), haystack).cells:
            asked = [block.measure.args[0] for block in cell.blocks]  # type: ignore[attr-defined]
            assert [text for texts in asked for text in texts] == list(range(7))
            assert all(asked) and sum(block.tokens for block in cell.blocks) == cell.tokens


@pytest.fixture
def measurements(tmp_path: Path) -> Measurements:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    upgrade(url)
    return open_measurements(url)


def test_two_workers_share_what_one_would_measure_alone(
    divided: CellPlan, tiny_llama: Any, measurements: Measurements, tmp_path: Path
) -> None:
    start = threading.Barrier(2)

    def work(model: Any) -> Measured:
        start.wait()
        return run(divided, model, measurements)

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(work, [tiny_llama, copy.deepcopy(tiny_llama)])
    alone = run(divided, tiny_llama, JsonLines(tmp_path / "alone"))
    assert one.scores == other.scores == alone.scores
    assert one.computed + other.computed == alone.computed
    assert run(divided, None, measurements).computed == 0


def test_a_helper_leaves_when_no_block_is_free_and_the_run_waits_for_what_is_left(
    divided: CellPlan, tiny_llama: Any, measurements: Measurements
) -> None:
    blocks = [block for cell in divided.cells for block in cell.blocks]
    largest = max(blocks, key=lambda block: block.tokens)
    (protocol,) = (cell.protocol("fp32") for cell in divided.cells if largest in cell.blocks)
    key = CellKey("c", protocol, largest.name, largest.context_tokens, 0)
    notes: list[str] = []
    with measurements.claimed(key) as keep:
        assert keep is not None
        assert run_of(divided, lambda: tiny_llama, SPEC, measurements).help() == len(blocks) - 1
        with ThreadPoolExecutor(1) as pool:
            going = pool.submit(run, divided, tiny_llama, measurements, notes)
            while not any(note.startswith("others measure context at 256") for note in notes):
                assert not going.done()
                time.sleep(0.01)
            keep(())
            assert going.result().computed == 0
    assert "context" not in {score.task for score in going.result().scores}
