"""The gate's truth table: each condition on both sides, and what was not measured fails."""

from __future__ import annotations

import math

import pytest

from yarn_ops.evals.gate import judge
from yarn_ops.evals.intervals import wilson
from yarn_ops.recipe import Gate
from yarn_ops.records import Tree
from yarn_ops.scores import BeforeAfter, Score, Scorecard, Verdict

BEFORE = {
    "perplexity": {256: 9.3, 512: 9.1, 1024: 117.0, 2048: 271.0},
    "code": {256: 0.98, 512: 0.95, 1024: 0.0, 2048: 0.0},
}
AFTER = {
    "perplexity": {256: 9.2, 512: 8.9, 1024: 7.3, 2048: 6.8},
    "code": {256: 0.98, 512: 0.97, 1024: 0.98, 2048: 0.94},
    "depths": {256: (1.0, 0.96), 2048: (0.91, 0.97)},
}
TREE = Tree(uri="file:///scores", digest="1" * 64, files=1, size_bytes=1)
NO_GATE = Gate.unasked()


def decide(scorecard, before: dict, after: dict, **thresholds) -> Verdict:
    gate = Gate(**(NO_GATE | thresholds)) if thresholds else Gate(min_recall=0.9)
    return judge(gate, BeforeAfter(scorecard(**before), scorecard(**after)), 2048)


def changed(card: dict, task: str, length: int, value: float) -> dict:
    return card | {task: card[task] | {length: value}}


def without(card: dict, task: str, length: int) -> dict:
    return card | {task: {at: value for at, value in card[task].items() if at != length}}


def test_the_demo_passes_every_condition(scorecard) -> None:
    verdict = decide(scorecard, BEFORE, AFTER)
    assert verdict.passed, verdict.reasons
    assert [check.name for check in verdict.checks] == [
        "base uses its window",
        "recall kept",
        "share used",
        "recall at the target",
        "long gain",
        "long growth",
        "short loss",
        "short recall loss",
    ]
    assert [check.measured for check in verdict.checks] == pytest.approx(
        [0.95, 0.921, 1.0, 0.94, 271 / 6.8, 6.8 / 8.9, 9.2 / 9.3, 0.0], rel=1e-3
    )


def test_an_empty_gate_passes_anything(scorecard) -> None:
    gate = Gate(**NO_GATE)
    empty = scorecard(perplexity={})
    verdict = judge(gate, BeforeAfter(empty, empty), 2048)
    assert verdict.passed and verdict.checks == ()


@pytest.mark.parametrize(
    ("threshold", "before", "after", "reason"),
    [
        (
            {"min_recall": 0.9}, BEFORE, changed(AFTER, "code", 2048, 0.71),
            "recall at 2,048 tokens is 0.710, below 0.9",
        ),
        (
            {"min_recall_kept": 0.85}, BEFORE, changed(AFTER, "code", 2048, 0.81),
            "least of what 2,048 tokens keep of the base's recall at its 512 (0.95 before, 0.81 after, "
            "0.85 [0.79, 0.92] of it) is 0.794, below 0.85",
        ),
        (
            {"min_recall_kept": 0.85}, BEFORE,
            changed(AFTER, "code", 2048, 0.5) | {"prose": {256: 1.0, 512: 1.0, 2048: 0.81}},
            "least of what 2,048 tokens keep of the base's recall at its 512 (0.95 in code before, "
            "0.81 in prose after, 0.85 [0.79, 0.92] of it) is 0.794, below 0.85",
        ),
        (
            {"min_recall_kept": 0.85}, BEFORE, changed(AFTER, "code", 2048, 0.0),
            "least of what 2,048 tokens keep of the base's recall at its 512 (0.95 before, 0.00 after, "
            "0.00 of it) is 0.000, below 0.85",
        ),
        (
            {"min_uses_share": 0.85}, BEFORE, AFTER | {"depths": {256: (1.0, 0.9), 2048: (0.2, 0.9)}},
            "share used of 2,048 tokens (1,024 [256, 1,024] of them) is 0.500, below 0.85",
        ),
        (
            {"min_recall": 0.9}, changed(BEFORE, "code", 512, 0.02), AFTER,
            "the base recalls 0.02 of the pairs within its own 512 tokens: "
            "a model that never used its own window gains nothing from a longer one",
        ),
        (
            {"min_long_gain": 1.5}, changed(BEFORE, "perplexity", 2048, 8.5), AFTER,
            "gain at 2,048 tokens (perplexity 8.50 before, 6.80 after) is 1.250, below 1.5",
        ),
        (
            {"max_long_growth": 1.1}, BEFORE, changed(AFTER, "perplexity", 2048, 17.8),
            "growth of perplexity from 512 to 2,048 tokens (8.90 to 17.80) is 2.000, above 1.1",
        ),
        (
            {"max_short_growth": 1.05}, BEFORE, changed(AFTER, "perplexity", 256, 18.6),
            "perplexity after / before at 256 tokens is 2.000, above 1.05",
        ),
        (
            {"max_short_recall_loss": 0.1}, BEFORE, changed(AFTER, "code", 256, 0.5),
            "code recall lost at 256 tokens (0.98 before, 0.50 after) is 0.480, above 0.1",
        ),
    ],
)  # fmt: skip
def test_each_condition_fails_with_its_figures(scorecard, threshold, before, after, reason) -> None:
    verdict = decide(scorecard, before, after, **threshold)
    assert not verdict.passed
    assert verdict.reasons == reason


