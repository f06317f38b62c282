"""A perplexity that has exploded is asked no further: intervals cover whenever it stops, and what is compared
is compared window by window."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from suite_parts import SPEC, documents
from transformers import MistralConfig, MistralForCausalLM

from yarn_ops.data.haystack import Haystack, Ids
from yarn_ops.errors import DataError
from yarn_ops.evals import forward
from yarn_ops.evals.cells import ModelUnderTest, Size
from yarn_ops.evals.conditions import compared
from yarn_ops.evals.gate import judge
from yarn_ops.evals.intervals import asked_of_both, loss_change_interval
from yarn_ops.evals.journal import JsonLines
from yarn_ops.evals.names import (
    BY_POSITION,
    FAR_TEXT,
    GAIN,
    LAST_QUARTER,
    RISE,
    SAME_TARGETS,
    SINGLE_PASS,
)
from yarn_ops.evals.plan import CellPlan, suite_cells
from yarn_ops.evals.reach import reach_of
from yarn_ops.evals.run import Measured, PlanRun, Worker
from yarn_ops.evals.scoring import mean_score
from yarn_ops.evals.sequential import EXPLODED, WindowLooks, stopped_early
from yarn_ops.evals.tasks import perplexity
from yarn_ops.recipe import Gate
from yarn_ops.scores import BeforeAfter, Score, Scorecard

LOOKS = WindowLooks.at(32, 1)
NOT_AT_ALL = (0.0, EXPLODED)
RISES = (*NOT_AT_ALL, 0.9, 1.1, 1.4, 3.0)
"""nats"""
RUNS = 300


def asked_until_decided(long: np.ndarray, short: np.ndarray, looks: WindowLooks) -> Score:
    """The last quarter's score of a cell whose windows lose so many nats, after more and less context."""
    found = [(mean_score(LAST_QUARTER, 256, short.tolist(), 0),)]
    start = 0
    for end in looks.windows:
        found.append((mean_score(LAST_QUARTER, 1024, long[start:end].tolist(), 0),))
        if perplexity.exploded(looks, 1024, found):
            break
        start = end
    return perplexity.joined(looks, 1024, 1024, found)[0]


