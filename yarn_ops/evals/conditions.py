"""Conditions of a gate over any score: absolute or relative to the base, by figure or by interval.

Where both scores kept what they sum up, the interval of a change is that of the differences item by item.
Else it is made from those of the two scores (Newcombe 1998; Donner and Zou 2012, the method of variance
estimates recovery), as if these were independent. Scores of one text are not, so that interval is too wide
rather than too narrow.
"""

from __future__ import annotations

import math
from typing import Literal

from yarn_ops.evals.intervals import Interval, asked_of_both, change_interval, exponential
from yarn_ops.recipe import Condition
from yarn_ops.scores import Check, Score, Scorecard

Estimate = tuple[float, Interval | None]
"""a value and its 95 % interval, where it has one"""


def decide(
    condition: Condition, before: Scorecard, after: Scorecard, original_tokens: int, target_tokens: int
) -> Check:
    """The condition as decided; what was not measured, is no number or lacks a needed interval fails."""
    tokens = round(condition.length * original_tokens) if condition.length else target_tokens
    name = f"{condition.score} at {tokens:,} tokens"
    if condition.depth is not None:
        name += f", depth {condition.depth:g}"
    result, base = (_find(card, condition, tokens) for card in (after, before))
    if result is None:
        return _failed(condition, name, None, f"{name} of the result was not measured")
    if condition.measure == "result":
        return _judge(condition, name, (result.value, result.interval))
    if base is None:
        return _failed(condition, name, None, f"{name} of the base was not measured")
    if condition.measure == "ratio" and min(base.value, result.value) <= 0:
        why = f"{name}: there is no ratio of {_shown(result.value)} to {_shown(base.value)}"
        return _failed(condition, name, None, why)
    name += " / base's" if condition.measure == "ratio" else " less base's"
    return _judge(condition, name, compared(result, base, condition.measure))


def compared(result: Score, base: Score, measure: Literal["ratio", "difference"]) -> Estimate:
    """result / base or result - base, with its 95 % interval where there is one; of perplexities, over the
    windows that both were asked. Ratio: both above 0."""
    result, base = asked_of_both(result, base)
    if paired := change_interval(base, result, measure):
        value = result.value / base.value if measure == "ratio" else result.value - base.value
        return value, paired
    if measure == "ratio":
        value, interval = _difference(_log(result), _log(base))
        return math.exp(value), exponential(interval)
    return _difference((result.value, result.interval), (base.value, base.interval))


def _difference(one: Estimate, other: Estimate) -> Estimate:
    value = one[0] - other[0]
    if one[1] is None or other[1] is None:
        return value, None
    low = value - math.hypot(one[0] - one[1][0], other[1][1] - other[0])
    high = value + math.hypot(one[1][1] - one[0], other[0] - other[1][0])
    return value, (low, high)


def _log(score: Score) -> Estimate:
    """Of a score above 0; a bound at or below 0 leaves no interval."""
    if score.interval is None or score.interval[0] <= 0:
        return math.log(score.value), None
    return math.log(score.value), (math.log(score.interval[0]), math.log(score.interval[1]))


def _judge(condition: Condition, name: str, estimate: Estimate) -> Check:
    value, interval = estimate
    above, threshold = condition.at_least is not None, _threshold(condition)
    shown = _shown(value)
    if interval is not None:
        shown += f" [{_shown(interval[0])}, {_shown(interval[1])}]"
    judged: float | None = value
    if condition.evidence != "value":
        worst, best = (interval if above else interval[::-1]) if interval else (None, None)
        judged = worst if condition.evidence == "sure" else best
    if judged is None or not math.isfinite(judged) or not math.isfinite(value):
        why = "is no number" if judged is not None else f"has no interval, and {condition.evidence} needs one"
        return _failed(condition, name, value, f"{name} is {shown}, which {why}")
    passed = judged >= threshold if above else judged <= threshold
    wanted = f"{'at least' if above else 'at most'} {threshold:,.12g}"
    sure = {"value": "", "sure": "surely ", "unrefuted": "possibly "}[condition.evidence]
    reason = f"{name} is {shown}, {'' if passed else 'not '}{sure}{wanted}"
    return Check(name=name, measured=value, threshold=threshold, passed=passed, reason=reason)


def _shown(value: float) -> str:
    """0.9876, 24,576: tokens as well as shares."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _threshold(condition: Condition) -> float:
    threshold = condition.at_most if condition.at_least is None else condition.at_least
    assert threshold is not None
    return threshold


def _find(card: Scorecard, condition: Condition, tokens: int) -> Score | None:
    if condition.depth is None:
        return card.score(condition.score, tokens)
    found = card.by_depth(condition.score, tokens)
    return next((s for s in found if math.isclose(s.depth or 0.0, condition.depth, abs_tol=1e-3)), None)


def _failed(condition: Condition, name: str, value: float | None, why: str) -> Check:
    measured = value if value is not None and math.isfinite(value) else None
    reason = f"{why}, so the condition cannot be judged"
    return Check(name=name, measured=measured, threshold=_threshold(condition), passed=False, reason=reason)