@pytest.mark.parametrize(
    ("threshold", "before", "after", "what"),
    [
        ({"min_recall": 0.9}, BEFORE, without(AFTER, "code", 2048), "recall at 2,048 tokens"),
        (
            {"min_recall_kept": 0.9}, BEFORE, without(AFTER, "code", 2048),
            "recall at 2,048 tokens of the result",
        ),
        ({"min_uses_share": 0.9}, BEFORE, AFTER | {"depths": {}}, "how far the result uses its window"),
        ({"min_recall": 0.9}, without(BEFORE, "code", 512), AFTER, "the base's recall at its own 512 tokens"),
        (
            {"min_long_gain": 1.5}, without(BEFORE, "perplexity", 2048), AFTER,
            "perplexity at 2,048 tokens of the base",
        ),
        (
            {"min_long_gain": 1.5}, BEFORE, without(AFTER, "perplexity", 2048),
            "perplexity at 2,048 tokens of the result",
        ),
        (
            {"max_long_growth": 1.1}, BEFORE, without(AFTER, "perplexity", 512),
            "the result's perplexity at 512 tokens",
        ),
        (
            {"max_short_growth": 1.05}, BEFORE, without(AFTER, "perplexity", 256),
            "perplexity at 256 tokens of the result",
        ),
        (
            {"max_short_growth": 1.05}, without(BEFORE, "perplexity", 512), without(AFTER, "perplexity", 512),
            "perplexity at 512 tokens of the base",
        ),
        (
            {"max_short_recall_loss": 0.1}, without(BEFORE, "code", 256), AFTER,
            "recall of code pairs at 256 tokens of the base",
        ),
        (
            {"max_short_recall_loss": 0.1}, BEFORE | {"code": {}}, AFTER | {"code": {}},
            "recall up to 512 tokens",
        ),
    ],
)  # fmt: skip
def test_what_was_not_measured_fails(scorecard, threshold, before, after, what) -> None:
    verdict = decide(scorecard, before, after, **threshold)
    assert not verdict.passed
    assert verdict.reasons.startswith(f"{what} was not measured, so ")


def test_a_value_that_is_no_number_fails(scorecard) -> None:
    after = scorecard(**AFTER)
    nan = Score.model_construct(
        task="recall/code",
        context_tokens=2048,
        depth=None,
        value=math.nan,
        low=None,
        high=None,
        samples=1,
        seed=0,
    )
    broken = Scorecard.model_construct(
        tree=None, parents=(), model_digest="0" * 64, original_context_tokens=512,
        scores=(nan, *(score for score in after.scores if score.task != "recall/code")),
    ).model_copy(update={"tree": TREE})  # fmt: skip
    gate = Gate(**(NO_GATE | {"min_recall": 0.0}))
    verdict = judge(gate, BeforeAfter(scorecard(**BEFORE), broken), 2048)
    assert (
        verdict.reasons == "recall at 2,048 tokens was not measured, so recall at the target cannot be judged"
    )


def test_the_better_template_counts_at_the_target(scorecard) -> None:
    after = changed(AFTER, "code", 2048, 0.2) | {"prose": {2048: 0.95}}
    assert decide(scorecard, BEFORE, after, min_recall=0.9).passed


def measured(original: int, pairs: int, perplexity: float, recall: dict[int, tuple[float, ...]]) -> Scorecard:
    """Perplexity alike at every length, and recall at each depth of so many pairs."""
    scores = []
    for length, parts in recall.items():
        scores.append(Score.of("perplexity/last-quarter", length, perplexity, None, 6, 0))
        for depth, shares in [(None, parts), *((at / len(parts), [one]) for at, one in enumerate(parts))]:
            asked = pairs * len(shares)
            hits = round(sum(shares) * pairs)
            interval = wilson(hits, asked)
            scores.append(Score.of("recall/code", length, hits / asked, interval, asked, 0, depth=depth))
    return Scorecard(model_digest="0" * 64, original_context_tokens=original, scores=tuple(scores))


def alike(share: float) -> tuple[float, ...]:
    return (share,) * 8


SMOLLM2 = {
    "base": measured(8192, 50, 26, {4096: alike(0.54), 8192: alike(0.47), 32768: alike(0)}),
    "text alone": measured(
        8192, 50, 23,
        {4096: alike(0.45), 8192: alike(0.42), 32768: (0, 0, 0, 0, 0.2, 0.2, 0.5, 0.4)},
    ),
    "exercises": measured(
        8192, 50, 25, {4096: alike(1), 8192: alike(1), 32768: (0.92, 0.96, 1, 1, 0.98, 1, 1, 1)}
    ),
}  # fmt: skip
BASE8K = {
    "base": measured(8192, 24, 11.7, {512: alike(0.96), 8192: alike(0.85), 32768: alike(0)}),
    "text alone": measured(
        8192, 24, 11.7, {512: alike(0.94), 8192: alike(0.92), 32768: (0.12, 0.22, 1, 1, 0.92, 0.92, 1, 1)}
    ),
    "exercises": measured(
        8192, 24, 11.7, {512: alike(0.96), 8192: alike(0.96), 32768: (0.83, 0.92, 1, 1, 1, 1, 1, 1)}
    ),
}  # fmt: skip


@pytest.mark.parametrize("base", [SMOLLM2, BASE8K], ids=["a base that recalls half", "one that recalls most"])
def test_the_defaults_know_a_model_that_uses_its_window(base: dict[str, Scorecard]) -> None:
    gate = Gate(min_long_gain=None)
    used = judge(gate, BeforeAfter(base["base"], base["exercises"]), 32768)
    assert used.passed, used.reasons
    seen = judge(gate, BeforeAfter(base["base"], base["text alone"]), 32768)
    failed = {check.name for check in seen.checks if not check.passed}
    assert "share used" in failed and failed <= {"share used", "recall kept", "short recall loss"}
