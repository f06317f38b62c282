"""The float64 reference against golden numbers, limits of the formulas, and impossible specifications."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from yarn_ops.errors import RopeError
from yarn_ops.rope.methods import (
    RopeSpec,
    attention_factor,
    float32_rounding,
    inverse_frequencies,
    ramp,
    ramp_bounds,
    turns,
)

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/rope_yarn.json").read_text())["vectors"]
LLAMA = {"dim": 128, "theta": 10000.0, "original_context_tokens": 4096}


def base(**values: object) -> RopeSpec:
    return RopeSpec(**{"method": "yarn", "factor": 4.0, **LLAMA, **values})


@pytest.mark.parametrize("vector", GOLDEN, ids=lambda vector: vector["name"])
def test_yarn_golden(vector):
    keys = ("dim", "theta", "factor", "original_context_tokens", "beta_fast", "beta_slow")
    spec = RopeSpec(method="yarn", **{key: vector[key] for key in keys})
    assert ramp_bounds(spec) == tuple(vector["ramp_bounds"])
    assert_allclose(
        inverse_frequencies(spec)[vector["indices"]], vector["inverse_frequencies"], rtol=1e-8, atol=0
    )
    assert_allclose(attention_factor(spec), vector["attention_factor"], rtol=1e-8, atol=0)


def test_float32_costs_at_most_a_millionth_on_every_golden_vector():
    keys = ("dim", "theta", "factor", "original_context_tokens", "beta_fast", "beta_slow")
    bounds = [
        float32_rounding(RopeSpec(method="yarn", **{key: vector[key] for key in keys})).max()
        for vector in GOLDEN
    ]
    assert max(bounds) < 4e-6


def test_none_and_abf_are_plain_rope():
    expected = 10000.0 ** (-np.arange(0, 128, 2) / 128)
    assert_allclose(inverse_frequencies(base(method="none")), expected, rtol=1e-14)
    assert_allclose(
        inverse_frequencies(base(method="abf", theta=5e5)), 5e5 ** (-np.arange(0, 128, 2) / 128), rtol=1e-14
    )


def test_linear_divides_every_frequency():
    plain = inverse_frequencies(base(method="none"))
    assert_allclose(inverse_frequencies(base(method="linear")), plain / 4, rtol=1e-14)


def test_ntk_keeps_the_highest_and_divides_the_lowest_frequency():
    plain, moved = inverse_frequencies(base(method="none")), inverse_frequencies(base(method="ntk"))
    assert moved[0] == 1.0
    assert_allclose(moved[-1], plain[-1] / 4, rtol=1e-12)


def test_dynamic_ntk_grows_with_length():
    spec = base(method="dynamic-ntk")
    plain = inverse_frequencies(base(method="none"))
    assert_allclose(inverse_frequencies(spec), plain, rtol=1e-14)
    assert_allclose(inverse_frequencies(spec, 100), plain, rtol=1e-14)
    # n = 2L: theta times (4*2 - 3)^(d/(d-2)), so the lowest frequency is divided by 5
    assert_allclose(inverse_frequencies(spec, 8192)[-1], plain[-1] / 5, rtol=1e-12)


def test_by_parts_is_yarn_without_temperature():
    assert_allclose(inverse_frequencies(base(method="by-parts")), inverse_frequencies(base()), rtol=0)
    assert attention_factor(base(method="by-parts")) == 1.0
    assert_allclose(attention_factor(base()), 0.1 * math.log(4) + 1, rtol=1e-15)


def test_yarn_keeps_fast_dimensions_and_interpolates_slow_ones():
    spec = base()
    share, plain = ramp(spec), inverse_frequencies(base(method="none"))
    low, high = ramp_bounds(spec)
    assert (share[: int(low) + 1] == 0).all() and (share[int(high) :] == 1).all()
    assert (turns(spec)[share == 0] > 28).all() and (turns(spec)[share == 1] < 1).all()
    assert_allclose(inverse_frequencies(spec)[share == 0], plain[share == 0], rtol=1e-15)
    assert_allclose(inverse_frequencies(spec)[share == 1], plain[share == 1] / 4, rtol=1e-15)


def test_yarn_without_truncation_uses_unrounded_bounds():
    assert_allclose(ramp_bounds(base(truncate=False)), (20.9445, 45.0269), rtol=1e-5)


def test_llama3_bands():
    """Llama 3.1's own: factor 8 over 8192 tokens, theta 500000."""
    spec = base(method="llama3", theta=5e5, factor=8.0, original_context_tokens=8192)
    plain = inverse_frequencies(base(method="none", theta=5e5))
    wavelength = 2 * math.pi / plain
    live = inverse_frequencies(spec)
    assert_allclose(live[wavelength < 2048], plain[wavelength < 2048], rtol=1e-14)
    assert_allclose(live[wavelength > 8192], plain[wavelength > 8192] / 8, rtol=1e-14)
    middle = (wavelength > 2048) & (wavelength < 8192)
    smooth = (8192 / wavelength[middle] - 1) / 3
    assert_allclose(live[middle], plain[middle] * ((1 - smooth) / 8 + smooth), rtol=1e-13)


