"""Conditions of a gate over any score: absolute or relative to the base, by figure or by interval.

Where both scores kept what they sum up, the interval of a change is that of the differences item by item.
Else it is made from those of the two scores (Newcombe 1998; Donner and Zou 2012, the method of variance
estimates recovery), as if these were independent. Scores of one text are not, so that interval is too wide
rather than too narrow.
"""

from __future__ import annotations

import math
from typing import Literal

from yarn_ops.evals.paired import change_interval
from yarn_ops.recipe import Condition
from yarn_ops.records import Check, Score, Scorecard

Bounds = tuple[float, float | None, float | None]
"""value, low, high; None: no interval"""


def decide(
    condition: Condition, before: Scorecard, after: Scorecard, original_tokens: int, target_tokens: int
) -> Check:
    """The condition as decided; what was not measured, is no number or lacks a needed interval fails."""
    tokens = round(condition.length * original_tokens) if condition.length else target_tokens
    name = f"{condition.score} at {tokens} tokens"
    if condition.depth is not None:
        name += f", depth {condition.depth:g}"
    result = _find(after, condition, tokens)
    base = _find(before, condition, tokens)
    if result is None:
        return _failed(condition, name, None, f"{name} of the result was not measured")
    if condition.measure == "result":
        bounds: Bounds = result.value, result.low, result.high
    elif base is None:
        return _failed(condition, name, None, f"{name} of the base was not measured")
    elif condition.measure == "ratio" and min(base.value, result.value) <= 0:
        return _failed(
            condition, name, None, f"{name}: there is no ratio of {result.value:g} to {base.value:g}"
        )
    else:
        bounds = compared(result, base, condition.measure)
        name += " / base's" if condition.measure == "ratio" else " less base's"
    return _judge(condition, name, bounds)


def compared(result: Score, base: Score, measure: Literal["ratio", "difference"]) -> Bounds:
    """result / base or result - base, with its 95 % interval where there is one. Ratio: both above 0."""
    if paired := change_interval(base, result, measure):
        value = result.value / base.value if measure == "ratio" else result.value - base.value
        return value, *paired
    if measure == "ratio":
        value, low, high = _difference(_log(result), _log(base))
        return (
            math.exp(value),
            None if low is None else math.exp(low),
            None if high is None else math.exp(high),
        )
    return _difference((result.value, result.low, result.high), (base.value, base.low, base.high))


def _difference(one: Bounds, other: Bounds) -> Bounds:
    value = one[0] - other[0]
    if one[1] is None or one[2] is None or other[1] is None or other[2] is None:
        return value, None, None
    low = value - math.hypot(one[0] - one[1], other[2] - other[0])
    high = value + math.hypot(one[2] - one[0], other[0] - other[1])
    return value, low, high


def _log(score: Score) -> Bounds:
    """Of a score above 0; a bound at or below 0 leaves no interval."""
    if score.low is None or score.high is None or score.low <= 0:
        return math.log(score.value), None, None
    return math.log(score.value), math.log(score.low), math.log(score.high)


def _judge(condition: Condition, name: str, bounds: Bounds) -> Check:
    value, low, high = bounds
    threshold = condition.at_least if condition.at_least is not None else condition.at_most
    assert threshold is not None
    shown = f"{value:.4g}" if low is None or high is None else f"{value:.4g} [{low:.4g}, {high:.4g}]"
    if condition.evidence == "value":
        judged: float | None = value
    else:
        worst, best = (low, high) if condition.at_least is not None else (high, low)
        judged = worst if condition.evidence == "sure" else best
    if judged is None or not math.isfinite(judged) or not math.isfinite(value):
        why = "is no number" if judged is not None else f"has no interval, and {condition.evidence} needs one"
        return _failed(condition, name, value, f"{name} is {shown}, which {why}")
    above = condition.at_least is not None
    passed = judged >= threshold if above else judged <= threshold
    wanted = f"{'at least' if above else 'at most'} {threshold:g}"
    sure = {"value": "", "sure": "surely ", "unrefuted": "possibly "}[condition.evidence]
    reason = f"{name} is {shown}, {'' if passed else 'not '}{sure}{wanted}"
    return Check(name=name, measured=value, threshold=threshold, passed=passed, reason=reason)


def _find(card: Scorecard, condition: Condition, tokens: int) -> Score | None:
    for score in card.scores:
        if (score.task, score.context_tokens) == (condition.score, tokens) and _same(score.depth, condition):
            return score
    return None


def _same(depth: float | None, condition: Condition) -> bool:
    if depth is None or condition.depth is None:
        return depth is condition.depth
    return math.isclose(depth, condition.depth, abs_tol=1e-3)


def _failed(condition: Condition, name: str, value: float | None, why: str) -> Check:
    threshold = condition.at_least if condition.at_least is not None else condition.at_most
    assert threshold is not None
    measured = value if value is not None and math.isfinite(value) else None
    reason = f"{why}, so the condition cannot be judged"
    return Check(name=name, measured=measured, threshold=threshold, passed=False, reason=reason)
