"""Intervals cover at the stated rate."""

from __future__ import annotations

import numpy as np
import pytest

from yarn_ops.evals.intervals import (
    mean_interval,
    paired_share_interval,
    shares_interval,
    student_quantile,
    wilson,
)

RUNS = 4000


@pytest.mark.parametrize("trials", [24, 96])
def test_wilson_covers(trials: int) -> None:
    """Coverage of one share swings with the grid of counts, so shares are drawn too."""
    rng = np.random.default_rng(0)
    shares = rng.uniform(0.02, 0.98, RUNS)
    intervals = [wilson(successes, trials) for successes in rng.binomial(trials, shares).tolist()]
    hits = [low <= share <= high for share, (low, high) in zip(shares, intervals, strict=True)]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.012)


def test_wilson_equals_published_values() -> None:
    """Newcombe 1998, table I: 81 of 263 and 0 of 20."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(20, 20)[1] == 1.0


@pytest.mark.parametrize("samples", [4, 8, 16])
def test_mean_interval_covers(samples: int) -> None:
    rng = np.random.default_rng(1)
    hits = [
        low <= 2.0 <= high for low, high in map(mean_interval, rng.normal(2.0, 0.3, (RUNS, samples)).tolist())
    ]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize(("freedom", "quantile"), [(3, 3.18245), (7, 2.36462), (15, 2.13145), (95, 1.98525)])
def test_student_quantile(freedom: int, quantile: float) -> None:
    assert student_quantile(freedom) == pytest.approx(quantile, rel=2e-6)


def test_too_few_samples_have_no_interval() -> None:
    assert mean_interval([1.0, 2.0, 3.0]) is None


def test_paired_shares_cover() -> None:
    """Two models that agree on nine pairs of ten, of 64: the change of recall, drawn and true."""
    rng = np.random.default_rng(2)
    hits = []
    for outcomes in rng.multinomial(64, [0.87, 0.03, 0.06, 0.04], RUNS):
        both, gained, lost, neither = outcomes.tolist()
        before = [1.0] * both + [0.0] * gained + [1.0] * lost + [0.0] * neither
        after = [1.0] * both + [1.0] * gained + [0.0] * lost + [0.0] * neither
        low, high = paired_share_interval(before, after)
        hits.append(low <= -0.03 <= high)
    assert np.mean(hits) == pytest.approx(0.95, abs=0.015)


def test_a_share_cannot_change_by_more_than_one() -> None:
    assert paired_share_interval([1.0] * 64, [0.0] * 64)[0] == -1.0
    assert paired_share_interval([0.0] * 64, [1.0] * 64)[1] == 1.0


def test_shares_that_are_all_alike_are_not_certain() -> None:
    assert shares_interval([0.0] * 30) == wilson(0, 30)
    assert shares_interval([1.0, 0.0, 1.0]) == wilson(2, 3)
    assert shares_interval([0.5, 1.0, 0.75, 1.0, 1.0])[1] == 1.0
    assert shares_interval([0.5, 1.0]) is None


def test_shares_of_parts_cover() -> None:
    """Means of 30 answers, each the share of four references that were found."""
    rng = np.random.default_rng(0)
    for truth in (0.3, 0.7, 0.9):
        found = rng.binomial(4, truth, (600, 30)) / 4
        bounds = [shares_interval(row.tolist()) for row in found]
        assert np.mean([low <= truth <= high for low, high in bounds]) >= 0.925
