"""A suite in blocks: the same scores to the last bit, however it is divided and whoever measures what."""

from __future__ import annotations

import copy
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from suite_parts import SPEC, documents

from yarn_ops.evals.suite import size as sizes
from yarn_ops.evals.suite.haystack import Haystack
from yarn_ops.evals.suite.journal import JsonLines
from yarn_ops.evals.suite.plan import Plan, Size, plan
from yarn_ops.evals.suite.run import Measured, help_suite, run_suite
from yarn_ops.records import CellKey
from yarn_ops.registry import upgrade
from yarn_ops.registry.measurements import Measurements, open_measurements

SIZE = Size(2, 3, 4, 0, ("context", "needle/code", "copy", "mqar"))


@pytest.fixture(scope="module")
def haystack(encode: Any) -> Haystack:
    """Random words in tokens below 97, each text beginning alike."""
    whole = documents(encode, tokens=3000)
    return Haystack(
        whole.texts, tuple(ids % 97 for ids in whole.documents), (5, 6),
        lambda text: [token % 97 for token in whole.encode(text)], "tiny",
    )  # fmt: skip


def measured(cells: Plan, model: Any, journal: Any, notes: list[str] | None = None) -> Measured:
    return run_suite(
        cells, lambda: model, SPEC, checkpoint_digest="c", precision="fp32", journal=journal,
        report=lambda done, total, note: None if notes is None else notes.append(note),
    )  # fmt: skip


def helped(cells: Plan, model: Any, journal: Any) -> int:
    return help_suite(
        cells, lambda: model, SPEC, checkpoint_digest="c", precision="fp32", journal=journal,
        report=lambda *_: None,
    )  # fmt: skip


@pytest.fixture
def divided(haystack: Haystack, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A block of each text."""
    monkeypatch.setattr(sizes, "BLOCK_TOKENS", 256)
    return plan(SIZE, (128, 256), haystack, 0)


def test_divided_or_not_the_scores_and_what_is_read_are_the_same(
    haystack: Haystack, divided: Plan, tiny_llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    cells = plan(SIZE, (128, 256), haystack, 0)
    assert all(len(cell.blocks) == 1 for cell in cells.cells)
    whole = measured(cells, tiny_llama, JsonLines(tmp_path / "whole"))
    parts = measured(divided, tiny_llama, JsonLines(tmp_path / "parts"))
    names = {block.name for cell in divided.cells for block in cell.blocks if block.context_tokens == 256}
    assert {"context", "needle/code 1/3", "needle/code 3/3", "copy 2/3", "mqar 1/3"} <= names
    assert parts.scores == whole.scores
    assert parts.read_tokens == whole.read_tokens
    assert parts.computed > whole.computed == len(cells.cells)


def test_every_text_is_in_one_block(haystack: Haystack, monkeypatch: pytest.MonkeyPatch) -> None:
    for tokens in (1, 700, 1500, 10**6):
        monkeypatch.setattr(sizes, "BLOCK_TOKENS", tokens)
        for cell in plan(Size(2, 7, 4, 0, ("needle/code",)), (128, 256), haystack, 0).cells:
            asked = [block.measure.keywords.get("texts", range(7)) for block in cell.blocks]  # type: ignore[attr-defined]
            assert [text for texts in asked for text in texts] == list(range(7))
            assert all(asked) and sum(block.weight for block in cell.blocks) == cell.weight


@pytest.fixture
def measurements(tmp_path: Path) -> Measurements:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    upgrade(url)
    return open_measurements(url)


def test_two_workers_share_what_one_would_measure_alone(
    divided: Plan, tiny_llama: Any, measurements: Measurements, tmp_path: Path
) -> None:
    start = threading.Barrier(2)

    def work(model: Any) -> Measured:
        start.wait()
        return measured(divided, model, measurements)

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(work, [tiny_llama, copy.deepcopy(tiny_llama)])
    alone = measured(divided, tiny_llama, JsonLines(tmp_path / "alone"))
    assert one.scores == other.scores == alone.scores
    assert one.computed + other.computed == alone.computed
    assert measured(divided, None, measurements).computed == 0


def test_a_helper_leaves_when_no_block_is_free_and_the_run_waits_for_what_is_left(
    divided: Plan, tiny_llama: Any, measurements: Measurements
) -> None:
    blocks = [block for cell in divided.cells for block in cell.blocks]
    largest = max(blocks, key=lambda block: block.weight)
    key = CellKey("c", divided.protocol("fp32"), largest.name, largest.context_tokens, 0)
    notes: list[str] = []
    with measurements.claimed(key) as keep:
        assert keep is not None
        assert helped(divided, tiny_llama, measurements) == len(blocks) - 1
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(measured, divided, tiny_llama, measurements, notes)
            while not any(note.startswith("others measure context at 256") for note in notes):
                assert not run.done()
                time.sleep(0.01)
            keep(())
            assert run.result().computed == 0
    assert "context" not in {score.task for score in run.result().scores}
