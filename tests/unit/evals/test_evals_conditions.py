"""Conditions over any score: absolute, relative, by interval; closed where they cannot be judged."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from yarn_ops.evals.conditions import decide
from yarn_ops.evals.gate import judge
from yarn_ops.evals.intervals import mean_interval, wilson
from yarn_ops.recipe import Condition, Gate
from yarn_ops.scores import BeforeAfter, Score, Scorecard

OPEN = Gate.model_validate(Gate.unasked())


def share(hits: int, asked: int, task: str = "recall/code", depth: float | None = None) -> Score:
    low, high = wilson(hits, asked)
    return Score(
        task=task, context_tokens=2048, depth=depth, value=hits / asked, low=low, high=high, samples=asked,
        seed=0,
    )  # fmt: skip


def card(*scores: Score) -> Scorecard:
    return Scorecard(model_digest="0" * 64, original_context_tokens=512, scores=scores)


def check(condition: Condition, before: Scorecard, after: Scorecard):
    return decide(condition, before, after, 512, 2048)


@pytest.mark.parametrize(
    ("evidence", "at_least", "passed"),
    [
        ("value", 0.9, True), ("value", 0.91, False),
        ("sure", 0.82, True), ("sure", 0.83, False),
        ("unrefuted", 0.94, True), ("unrefuted", 0.95, False),
    ],
)  # fmt: skip
def test_absolute_by_figure_and_by_interval(evidence, at_least, passed):
    """90 of 100: Wilson's interval is .826 to .945."""
    condition = Condition(score="recall/code", at_least=at_least, evidence=evidence)
    found = check(condition, card(), card(share(90, 100)))
    assert found.passed is passed and found.measured == 0.9
    assert "0.9 [0.8256, 0.9448]" in found.reason


def test_relative_to_the_base():
    before, after = card(share(50, 100)), card(share(40, 100))
    ratio = Condition(score="recall/code", measure="ratio", at_least=0.8)
    lost = Condition(score="recall/code", measure="difference", at_least=-0.05, evidence="unrefuted")
    assert check(ratio, before, after).measured == pytest.approx(0.8)
    assert check(ratio, before, after).passed
    assert check(lost, before, after).passed  # -.1 [-.23, .04]
    assert not check(lost, card(share(500, 1000)), card(share(400, 1000))).passed


def test_tokens_are_told_whole():
    """2.458e+04 is no number of tokens that a person reads."""
    uses = Score(
        task="capacity/uses", context_tokens=32768, value=20480, low=16384, high=24576, samples=9, seed=0
    )
    condition = Condition(score="capacity/uses", at_least=24576)
    found = decide(condition, card(uses), card(uses), 8192, 32768)
    assert found.reason == ("capacity/uses at 32,768 tokens is 20,480 [16,384, 24,576], not at least 24,576")


def test_a_depth_and_a_length_of_ones_own():
    after = card(share(9, 10, depth=0.125), share(1, 10))
    farthest = Condition(score="recall/code", depth=0.125, length=4, at_least=0.5)
    assert check(farthest, card(), after).passed
    assert not check(farthest.model_copy(update={"depth": 0.375}), card(), after).passed


@pytest.mark.parametrize(
    ("condition", "before", "after", "why"),
    [
        ({"score": "recall/prose"}, card(), card(share(9, 10)), "of the result was not measured"),
        ({"score": "recall/code", "length": 1}, card(), card(share(9, 10)), "512 tokens of the result"),
        ({"score": "recall/code", "measure": "ratio"}, card(), card(share(9, 10)), "of the base was not"),
        ({"score": "recall/code", "measure": "ratio"}, card(share(0, 10)), card(share(9, 10)), "no ratio"),
        (
            {"score": "x", "evidence": "sure"},
            card(),
            card(Score(task="x", context_tokens=2048, value=1, samples=1, seed=0)),
            "no interval",
        ),
    ],
)
def test_what_cannot_be_judged_fails(condition, before, after, why):
    found = check(Condition(at_least=0, **condition), before, after)
    assert not found.passed and why in found.reason and "cannot be judged" in found.reason


