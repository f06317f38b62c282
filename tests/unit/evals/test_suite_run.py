"""Known answers, a suite that goes on, and losses against a slow float64 reference."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from suite_parts import CHANCE, SPEC, Finder, Induction, documents, examples_of, measured, planned

from yarn_ops.errors import DataError, EvaluationError
from yarn_ops.evals import scoring
from yarn_ops.evals.cells import ModelUnderTest, Size, lengths_to
from yarn_ops.evals.journal import JsonLines
from yarn_ops.evals.names import FAR_TEXT, GAIN, LAST_QUARTER, NEEDLE_FORMS, SAME_TARGETS
from yarn_ops.evals.plan import CellPlan, suite_cells
from yarn_ops.evals.reach import reach_of
from yarn_ops.evals.reader import WholeReader
from yarn_ops.evals.run import PlanRun, Worker
from yarn_ops.evals.tasks import context, grid, needles, perplexity
from yarn_ops.scores import Score, Scorecard

LENGTHS = (128, 256, 512)


def needle_scores(model, encode, texts: int = 2, lengths: tuple[int, ...] = LENGTHS) -> dict[tuple, float]:
    haystack, reader = documents(encode), WholeReader(model)
    scores: list[Score] = []
    for length in lengths:
        asked = scoring.ask_all(reader, [needles.grid(("prose",), haystack, length, 4, texts, 0)])
        scores += scoring.recall("needle/prose", asked, length, 4, 0)
    return scores


def card_of(scores) -> Scorecard:
    return Scorecard(model_digest="", original_context_tokens=LENGTHS[0], scores=tuple(scores))


def value(scores, task: str, length: int) -> float:
    return next(s.value for s in scores if (s.task, s.context_tokens, s.depth) == (task, length, None))


def test_a_model_that_copies_scores_one_and_nothing_without_needles(encode, base512_tokenizer):
    scores = needle_scores(Finder(base512_tokenizer), encode)
    for length in LENGTHS:
        assert value(scores, "needle/prose", length) == 1
        assert value(scores, "needle/prose/choice", length) == 1
        assert value(scores, "needle/prose/no-needle", length) == 0
        assert value(scores, "needle/prose/choice/no-needle", length) <= CHANCE
        assert value(scores, "needle/prose/nats", length) < 0.01
    assert reach_of(card_of(scores)).uses.tokens == 512


def test_a_model_that_shuffles_scores_at_chance(encode, base512_tokenizer):
    scores = needle_scores(Finder(base512_tokenizer, shuffled=True), encode, texts=12, lengths=(256,))
    for task in ("needle/prose", "needle/prose/choice"):
        low, high = next((s.low, s.high) for s in scores if s.task == task and s.depth is None)
        assert low <= CHANCE <= high
    assert value(scores, "needle/prose/no-needle", 256) == 0


@pytest.mark.parametrize(("task", "match"), [("mqar", 1), ("copy", 3)])
def test_induction_continues_what_is_there_and_nothing_else(task, match, encode):
    size, haystack = Size(4, 2, 2, 1, (task,)), documents(encode)

    def scores(**options) -> tuple[Score, ...]:
        reader = WholeReader(Induction(8192, match, **options))
        asked = scoring.ask_all(reader, [examples_of(task, size, haystack, 256)])
        return scoring.recall(task, asked, 256, 4, 0, by_token=task == "copy")

    right = scores()
    assert value(right, task, 256) == 1
    assert {score.value for score in right if score.task == task} == {1.0}  # at every depth
    assert value(right, f"{task}/no-needle", 256) < 0.05
    assert value(scores(shuffled=True), task, 256) < 0.05


@pytest.mark.parametrize("window", [200, 300, 420])
def test_a_windowed_model_uses_its_window_within_a_part(window, encode, base512_tokenizer):
    scores = needle_scores(Finder(base512_tokenizer, window=window), encode, texts=3)
    assert reach_of(card_of(scores)).uses.tokens == pytest.approx(window, abs=512 / 4)


def test_growing_context_equals_one_token_at_a_time_in_float64(tiny_llama):
    windows = np.random.default_rng(0).integers(0, 97, (5, 33))
    under_test = ModelUnderTest(lambda: tiny_llama, SPEC)
    found = [context.window_losses(under_test, windows[:, -k - 1 :], 6, 0, 0) for k in (8, 16, 32)]
    scores = context.growing(0, 5, {}, found)
    slow = tiny_llama.double()
    try:
        for k in (8, 16, 32):
            losses = []
            for window in windows:
                for target in range(33 - 6, 33):
                    ids = torch.from_numpy(window[32 - k : target])[None]
                    logits = slow(input_ids=ids).logits[0, -1].detach()
                    losses.append(-float(logits.log_softmax(-1)[window[target]]))
            assert value(scores, SAME_TARGETS, k) == pytest.approx(np.mean(losses), rel=1e-5)
    finally:
        tiny_llama.float()
    gain = value(scores, SAME_TARGETS, 8) - value(scores, SAME_TARGETS, 32)
    assert value(scores, GAIN, 32) == pytest.approx(gain, abs=1e-6)


class Counted(ModelUnderTest):
    """Counts the tokens that are read for losses."""

    read = 0

    def losses_and_foreign(self, windows, scored_tokens, near_tokens, targets):
        self.read += windows.size - len(windows) + len(windows) * near_tokens
        return super().losses_and_foreign(windows, scored_tokens, near_tokens, targets)

    def token_losses(self, windows, scored_tokens):
        self.read += windows.size - len(windows)
        return super().token_losses(windows, scored_tokens)


@pytest.mark.parametrize("windows", [4, 3])
def test_growing_context_takes_what_perplexity_has_read(windows, cells, tiny_llama, tmp_path):
    """The same figures; read again are only the windows that perplexity has not, and targets after foreign
    text."""
    size, haystack = Size(2, 1, 4, 0, ("context", "perplexity")), cells.haystack
    near, longest = cells.lengths[0], cells.lengths[-1]
    read = haystack.windows(8, longest + 1, 0)[::2][:windows]

    def found(tasks, beside=()):
        some = suite_cells(replace(size, tasks=tasks), cells.lengths, haystack, 0, beside=beside)
        model = Counted(lambda: tiny_llama, SPEC)
        plan = CellPlan((*beside, *some), cells.lengths, 0, haystack)
        worker = Worker("cpu", "fp32", JsonLines(tmp_path / f"{tasks} {bool(beside)}"), lambda *_: None)
        scores = PlanRun(plan, model, "c", worker).measure().scores
        (tokens,) = (cell.tokens for cell in some if cell.name == "context")
        return (
            {(s.task, s.context_tokens): s for s in scores if s.task.startswith("loss/")},
            model.read,
            tokens,
        )

    beside = [perplexity.cell(read, k, 0, "t", shortest=near, foreign=True) for k in cells.lengths]
    whole, alone_read, alone_tokens = found(("context",))
    both, both_read, tokens = found(("context",), beside)
    assert alone_read == alone_tokens == 8 * (sum(cells.lengths) + near)
    assert both_read - sum(cell.tokens for cell in beside) == tokens
    assert tokens == (8 - windows) * (sum(cells.lengths) + near)
    assert both.keys() == whole.keys() == {*both} and (FAR_TEXT, longest) in both
    for key, score in both.items():
        assert score.samples == 8
        if windows == 4 and key[0] != FAR_TEXT:
            assert score.value == pytest.approx(whole[key].value, abs=1e-6)
            np.testing.assert_allclose(sorted(score.items), sorted(whole[key].items), rtol=1e-5)
    suite, suite_read, _ = found(("context", "perplexity"))
    assert suite_read == 4 * longest * len(cells.lengths) + 4 * sum(cells.lengths) + 8 * near
    if windows == 4:
        assert suite == both
    foretold = context.load(size, cells.lengths, dict.fromkeys(cells.lengths, windows))
    assert foretold.tokens == tokens and foretold.reads.tokens == tokens


def test_growing_context_needs_all_that_it_is_made_of(cells, tiny_llama, tmp_path):
    """Where a server refuses one length of perplexity, it is left out as a whole."""

    class Refuses(ModelUnderTest):
        def token_losses(self, windows, scored_tokens):
            if windows.shape[1] - 1 == scored_tokens == cells.lengths[0]:
                raise DataError("refused")
            return super().token_losses(windows, scored_tokens)

    some = suite_cells(replace(SMALL, tasks=("context", "perplexity")), cells.lengths, cells.haystack, 0)
    plan = CellPlan(tuple(some), cells.lengths, 0, cells.haystack)
    worker = Worker("cpu", "fp32", JsonLines(tmp_path / "j"), lambda *_: None)
    run = PlanRun(plan, Refuses(lambda: tiny_llama, SPEC), "c", worker).measure()
    assert run.skipped == {"perplexity at 128": "refused", "context at 256": "refused"}
    assert {score.context_tokens for score in run.scores if score.task == LAST_QUARTER} == {256}
    assert not any(score.task == SAME_TARGETS for score in run.scores)


def test_key_tokens_complete_a_run_that_is_only_far_away():
    window = np.array([1, 2, 3, 9, 9, 8, 7, 6, 1, 2, 3, 5, 1, 2, 3])
    assert np.flatnonzero(context.key_tokens(window, 5)).tolist() == [10]


def test_sliding_reads_the_ends_of_the_same_texts_at_every_length(encode, monkeypatch):
    read = {}
    monkeypatch.setattr(
        perplexity, "sliding_scores",
        lambda model, documents, length, *others: read.update({length: np.stack(documents)}) or (),
    )  # fmt: skip
    sliding = planned(Size(2, 1, 4, 0, ("sliding",)), (128, 256, 512), documents(encode))
    for cell in sliding.cells:
        cell.blocks[0].measure(SimpleNamespace(token_losses=None))
    for length in (128, 256):
        np.testing.assert_array_equal(read[length], read[512][:, -(length + 513) :])


SMALL = Size(2, 1, 4, 0, ("context", "perplexity", "needle/code", "multi-key"))


@pytest.fixture
def cells(encode):
    haystack = documents(encode)
    tiny = type(haystack)(
        haystack.texts, tuple(ids % 97 for ids in haystack.documents), (),
        lambda text: [token % 97 for token in haystack.encode(text)], "tiny",
    )  # fmt: skip
    return planned(SMALL, lengths_to(256), tiny)


def test_an_evaluation_that_was_killed_goes_on_with_its_next_cell(cells, tiny_llama, tmp_path):
    file = tmp_path / "cells.jsonl"
    whole = measured(cells, lambda: tiny_llama, SPEC, JsonLines(tmp_path / "other.jsonl"))
    assert set(whole.skipped) == {"multi-key at 128", "multi-key at 256"}

    class Killed(JsonLines):
        def keep(self, key, scores):
            if len(self._known) == 3:
                raise KeyboardInterrupt
            super().keep(key, scores)

    with pytest.raises(KeyboardInterrupt):
        measured(cells, lambda: tiny_llama, SPEC, Killed(file))
    with file.open("a") as torn:
        torn.write('{"key": {"checkpoint_dig')
    resumed = measured(cells, lambda: tiny_llama, SPEC, JsonLines(file))
    assert resumed.computed == whole.computed - 3
    assert resumed.scores == whole.scores


def test_a_model_of_which_every_cell_is_known_is_not_loaded(cells, tiny_llama, tmp_path):
    """Nor to find again which cells do not fit."""
    journal = JsonLines(tmp_path / "cells.jsonl")
    whole = measured(cells, lambda: tiny_llama, SPEC, journal)
    again = measured(cells, lambda: pytest.fail("the model was loaded for nothing"), SPEC, journal)
    assert (again.computed, again.scores, again.skipped) == (0, whole.scores, whole.skipped)


def test_another_checkpoint_precision_or_document_is_measured_anew(cells, tiny_llama, tmp_path):
    journal = JsonLines(tmp_path / "cells.jsonl")
    first = measured(cells, lambda: tiny_llama, SPEC, journal)
    assert measured(cells, lambda: tiny_llama, SPEC, journal, digest="d").computed == first.computed
    other = planned(SMALL, cells.lengths, replace(cells.haystack, digest="x"))
    for cell, same in zip(cells.cells, other.cells, strict=True):
        assert len({cell.protocol("fp32"), cell.protocol("bf16"), same.protocol("fp32")}) == 3
    rows = [json.loads(line) for line in journal.path.read_text().splitlines()]
    assert {row["key"]["checkpoint_digest"] for row in rows} == {"c", "d"}


def test_a_cell_is_known_to_evaluations_of_other_tasks(cells, tiny_llama, tmp_path):
    """Its key holds what it alone depends on."""
    journal = JsonLines(tmp_path / "cells.jsonl")
    fewer = planned(replace(SMALL, tasks=("needle/code",)), cells.lengths, cells.haystack)
    known = measured(fewer, lambda: tiny_llama, SPEC, journal)
    whole = measured(cells, lambda: tiny_llama, SPEC, journal)
    assert whole.computed == 2 + 2 + 0  # context and perplexity at two lengths, no needle
    assert set(known.scores) < set(whole.scores)


def test_both_forms_of_needle_in_one_text_have_the_scores_of_each(cells, tiny_llama, tmp_path, monkeypatch):
    """As many samples and depths, divided or not, for little more than what one form reads."""
    size, haystack = Size(4, 3, 4, 0, ("needle/code", "needle/prose")), cells.haystack
    model = ModelUnderTest(lambda: tiny_llama, SPEC)

    def found(lengths, names):
        plan, before = planned(size, lengths, haystack), model.read_tokens
        assert [(cell.name, cell.context_tokens) for cell in plan.cells] == names
        worker = Worker("cpu", "fp32", JsonLines(tmp_path / f"{time.monotonic()}"), lambda *_: None)
        run = PlanRun(plan, model, "c", worker).measure()
        asked = {(s.task, s.context_tokens, s.depth): (s.samples, len(s.items)) for s in run.scores}
        return run, asked, model.read_tokens - before

    _, asked, apart_read = found((256,), [("needle/code", 256), ("needle/prose", 256)])
    monkeypatch.setattr(needles, "FACT_ROOM_TOKENS", 32)
    whole, asked_whole, read = found((256,), [(NEEDLE_FORMS, 256)])
    assert asked_whole == asked and len(asked) == 2 * (5 + 4) and read < 0.7 * apart_read
    monkeypatch.setattr(grid, "BLOCK_TOKENS", 256)
    parts, *_ = found((256,), [(NEEDLE_FORMS, 256)])
    assert parts.scores == whole.scores and parts.computed > whole.computed == 1
    names = [cell.name for cell in planned(size, (128, 512), haystack).cells]
    assert sorted(names) == sorted(2 * size.tasks)  # where the shortest is too short, all are asked apart


def test_a_suite_of_which_nothing_fits_says_why(encode, tiny_llama, tmp_path):
    only = planned(Size(2, 1, 4, 0, ("multi-key",)), (128,), documents(encode))
    with pytest.raises(EvaluationError, match="multi-key: 128 tokens cannot hold it"):
        measured(only, lambda: tiny_llama, SPEC, JsonLines(tmp_path / "cells.jsonl"))
    with pytest.raises(DataError, match="give more documents"):
        planned(SMALL, (8192,), documents(encode))
