"""The table of `rope show`: which pairs a method keeps, blends and interpolates."""

import math

import pytest
from numpy.testing import assert_allclose

from yarn_ops.rope.methods import RopeSpec, inverse_frequencies
from yarn_ops.rope.table import pair_table, summary

BASE512 = {"dim": 64, "theta": 10_000.0, "original_context_tokens": 512}


def spec(method="yarn", factor=4.0, **values):
    return RopeSpec(method=method, factor=factor, **BASE512, **values)


def fates(spec):
    return "".join(pair.fate[0] for pair in pair_table(spec))


def test_yarn_of_base512():
    """Ramp bounds by hand: c(32) = 3.25 rounded down, c(1) = 15.3 rounded up."""
    pairs = pair_table(spec())
    assert fates(spec()) == "k" * 4 + "b" * 12 + "i" * 16
    assert pairs[0].wavelength_tokens == pytest.approx(2 * math.pi)
    assert pairs[0].turns == pytest.approx(512 / (2 * math.pi))
    assert pairs[9].frequency_ratio == pytest.approx(1 - 0.75 * 6 / 13)  # 6 of the ramp's 13 steps
    assert pairs[31].new_wavelength_tokens == pytest.approx(4 * pairs[31].wavelength_tokens)


@pytest.mark.parametrize(
    ("method", "fate"),
    [
        ("none", "k" * 32),
        ("linear", "i" * 32),
        ("ntk", "k" + "b" * 30 + "i"),
        ("by-parts", "k" * 4 + "b" * 12 + "i" * 16),
        ("dynamic-yarn", "k" * 4 + "b" * 12 + "i" * 16),
    ],
)
def test_fates_of_other_methods(method, fate):
    assert fates(spec(method)) == fate


def test_the_table_holds_the_reference_frequencies():
    new = [2 * math.pi / pair.new_wavelength_tokens for pair in pair_table(spec())]
    assert_allclose(new, inverse_frequencies(spec()), rtol=1e-12)


def test_the_summary_says_that_logits_grow():
    """sqrt(1/t) = 0.1 ln 4 + 1: logits times 1.2965, so t below 1."""
    assert summary(spec()) == [
        "yarn ×4: 512 to 2,048 tokens, 32 pairs of dimensions, theta 10,000",
        "kept: 0-3, 34.4 to 81.5 turns within 512 tokens",
        "blended: 4-15, 1.09 to 25.8 turns within 512 tokens",
        "interpolated: 16-31, 0.0109 to 0.815 turns within 512 tokens",
        "attention factor 1.1386: logits × 1.2965, a temperature t of 0.7713; attention gets sharper",
    ]
    assert summary(spec("by-parts"))[-1] == "attention factor 1: logits stay as they are"


def test_a_method_that_grows_is_shown_at_its_target():
    assert [pair.frequency_ratio for pair in pair_table(spec("dynamic-yarn"))] == pytest.approx(
        [pair.frequency_ratio for pair in pair_table(spec())], rel=1e-12
    )
