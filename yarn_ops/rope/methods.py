"""Inverse frequencies and attention factors of every RoPE extension method, in float64.

The reference that every loaded model is compared with. Symbols as in the literature: d rotary dimensions,
pairs i = 0..d/2-1, base θ, f_i = θ^(-2i/d), original context L, factor s = target context / L.

All methods but LongRoPE are one formula, `f·(1 - r) + (f/s)·r`, with f taken at a method's θ and a
method's ramp r: 0 keeps a dimension as trained (it extrapolates), 1 interpolates it fully.

    none         r = 0                                            plain extrapolation
    linear       r = 1                                            Chen et al. 2023, arXiv:2306.15595
    ntk          r = 0, θ·s^(d/(d-2))                             bloc97 2023, "NTK-Aware Scaled RoPE"
    dynamic-ntk  r = 0, θ·(s·n/L - (s-1))^(d/(d-2))               emozilla 2023; n = length, at least L
    by-parts     r rises between beta_fast and beta_slow turns    Peng et al. 2023, arXiv:2309.00071, 3.2
    yarn         as by-parts, cos and sin times an attention factor                  the same, 3.3-3.4
    llama3       r falls with L/wavelength between low_ and high_freq_factor      Llama 3.1, Meta 2024
    longrope     f_i / λ_i, λ from a short or a long list         Ding et al. 2024, arXiv:2402.13753
    abf          r = 0, θ replaced                                Xiong et al. 2023, arXiv:2309.16039
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from yarn_ops.errors import RopeError
from yarn_ops.recipe import RopeMethod

Array: TypeAlias = NDArray[np.float64]

BETA_FAST = 32.0  # YaRN, section 3.2 (there β), found for the Llama family
BETA_SLOW = 1.0  # YaRN, section 3.2 (there α)
YARN_TEMPERATURE_SLOPE = 0.1  # YaRN, equation 15: sqrt(1/t) = 0.1 ln(s) + 1
RAMP_GUARD = 0.001  # width of a ramp whose ends coincide; the authors' and every other implementation
LENGTH_DEPENDENT = ("dynamic-ntk", "longrope")


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """A fully determined rotary embedding. Impossible ones raise RopeError."""

    method: RopeMethod
    dim: int
    """rotary dimensions d of a head: int(head_dim * partial_rotary_factor), even"""
    theta: float
    """of the base; for abf the replacing one"""
    factor: float = 1.0
    original_context_tokens: int
    beta_fast: float = BETA_FAST
    beta_slow: float = BETA_SLOW
    attention_factor: float | None = None
    """None: the method's own"""
    truncate: bool = True
    """whether the ends of YaRN's ramp are rounded outwards to whole dimensions"""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.method not in get_args(RopeMethod):
            raise RopeError(
                f"method: {self.method!r} is unknown; known are {', '.join(get_args(RopeMethod))}"
            )
        for name in ("theta", "factor", "beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor"):
            _require_number(name, getattr(self, name))
        _require(
            isinstance(self.dim, int) and self.dim >= 4 and self.dim % 2 == 0,
            "dim",
            self.dim,
            "an even number from 4",
        )
        _require(self.theta > 1, "theta", self.theta, "above 1")
        _require(self.factor >= 1, "factor", self.factor, "at least 1")
        _require(
            isinstance(self.original_context_tokens, int) and self.original_context_tokens > 0,
            "original_context_tokens", self.original_context_tokens, "a whole number above 0",
        )  # fmt: skip
        _require(
            0 < self.beta_slow < self.beta_fast,
            "beta_slow",
            self.beta_slow,
            f"in (0, beta_fast = {self.beta_fast:g})",
        )
        _require(
            0 < self.low_freq_factor < self.high_freq_factor,
            "low_freq_factor", self.low_freq_factor, f"in (0, high_freq_factor = {self.high_freq_factor:g})",
        )  # fmt: skip
        if self.attention_factor is not None:
            _require_number("attention_factor", self.attention_factor)
            _require(self.attention_factor > 0, "attention_factor", self.attention_factor, "above 0")
        if self.method == "longrope":
            _require_divisors("short_factors", self.short_factors, self.dim // 2)
            _require_divisors("long_factors", self.long_factors, self.dim // 2)
        if self.method in ("by-parts", "yarn"):
            low, high = ramp_bounds(self)
            if low > high:
                raise RopeError(
                    f"original_context_tokens: no dimension lies between beta_fast and beta_slow turns in "
                    f"{self.original_context_tokens} tokens with theta {self.theta:g}; check both"
                )

    @property
    def target_context_tokens(self) -> int:
        """factor * original context, rounded to a whole token."""
        return round(self.factor * self.original_context_tokens)


def inverse_frequencies(spec: RopeSpec, length_tokens: int | None = None) -> Array:
    """Angle a position turns each pair of dimensions by, in radians: float64[d/2], highest first.

    Only dynamic-ntk and longrope look at `length_tokens`, the length of the sequence being read;
    None means one within the original context.
    """
    length_tokens = max(length_tokens or 0, spec.original_context_tokens)
    frequencies = _base_frequencies(_effective_theta(spec, length_tokens), spec.dim)
    if spec.method == "longrope":
        long = length_tokens > spec.original_context_tokens
        return frequencies / np.asarray(spec.long_factors if long else spec.short_factors, dtype=np.float64)
    share = ramp(spec)
    return frequencies * (1 - share) + frequencies / spec.factor * share


def attention_factor(spec: RopeSpec) -> float:
    """What cos and sin are multiplied by, for queries and keys alike: logits grow by its square.

    YaRN: 0.1 ln(s) + 1 (equation 15). LongRoPE: sqrt(1 + ln(s) / ln(L)) (section 3.4). Others: 1.
    """
    if spec.method not in ("yarn", "longrope"):
        return 1.0
    if spec.attention_factor is not None:
        return float(spec.attention_factor)
    if spec.method == "yarn":
        return yarn_scale(spec.factor)
    return math.sqrt(1 + math.log(spec.factor) / math.log(spec.original_context_tokens))


def yarn_scale(factor: float, slope: float = 1.0) -> float:
    """0.1 · slope · ln(factor) + 1, at least 1; DeepSeek's `mscale` is the slope."""
    return YARN_TEMPERATURE_SLOPE * slope * math.log(factor) + 1 if factor > 1 else 1.0


def turns(spec: RopeSpec) -> Array:
    """Full turns that each pair of dimensions made within the original context: float64[d/2]."""
    return spec.original_context_tokens * _base_frequencies(spec.theta, spec.dim) / (2 * math.pi)


def ramp(spec: RopeSpec) -> Array:
    """Share of interpolation of each pair of dimensions, 0 = kept, 1 = fully interpolated: float64[d/2].

    For ntk, dynamic-ntk and abf 0 everywhere, since these move θ instead; meaningless for longrope (0).
    """
    match spec.method:
        case "linear":
            return np.ones(spec.dim // 2)
        case "by-parts" | "yarn":
            low, high = ramp_bounds(spec)
            width = high - low if high > low else RAMP_GUARD
            return np.clip((np.arange(spec.dim // 2) - low) / width, 0.0, 1.0)
        case "llama3":
            span = spec.high_freq_factor - spec.low_freq_factor
            return 1 - np.clip((turns(spec) - spec.low_freq_factor) / span, 0.0, 1.0)
        case _:
            return np.zeros(spec.dim // 2)


def ramp_bounds(spec: RopeSpec) -> tuple[float, float]:
    """Dimension indices where YaRN's ramp leaves 0 and where it reaches 1.

    c(n) = d ln(L / 2πn) / (2 ln θ) is the index that makes n turns in the original context. Linear in the
    index and clipped to [0, d-1] as in the authors' code (github.com/jquesnelle/yarn); the paper's own
    ramp, linear in turns, is nobody's implementation.
    """
    low, high = (_index_of_turns(spec, count) for count in (spec.beta_fast, spec.beta_slow))
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0.0), min(high, spec.dim - 1.0)


def float32_rounding(spec: RopeSpec) -> Array:
    """Bound on the relative error of computing the frequencies in float32: float64[d/2].

    The power θ^(2i/d) magnifies the exponent's rounding by ln θ; the blend magnifies the ramp's by up to
    the factor, where little of f is left beside f/s.
    """
    unit = 2.0**-24
    exponent = np.arange(0, spec.dim, 2) / spec.dim
    share = ramp(spec)
    blend = np.where((share > 0) & (share < 1), 1 - 1 / spec.factor, 0.0) / (1 - share + share / spec.factor)
    turning = 1.0
    if spec.method == "llama3":
        wide = spec.high_freq_factor / (spec.high_freq_factor - spec.low_freq_factor)
        turning += wide * (3 + math.log(spec.theta))
    return unit * (4 + math.log(spec.theta) * exponent + 2 * turning * blend)


def _effective_theta(spec: RopeSpec, length_tokens: int) -> float:
    match spec.method:
        case "ntk":
            stretch = spec.factor
        case "dynamic-ntk":
            stretch = spec.factor * length_tokens / spec.original_context_tokens - (spec.factor - 1)
        case _:
            return spec.theta
    return float(spec.theta * stretch ** (spec.dim / (spec.dim - 2)))


def _base_frequencies(theta: float, dim: int) -> Array:
    return np.power(float(theta), -np.arange(0, dim, 2, dtype=np.float64) / dim)


def _index_of_turns(spec: RopeSpec, count: float) -> float:
    return (
        spec.dim * math.log(spec.original_context_tokens / (2 * math.pi * count)) / (2 * math.log(spec.theta))
    )


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise RopeError(f"{name}: {value!r} must be {wanted}")


def _require_number(name: str, value: object) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    _require(number, name, value, "a finite number")


def _require_divisors(name: str, values: tuple[float, ...], count: int) -> None:
    _require(
        len(values) == count, name, f"{len(values)} numbers", f"{count} numbers, one a pair of dimensions"
    )
    for index, value in enumerate(values):
        _require_number(f"{name}[{index}]", value)
        _require(value > 0, f"{name}[{index}]", value, "above 0")