def drawn(rng: np.random.Generator, rise: float, skewed: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses of 32 windows after more and less context, and a result's after more: what makes a window hard
    does so for all three."""
    hard = rng.normal(2.5, 0.3, 32)
    noise = (rng.gamma(2.0, 0.2, 32) - 0.4) if skewed else rng.normal(0, 0.3, 32)
    return hard + rise + noise, hard + rng.normal(0, 0.1, 32), hard + rng.normal(0, 0.05, 32)


def test_looks_double_in_whole_groups_and_leave_worth_asking() -> None:
    assert WindowLooks.at(32, 1).windows == (8, 16, 32) and WindowLooks.at(16, 1).windows == (8, 16)
    assert WindowLooks.at(32, 3).windows == (9, 18, 32) and WindowLooks.at(32, 7).windows == (14, 32)
    assert WindowLooks.at(12, 1).windows == (8, 12) and WindowLooks.at(32, 15).windows == (15, 32)
    for few in (WindowLooks.at(11, 1), WindowLooks.at(12, 15)):
        assert len(few.windows) == 1 and few.least == 1
    assert [LOOKS.error(windows) for windows in LOOKS.windows] == [0.0005, 0.0005, 0.05]
    assert LOOKS.why_enough([3.0, 3.5] * 4) and not LOOKS.why_enough([3.0, 0.5] * 4)
    assert not LOOKS.why_enough([0.3, 0.31] * 8) and not LOOKS.why_enough([3.0, 3.5] * 16)


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("rise", RISES)
def test_intervals_cover_whenever_it_stops(rise: float, skewed: bool) -> None:
    """Of perplexity, and of its change, window by window. A length that is not exploded is asked to the end,
    and its interval is that of all windows asked at once."""
    rng, covered, changes, stopped = np.random.default_rng(0), 0, 0, 0
    bare, bare_changes = 0, 0
    for _ in range(RUNS):
        long, short, result = drawn(rng, rise, skewed)
        score = asked_until_decided(long, short, LOOKS)
        after = mean_score(LAST_QUARTER, 1024, result.tolist(), 0)
        low, high = loss_change_interval(score, after) or (math.nan, math.nan)
        whole = mean_score(LAST_QUARTER, 1024, long.tolist(), 0)
        whole_low, whole_high = loss_change_interval(whole, after) or (math.nan, math.nan)
        covered += math.log(score.bounds[0]) <= 2.5 + rise <= math.log(score.bounds[1])
        changes += low <= -rise <= high
        bare += whole.bounds[0] <= 2.5 + rise <= whole.bounds[1]
        bare_changes += whole_low <= -rise <= whole_high
        stopped += bool(score.stopped)
        if not score.stopped:
            assert np.log(score.bounds) == pytest.approx(whole.bounds, rel=1e-12)
    assert covered >= min(bare, 0.95 * RUNS) - 3 * math.sqrt(0.0475 * RUNS)
    assert changes >= min(bare_changes, 0.95 * RUNS) - 3 * math.sqrt(0.0475 * RUNS)
    if rise in NOT_AT_ALL:
        assert stopped <= 2
    if rise >= 2:
        assert stopped == RUNS


class Exploding(ModelUnderTest):
    """Loses more the farther it reads beyond `sees` tokens; which windows are hard follows from their text.
    Counts the windows that are read."""

    def __init__(self, sees: float) -> None:
        super().__init__(partial(pytest.fail, "loaded"), None)
        self.sees, self.read = sees, 0

    def token_losses(self, windows: Ids, scored_tokens: int) -> np.ndarray:
        self.read += len(windows)
        places = np.arange(1, windows.shape[1])
        beyond = np.clip(places / self.sees - 1, 0, 1) * 4
        losses = 2 + windows[:, 1:] % 7 / 7 + beyond * (1 + windows[:, -1:] % 3 / 20)
        return losses[:, -scored_tokens:].astype(np.float32)

    def losses_and_foreign(
        self, windows: Ids, scored_tokens: int, near_tokens: int, targets: int
    ) -> tuple[np.ndarray, np.ndarray]:
        own = self.token_losses(windows, scored_tokens)
        return own, self.token_losses(forward.foreign_texts(windows, near_tokens), targets) + 0.5


@pytest.fixture
def small_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each window is a forward."""
    monkeypatch.setattr(forward, "BATCH_TOKENS", 1)
    monkeypatch.setattr(forward, "GPU_BATCH_TOKENS", 1)


@pytest.fixture
def haystack(encode: Any) -> Haystack:
    words = documents(encode, tokens=40_000)
    return replace(words, documents=tuple(ids % 97 for ids in words.documents))


LENGTHS = (128, 256, 512)


def run_of(haystack: Haystack, model: ModelUnderTest, journal: JsonLines, windows: int = 16) -> PlanRun:
    size = Size(2, 1, windows, 0, ("context", "perplexity"))
    cells = suite_cells(size, LENGTHS, haystack, 0)
    worker = Worker("cpu", "fp32", journal, lambda *_: None)
    return PlanRun(CellPlan(tuple(cells), LENGTHS, 0, haystack), model, "c", worker)


def by_place(found: Measured) -> dict[tuple[str, int], Score]:
    return {(score.task, score.context_tokens): score for score in found.scores}


@pytest.mark.usefixtures("small_forwards")
def test_an_exploded_perplexity_ends_growing_context_there_too(haystack: Haystack, tmp_path: Path) -> None:
    """Eight of its 16 windows are read at the lengths beyond, and none that only growing context reads."""
    base, result = Exploding(128), Exploding(10_000)
    journal = JsonLines(tmp_path / "base")
    before_run = run_of(haystack, base, journal).measure()
    after_run = run_of(haystack, result, JsonLines(tmp_path / "result")).measure()
    before, after = by_place(before_run), by_place(after_run)
    within = [key for key in before if key[1] == 128 and key[0] != BY_POSITION]
    assert within and all(before[key] == after[key] for key in within)
    for length, windows in ((128, 16), (256, 8), (512, 8)):
        for task in (LAST_QUARTER, SINGLE_PASS):
            assert (before[task, length].samples, after[task, length].samples) == (windows, 16)
            assert bool(before[task, length].stopped) == (windows == 8) and not after[task, length].stopped
    for task, length in ((SAME_TARGETS, 256), (GAIN, 256), (RISE, 512), (FAR_TEXT, 512)):
        assert (before[task, length].samples, after[task, length].samples) == (8, 32)
        assert before[task, length].error == 0.001 and after[task, length].error == 0.05
    whole = 16 * (4 + 2 + 1) + 16 * 3 + 32  # perplexity by length, growing context's own, foreign text
    assert result.read == whole
    assert base.read == 16 * 4 + 8 * (2 + 1) + 16 + 8
    told = stopped_early(before_run.scores)
    assert [line.partition(" tokens")[0] for line in told] == [f"{LAST_QUARTER} at {k}" for k in (256, 512)]
    assert all(line.endswith("after 8 of 16 windows: it has exploded") for line in told)
    card = Scorecard(parents=(), model_digest="c", original_context_tokens=128, scores=before_run.scores)
    assert reach_of(card).sees is not None and reach_of(card).sees.high == 128
    again = run_of(haystack, Exploding(128), journal).measure()
    assert (again.scores, again.computed) == (before_run.scores, 0)


@pytest.mark.usefixtures("small_forwards")
def test_differences_of_lengths_are_of_the_windows_that_both_have(haystack: Haystack, tmp_path: Path) -> None:
    stopped = by_place(run_of(haystack, Exploding(128), JsonLines(tmp_path / "some")).measure())
    items = [np.array(stopped[SAME_TARGETS, length].items) for length in LENGTHS]
    assert [len(some) for some in items] == [32, 8, 8]
    for length, some in zip(LENGTHS[1:], items[1:], strict=True):
        assert stopped[RISE, length].value == pytest.approx(np.mean(some - items[0][:8]))
        assert stopped[GAIN, length].value == pytest.approx(np.mean(items[0][:8] - some))


def card(original: int, **items: list[float]) -> Scorecard:
    """Perplexities by length, of windows that lose so many nats: at128=[…]."""
    scores = []
    for name, some in items.items():
        stopped, length = "after 8 of 20" if len(some) == 8 else "", int(name.removeprefix("at"))
        of = perplexity._perplexity(LAST_QUARTER, length, [1] * len(some), some, 0, stopped=stopped)
        scores.append(of)
    return Scorecard(parents=(), model_digest="", original_context_tokens=original, scores=tuple(scores))


def test_gates_and_changes_compare_windows_that_both_were_asked() -> None:
    """The base's eight windows are the hard ones: beside all of the result's its gain would be 40 % more."""
    hard, all_windows = [3.0, 3.2] * 4, [3.0, 3.2] * 4 + [2.6, 2.7] * 12
    before = card(128, at128=all_windows, at512=[nats + 2.0 for nats in hard])
    after = card(128, at128=all_windows, at512=[nats + 0.1 for nats in all_windows])
    nothing = {name: None for name in Gate.model_fields if name.startswith(("m",))}
    gate = Gate(**{**nothing, "min_long_gain": 1.5, "max_long_growth": 1.2, "max_short_growth": 1.0})
    checks = {check.name: check.measured for check in judge(gate, BeforeAfter(before, after), 512).checks}
    assert checks["long gain"] == pytest.approx(math.exp(1.9))
    assert checks["long growth"] == pytest.approx(math.exp(0.1)) and checks["short loss"] == 1
    base, result = (one.by_length(LAST_QUARTER)[-1] for one in (before, after))
    value, interval = compared(result, base, "ratio")
    assert value == pytest.approx(math.exp(-1.9)) and interval == pytest.approx((value, value))
    less = base.value - math.exp(np.mean(hard) + 0.1)
    assert compared(base, result, "difference")[0] == pytest.approx(less)
    assert asked_of_both(after.scores[0], after.scores[1]) == (after.scores[0], after.scores[1])
    others = base.model_copy(update={"stopped": ""})  # fewer windows for another reason may be other windows
    assert asked_of_both(others, result) == (others, result)


def test_groups_have_the_losses_of_all_windows_to_the_last_bit(
    tiny_llama: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where forwards hold several windows, groups end where forwards do, on a CPU and on a GPU."""
    monkeypatch.setattr(forward, "BATCH_TOKENS", 130)
    monkeypatch.setattr(forward, "GPU_BATCH_TOKENS", 200)
    windows = np.random.default_rng(0).integers(0, 97, (24, 65))
    model = ModelUnderTest(lambda: tiny_llama, SPEC)
    for length, groups in ((64, (12, 24)), (32, (9, 24))):  # 2 and 3 at once; 3 and 6, of two a window
        shorter = perplexity.cell(windows, length // 2, 0, "t", shortest=16)
        cell = perplexity.cell(windows, length, 0, "t", shortest=16, beside=shorter)
        assert shorter.window_looks.windows == (24,) and not shorter.looks and cell.others == shorter.blocks
        assert cell.window_looks.windows == groups
        found = [block.measure(model) for block in cell.blocks]
        whole = perplexity.window_scores(model, windows, length, 0, targets=12)
        for task in (LAST_QUARTER, SINGLE_PASS, SAME_TARGETS):
            items = [item for block in found for one in block if one.task == task for item in one.items]
            assert items == [item for one in whole if one.task == task for item in one.items]
        (last, *_) = cell.join(found)
        assert last == whole[0]
        parts = [one.value for one in cell.join(found) if one.task == BY_POSITION]
        assert parts == [one.value for one in whole if one.task == BY_POSITION]
        assert cell.join([whole])[0] == last


@pytest.mark.parametrize("count", [2, 5])
def test_foreign_text_is_read_behind_what_perplexity_has_read(
    tiny_llama: Any, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """With the losses of whole foreign texts, and without moving perplexity's by a bit; batches of two."""
    monkeypatch.setattr(forward, "BATCH_TOKENS", 2 * 65)
    windows = np.random.default_rng(0).integers(0, 97, (count, 65))
    model = ModelUnderTest(lambda: tiny_llama, SPEC)
    own, foreign = model.losses_and_foreign(windows, 64, 16, 12)
    np.testing.assert_array_equal(own, model.token_losses(windows, 64))
    texts = windows.copy()
    texts[:, :48] = windows[np.arange(count) - 1, :48]
    np.testing.assert_allclose(foreign, model.token_losses(texts, 12), rtol=1e-4, atol=1e-5)
    assert np.abs(foreign - own[:, -12:]).max() > 0.1
    tokens = [0]

    def counted(module: Any, inputs: Any, options: Any) -> None:
        tokens[0] += options["input_ids"].numel()

    hook = tiny_llama.base_model.register_forward_pre_hook(counted, with_kwargs=True)
    model.losses_and_foreign(windows, 64, 16, 12)
    hook.remove()
    assert tokens == [count * (64 + 16)]


def test_foreign_text_is_read_whole_where_texts_share_nothing() -> None:
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, initializer_range=0.2, sliding_window=16,
        )
    ).eval()  # fmt: skip
    windows = np.random.default_rng(0).integers(0, 97, (3, 65))
    under_test = ModelUnderTest(lambda: model, SPEC)
    own, foreign = under_test.losses_and_foreign(windows, 64, 16, 12)
    np.testing.assert_array_equal(own, under_test.token_losses(windows, 64))
    np.testing.assert_array_equal(foreign, under_test.token_losses(forward.foreign_texts(windows, 16), 12))


