"""95 % intervals of a share, of a mean, and of the change between two models that were asked the same: item
by item, so that what makes one window harder than another cancels out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev
from typing import Literal

from yarn_ops.scores import Score

Interval = tuple[float, float]

ERROR = 0.05
"""how often an interval may miss what it is of"""
LEAST_MEAN_SAMPLES = 4
"""below that a t quantile is so wide that no interval is the honest answer"""


def normal_quantile(error: float = ERROR) -> float:
    """What a normal deviate exceeds on either side with probability `error` together."""
    return NormalDist().inv_cdf(1 - error / 2)


def wilson(successes: int, trials: int, error: float = ERROR) -> Interval:
    """Wilson's score interval of a share; `trials` at least 1. Holds near 0 and 1."""
    z = normal_quantile(error)
    share, z2 = successes / trials, z**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high


def mean_interval(values: Sequence[float], error: float = ERROR) -> Interval | None:
    """Student's interval of the mean of independent values; None for fewer than four."""
    if len(values) < LEAST_MEAN_SAMPLES:
        return None
    half = student_quantile(len(values) - 1, error) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def exponential(interval: Interval | None) -> Interval | None:
    """Of the exponential of what `interval` is of: of a perplexity, from its loss in nats."""
    return None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))


def shares_interval(values: Sequence[float], error: float = ERROR) -> Interval | None:
    """Of the mean of shares, 0..1 each: Student's; Wilson's where all are 0 or 1, and perhaps all alike."""
    if all(value in (0.0, 1.0) for value in values):
        return wilson(round(sum(values)), len(values), error)
    interval = mean_interval(values, error)
    return None if interval is None else (max(0.0, interval[0]), min(1.0, interval[1]))


def paired_share_interval(before: Sequence[float], after: Sequence[float], error: float = ERROR) -> Interval:
    """Agresti and Min's interval of the change of a share, from the same trials (1 or 0) before and after.

    Simple improved confidence intervals for comparing matched proportions, 2005: Wald's, with half a trial
    added to each of the four outcomes; trials that turned out alike tell nothing of a change.
    """
    trials = len(before) + 2
    gained = 0.5 + sum(new > old for old, new in zip(before, after, strict=True))
    lost = 0.5 + sum(new < old for old, new in zip(before, after, strict=True))
    change = (gained - lost) / trials
    half = normal_quantile(error) * math.sqrt(gained + lost - (gained - lost) ** 2 / trials) / trials
    return max(-1.0, change - half), min(1.0, change + half)


def student_quantile(freedom: int, error: float = ERROR) -> float:
    """What Student's t exceeds on either side with probability `error` together."""
    from scipy.special import stdtrit  # a tenth of a second, which `runs show` may not need

    return float(stdtrit(freedom, 1 - error / 2))


def asked_of_both(one: Score, other: Score) -> tuple[Score, Score]:
    """Two scores of losses over the windows that both were asked, where one was asked fewer since perplexity
    had exploded. Others, and those that were asked the same, are as they were."""
    fewer = min(one, other, key=lambda score: len(score.items))
    count = len(fewer.items)
    of_windows = all(score.task.startswith(("perplexity/", "loss/")) for score in (one, other))
    if not (of_windows and fewer.stopped and count and one.seed == other.seed):
        return one, other
    return _of_first(one, count, other.error), _of_first(other, count, one.error)


def _of_first(score: Score, count: int, error: float) -> Score:
    """Of the first windows alone; error: what the interval may miss, if not less."""
    if len(score.items) == count:
        return score
    items, error = score.items[:count], min(error, score.error)
    value, interval = fmean(items), mean_interval(items, error)
    if score.task.startswith("perplexity/"):
        value, interval = math.exp(value), exponential(interval)
    return Score.of(
        score.task, score.context_tokens, value, interval, count, score.seed, items=items, error=error,
        stopped=score.stopped,
    )  # fmt: skip


def loss_change_interval(before: Score, after: Score) -> Interval | None:
    """Of after less before in nats, by windows; None for few of them, or where none were kept."""
    before, after = asked_of_both(before, after)
    if not _same_items(before, after):
        return None
    return mean_interval(
        [new - old for old, new in zip(before.items, after.items, strict=True)],
        min(before.error, after.error),
    )


def change_interval(before: Score, after: Score, measure: Literal["ratio", "difference"]) -> Interval | None:
    """Of after / before or after - before, whichever score it is; None where it has to do without items."""
    if before.task.startswith("perplexity/"):  # items are nats, the score is the exponential of their mean
        interval = loss_change_interval(before, after) if measure == "ratio" else None
        return exponential(interval)
    if measure == "ratio" or not _same_items(before, after):
        return None
    error = min(before.error, after.error)
    if all(item in (0.0, 1.0) for item in before.items + after.items):
        return paired_share_interval(before.items, after.items, error)
    return mean_interval([new - old for old, new in zip(before.items, after.items, strict=True)], error)


def _same_items(before: Score, after: Score) -> bool:
    return len(before.items) == len(after.items) > 0 and before.seed == after.seed


def figure(score: Score, digits: int = 2) -> str:
    """0.85 [0.80, 0.90]; the value alone where it has no interval."""
    return f"{score.value:,.{digits}f}{bounds(score.interval, digits)}"


def bounds(interval: Interval | None, digits: int = 2) -> str:
    """ " [0.80, 0.90]", or nothing."""
    return "" if interval is None else f" [{interval[0]:,.{digits}f}, {interval[1]:,.{digits}f}]"
