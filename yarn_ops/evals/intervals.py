"""95 % intervals of a share, of a mean, and of the change of either over the same items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

Z95 = NormalDist().inv_cdf(0.975)
LEAST_MEAN_SAMPLES = 4
"""below that a t quantile is so wide (and the series below so wrong) that no interval is the honest answer"""


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a share; `trials` at least 1. Holds near 0 and 1."""
    share, z2 = successes / trials, Z95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's interval of the mean of independent values; None for fewer than four."""
    if len(values) < LEAST_MEAN_SAMPLES:
        return None
    half = student_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def shares_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Of the mean of shares, 0..1 each: Student's; Wilson's where all are 0 or 1, and perhaps all alike."""
    if all(value in (0.0, 1.0) for value in values):
        return wilson(round(sum(values)), len(values))
    interval = mean_interval(values)
    return None if interval is None else (max(0.0, interval[0]), min(1.0, interval[1]))


def paired_share_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Agresti and Min's interval of the change of a share, from the same trials (1 or 0) before and after.

    Simple improved confidence intervals for comparing matched proportions, 2005: Wald's, with half a trial
    added to each of the four outcomes; trials that turned out alike tell nothing of a change.
    """
    trials = len(before) + 2
    gained = 0.5 + sum(new > old for old, new in zip(before, after, strict=True))
    lost = 0.5 + sum(new < old for old, new in zip(before, after, strict=True))
    change = (gained - lost) / trials
    half = Z95 * math.sqrt(gained + lost - (gained - lost) ** 2 / trials) / trials
    return change - half, change + half


def student_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t, within 0.2 % from 3 degrees of freedom on.

    Abramowitz and Stegun, 26.7.5: a series in 1/freedom around the normal quantile.
    """
    x = Z95
    terms = (
        x,
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))
