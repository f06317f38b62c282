"""95 % intervals of a change between two models that were asked the same: item by item, so that what makes
one window harder than another cancels out."""

from __future__ import annotations

import math
from typing import Literal

from yarn_ops.evals.intervals import mean_interval, paired_share_interval
from yarn_ops.records import Score

Interval = tuple[float, float]


def loss_change_interval(before: Score, after: Score) -> Interval | None:
    """Of after less before in nats, by windows; None for few of them, or where none were kept."""
    if not _same_items(before, after):
        return None
    return mean_interval([new - old for old, new in zip(before.items, after.items, strict=True)])


def recall_change_interval(before: Score, after: Score) -> Interval | None:
    """Of after less before, by pairs; None where none were kept."""
    return paired_share_interval(before.items, after.items) if _same_items(before, after) else None


def change_interval(before: Score, after: Score, measure: Literal["ratio", "difference"]) -> Interval | None:
    """Of after / before or after - before, whichever score it is; None where it has to do without items."""
    if not _same_items(before, after):
        return None
    if before.task.startswith("perplexity/"):  # items are nats, the score is the exponential of their mean
        interval = loss_change_interval(before, after) if measure == "ratio" else None
        return None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))
    if measure == "ratio":
        return None
    if all(item in (0.0, 1.0) for item in before.items + after.items):
        return recall_change_interval(before, after)
    return mean_interval([new - old for old, new in zip(before.items, after.items, strict=True)])


def _same_items(before: Score, after: Score) -> bool:
    return len(before.items) == len(after.items) > 0 and before.seed == after.seed