class Refusing(Exploding):
    """As a server that refuses windows of `length` tokens after so many."""

    def __init__(self, sees: float, length: int, after: int) -> None:
        super().__init__(sees)
        self.length, self.left = length, after

    def token_losses(self, windows: Ids, scored_tokens: int) -> np.ndarray:
        if windows.shape[1] == self.length + 1:
            self.left -= len(windows)
            if self.left < 0:
                raise DataError("refused")
        return super().token_losses(windows, scored_tokens)


@pytest.mark.usefixtures("small_forwards")
@pytest.mark.parametrize("after", [0, 16])
def test_a_group_that_is_refused_leaves_out_its_length_alone(
    haystack: Haystack, tmp_path: Path, after: int
) -> None:
    """Not its other groups, whose windows would be taken for the first ones; nor is any of them asked."""
    whole = by_place(run_of(haystack, Exploding(10_000), JsonLines(tmp_path / "all")).measure())
    model = Refusing(10_000, 256, after)
    found = run_of(haystack, model, JsonLines(tmp_path / "some")).measure()
    assert found.skipped == {"perplexity at 256": "refused", "context at 512": "refused"}
    assert by_place(found) == {
        place: score
        for place, score in whole.items()
        if not place[0].startswith("loss/") and place not in ((LAST_QUARTER, 256), (SINGLE_PASS, 256))
    }
    assert model.read == 16 * (4 + 1 + 1) + after
