"""The learning rate of every step."""

from __future__ import annotations

import math

import pytest

from yarn_ops.recipe import Train
from yarn_ops.train.loop import learning_rate


def rates(steps: int, **train: float) -> list[float]:
    recipe = Train.model_validate(train)
    return [learning_rate(step, steps=steps, peak=8.0, train=recipe) for step in range(steps)]


def test_linear_rise_then_cosine_to_the_final_fraction() -> None:
    found = rates(8, warmup_steps=4, final_learning_rate=0.25)
    assert found[:4] == [2.0, 4.0, 6.0, 8.0]
    cosine = [2 + 6 * (1 + math.cos(math.pi * quarter / 4)) / 2 for quarter in (1, 2, 3, 4)]
    assert found[4:] == pytest.approx(cosine, rel=1e-12)
    assert found[5] == pytest.approx(5.0) and found[7] == pytest.approx(2.0)


def test_without_warm_up_it_falls_from_the_peak() -> None:
    found = rates(50, warmup_steps=0, final_learning_rate=0.0)
    assert 7.9 < found[0] < 8.0 and found[-1] == pytest.approx(0.0, abs=1e-12)
    assert found == sorted(found, reverse=True)


def test_a_warm_up_longer_than_the_leg_only_rises() -> None:
    assert rates(2, warmup_steps=4) == [2.0, 4.0]
