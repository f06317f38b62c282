"""95 % intervals of a change between two models that were asked the same: item by item, so that what makes
one window harder than another cancels out."""

from __future__ import annotations

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


def _same_items(before: Score, after: Score) -> bool:
    return len(before.items) == len(after.items) > 0 and before.seed == after.seed