def test_a_condition_has_one_bound():
    for bounds in ({}, {"at_least": 1, "at_most": 2}):
        with pytest.raises(ValidationError, match="at_least or at_most"):
            Condition(score="recall/code", **bounds)


def test_the_gate_asks_what_a_model_uses():
    parts = [share(48, 48, depth=(part + 0.5) / 4) for part in range(4)]
    parts[0] = share(5, 48, depth=0.125)
    shorter = [score.model_copy(update={"context_tokens": 512}) for score in (share(96, 96), *parts[1:])]
    after = card(*shorter, share(149, 192), *parts)
    uses = Condition(score="capacity/uses", at_least=1536)
    for at_least, passed in ((1536, True), (2048, False)):
        gate = OPEN.model_copy(update={"conditions": (uses.model_copy(update={"at_least": at_least}),)})
        verdict = judge(gate, BeforeAfter(after, after), 2048)
        assert verdict.passed is passed, verdict.reasons


def test_two_runs_of_one_model_rarely_fail_the_gate():
    """Not worse than the base, unrefuted: recall and perplexity of the same model, measured twice."""
    rng = np.random.default_rng(0)
    conditions = (
        Condition(score="recall/code", measure="difference", at_least=0, evidence="unrefuted"),
        Condition(score="perplexity", measure="ratio", at_most=1, evidence="unrefuted"),
    )
    gate = OPEN.model_copy(update={"conditions": conditions})

    def run(truth: float) -> Scorecard:
        losses = rng.normal(2.2, 0.4, 16).tolist()
        low, high = mean_interval(losses)
        ppl = {
            "task": "perplexity",
            "value": np.exp(np.mean(losses)),
            "low": np.exp(low),
            "high": np.exp(high),
        }
        return card(
            share(rng.binomial(96, truth), 96),
            Score(context_tokens=2048, samples=16, seed=0, **ppl),
        )

    trials, alarms = 600, 0
    for trial in range(trials):
        truth = (0.5, 0.9, 0.97)[trial % 3]
        verdict = judge(gate, BeforeAfter(run(truth), run(truth)), 2048)
        alarms += not verdict.passed
    assert alarms / trials <= 0.05


def pairs(before: list[float], after: list[float], task: str) -> tuple[Scorecard, Scorecard]:
    """Two models' items as their scorecards."""

    def one(items: list[float]) -> Scorecard:
        mean = float(np.mean(items))
        value = float(np.exp(mean)) if task.startswith("perplexity/") else mean
        low, high = wilson(round(sum(items)), len(items)) if set(items) <= {0.0, 1.0} else (value, value)
        score = Score(
            task=task, context_tokens=2048, value=value, low=low, high=high, samples=len(items), seed=0,
            items=tuple(items),
        )  # fmt: skip
        return card(score)

    return one(before), one(after)


def test_the_same_items_make_a_narrow_interval():
    """10 of 200 lost and none won: surely worse, where two independent shares could still be equal."""
    before, after = pairs([1.0] * 190 + [0.0] * 10, [1.0] * 180 + [0.0] * 20, "needle/code")
    condition = Condition(score="needle/code", measure="difference", at_least=-0.01, evidence="unrefuted")
    assert not check(condition, before, after).passed
    alone = [card(one.scores[0].model_copy(update={"items": ()})) for one in (before, after)]
    assert check(condition, *alone).passed
    other_seed = after.scores[0].model_copy(update={"seed": 1})
    assert check(condition, before, card(other_seed)).passed


def test_a_ratio_of_perplexities_is_judged_window_by_window():
    """Windows between 1 and 4 nats, each a little worse by the same amount: sure of it all the same."""
    losses = np.linspace(1, 4, 12)
    noise = 0.001 * np.sin(np.arange(12))
    before, after = pairs(losses.tolist(), (losses + 0.06 + noise).tolist(), "perplexity/last-quarter")
    condition = Condition(
        score="perplexity/last-quarter", measure="ratio", at_most=1.05, evidence="unrefuted"
    )
    found = check(condition, before, after)
    assert not found.passed and found.measured == pytest.approx(np.exp(0.06), rel=1e-3)