def test_longrope_switches_lists_beyond_the_original_context():
    short, long = tuple(np.linspace(1, 2, 64)), tuple(np.linspace(1, 9, 64))
    spec = base(method="longrope", short_factors=short, long_factors=long)
    plain = inverse_frequencies(base(method="none"))
    assert_allclose(inverse_frequencies(spec, 4096), plain / short, rtol=1e-14)
    assert_allclose(inverse_frequencies(spec, 4097), plain / long, rtol=1e-14)
    assert_allclose(attention_factor(spec), math.sqrt(1 + math.log(4) / math.log(4096)), rtol=1e-15)


@pytest.mark.parametrize("method", ["linear", "ntk", "dynamic-ntk", "by-parts", "yarn", "llama3"])
def test_factor_one_changes_nothing(method):
    spec = base(method=method, factor=1.0)
    assert_allclose(inverse_frequencies(spec), inverse_frequencies(base(method="none")), rtol=1e-14)
    assert attention_factor(spec) == 1.0


def test_an_attention_factor_given_wins():
    assert attention_factor(base(attention_factor=1.25)) == 1.25


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"factor": 0.5}, "factor"),
        ({"factor": 0}, "factor"),
        ({"factor": "4"}, "factor"),
        ({"factor": True}, "factor"),
        ({"factor": math.nan}, "factor"),
        ({"factor": math.inf}, "factor"),
        ({"theta": 1.0}, "theta"),
        ({"theta": None}, "theta"),
        ({"dim": 63}, "dim"),
        ({"dim": 2}, "dim"),
        ({"original_context_tokens": 0}, "original_context_tokens"),
        ({"original_context_tokens": 4096.0}, "original_context_tokens"),
        ({"original_context_tokens": 5}, "original_context_tokens"),  # no pair makes a whole turn
        ({"beta_fast": 1.0}, "beta_fast"),
        ({"beta_slow": -1.0}, "beta_slow"),
        ({"attention_factor": 0.0}, "attention_factor"),
        ({"high_freq_factor": 1.0}, "high_freq_factor"),
        ({"method": "longrope"}, "short_factors"),
        ({"method": "longrope", "short_factors": (1.0,) * 64, "long_factors": (0.0,) * 64}, "long_factors"),
        ({"method": "alibi"}, "method"),
        ({"scale": 4.0}, "scale"),
    ],
)
def test_impossible_specifications_name_their_field(values, name):
    with pytest.raises(RopeError, match=f"^{name}") as caught:
        base(**values)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named():
    with pytest.raises(RopeError, match=r"^original_context_tokens"):
        RopeSpec(method="yarn", dim=64, theta=1e4)
