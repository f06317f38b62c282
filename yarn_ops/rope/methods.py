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
    yarn         as by-parts, cos and sin times an attention factor                  the same, 3.4
    dynamic-yarn as yarn with s = max(1, n/L); n = length                            the same, 3.3
    llama3       r falls with L/wavelength between low_ and high_freq_factor      Llama 3.1, Meta 2024
    longrope     f_i / λ_i, λ from a short or a long list         Ding et al. 2024, arXiv:2402.13753
    abf          r = 0, θ replaced                                Xiong et al. 2023, arXiv:2309.16039
"""

from __future__ import annotations

import math
from typing import Annotated, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from yarn_ops.errors import RopeError
from yarn_ops.recipe import RopeMethod
from yarn_ops.recipe.section import LENGTH_DEPENDENT as LENGTH_DEPENDENT

Array: TypeAlias = NDArray[np.float64]

BETA_FAST = 32.0  # YaRN, section 3.2 (there β), found for the Llama family
BETA_SLOW = 1.0  # YaRN, section 3.2 (there α)
YARN_TEMPERATURE_SLOPE = 0.1  # YaRN, section 3.4: sqrt(1/t) = 0.1 ln(s) + 1
RAMP_GUARD = 0.001  # width of a ramp whose ends coincide; the authors' and every other implementation
FLOAT32_UNIT = 2.0**-24  # half the distance between neighbours at 1
RAMPED = ("by-parts", "yarn", "dynamic-yarn")


class RopeSpec(BaseModel):
    """A fully determined rotary embedding. Impossible ones raise RopeError, one line naming the field."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    method: RopeMethod
    dim: int = Field(ge=4, multiple_of=2)
    """rotary dimensions d of a head: int(head_dim * partial_rotary_factor)"""
    theta: float = Field(gt=1)
    """of the base; for abf the replacing one"""
    factor: float = Field(1.0, ge=1)
    original_context_tokens: int = Field(gt=1)
    beta_fast: float = Field(BETA_FAST, gt=0)
    beta_slow: float = Field(BETA_SLOW, gt=0)
    attention_factor: float | None = Field(None, gt=0)
    """None: the method's own"""
    truncate: bool = True
    """whether the ends of YaRN's ramp are rounded outwards to whole dimensions"""
    low_freq_factor: float = Field(1.0, gt=0)
    high_freq_factor: float = Field(4.0, gt=0)
    short_factors: tuple[Annotated[float, Field(gt=0)], ...] = ()
    long_factors: tuple[Annotated[float, Field(gt=0)], ...] = ()
    others: tuple[tuple[str, RopeSpec], ...] = ()
    """the embeddings of layer types that the method leaves alone, by type; this is full attention's then"""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            text = first["msg"].removeprefix("Value error, ")
            raise RopeError(f"{where}: {first['input']!r}: {text}" if where else text) from None

    @model_validator(mode="after")
    def _possible(self) -> RopeSpec:
        if self.beta_fast <= self.beta_slow:
            raise ValueError(f"beta_fast: {self.beta_fast:g} must be above beta_slow {self.beta_slow:g}")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor: {self.high_freq_factor:g} must be above low_freq_factor "
                f"{self.low_freq_factor:g}"
            )
        if self.method == "longrope":
            for name in ("short_factors", "long_factors"):
                if (count := len(getattr(self, name))) != self.dim // 2:
                    raise ValueError(
                        f"{name}: {count} numbers, expected {self.dim // 2}, one a pair of dimensions"
                    )
        if self.method == "dynamic-yarn" and self.attention_factor is not None:
            raise ValueError("attention_factor: dynamic-yarn's grows with the length and cannot be given")
        if self.method in RAMPED and (bounds := ramp_bounds(self))[0] > bounds[1]:
            raise ValueError(
                f"original_context_tokens: with {self.original_context_tokens} and theta {self.theta:g} no "
                "pair of dimensions lies between beta_fast and beta_slow turns; check both"
            )
        return self

    @property
    def target_context_tokens(self) -> int:
        """factor * original context, rounded to a whole token."""
        return round(self.factor * self.original_context_tokens)


def inverse_frequencies(spec: RopeSpec, length_tokens: int | None = None) -> Array:
    """Angle a position turns each pair of dimensions by, in radians: float64[d/2], highest first.

    Only the methods of LENGTH_DEPENDENT look at `length_tokens`, the length of the sequence being read;
    None means one within the original context.
    """
    if spec.method == "dynamic-yarn":
        return inverse_frequencies(yarn_at(spec, length_tokens))
    length_tokens = max(length_tokens or 0, spec.original_context_tokens)
    frequencies = _base_frequencies(_effective_theta(spec, length_tokens), spec.dim)
    if spec.method == "longrope":
        long = length_tokens > spec.original_context_tokens
        return frequencies / np.asarray(spec.long_factors if long else spec.short_factors, dtype=np.float64)
    share = ramp(spec)
    return frequencies * (1 - share) + frequencies / spec.factor * share


def attention_factor(spec: RopeSpec, length_tokens: int | None = None) -> float:
    """What cos and sin are multiplied by, for queries and keys alike: logits grow by its square.

    YaRN: 0.1 ln(s) + 1 (section 3.4). LongRoPE: sqrt(1 + ln(s) / ln(L)), as Phi-3 has it. Others: 1.
    Only dynamic-yarn looks at `length_tokens`, as `inverse_frequencies` does.
    """
    if spec.method == "dynamic-yarn":
        return attention_factor(yarn_at(spec, length_tokens))
    if spec.method not in ("yarn", "longrope"):
        return 1.0
    if spec.attention_factor is not None:
        return float(spec.attention_factor)
    if spec.method == "yarn":
        return yarn_scale(spec.factor)
    return math.sqrt(1 + math.log(spec.factor) / math.log(spec.original_context_tokens))


def yarn_at(spec: RopeSpec, length_tokens: int | None) -> RopeSpec:
    """The static YaRN that a dynamic one is while `length_tokens` are read: s = max(1, n/L)."""
    beyond = max(length_tokens or 0, spec.original_context_tokens) / spec.original_context_tokens
    return spec.model_copy(update={"method": "yarn", "factor": beyond})


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
        case "by-parts" | "yarn" | "dynamic-yarn":
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

    The power θ^(2i/d) magnifies the exponent's rounding by ln θ. The blend magnifies the ramp's by up to
    the factor, where little of f is left beside f/s, and the ramp's own grows as its ends come closer.
    """
    exponent = np.arange(0, spec.dim, 2) / spec.dim
    share = ramp(spec)
    blended = (share > 0) & (share < 1)
    sensitivity = np.where(blended, 1 - 1 / spec.factor, 0.0) / (1 - share + share / spec.factor)
    ramp_error = 2.0
    if spec.method == "llama3":
        span = spec.high_freq_factor - spec.low_freq_factor
        ramp_error += 2 * (3 + math.log(spec.theta)) * spec.high_freq_factor / span
    elif spec.method in RAMPED and not spec.truncate:
        low, high = ramp_bounds(spec)
        ramp_error += 2 * high / max(high - low, RAMP_GUARD)
    return FLOAT32_UNIT * (4 + math.log(spec.theta) * exponent + ramp_error * sensitivity)


def ntk_theta(spec: RopeSpec, stretch: float) -> float:
    """θ·stretch^(d/(d-2)): the lowest frequency is divided by the stretch, the highest is kept."""
    return float(spec.theta * stretch ** (spec.dim / (spec.dim - 2)))


def _effective_theta(spec: RopeSpec, length_tokens: int) -> float:
    match spec.method:
        case "ntk":
            return ntk_theta(spec, spec.factor)
        case "dynamic-ntk":
            beyond = length_tokens / spec.original_context_tokens
            return ntk_theta(spec, spec.factor * beyond - (spec.factor - 1))
        case _:
            return spec.theta


def _base_frequencies(theta: float, dim: int) -> Array:
    return np.power(float(theta), -np.arange(0, dim, 2, dtype=np.float64) / dim)


def _index_of_turns(spec: RopeSpec, count: float) -> float:
    return (
        spec.dim * math.log(spec.original_context_tokens / (2 * math.pi * count)) / (2 * math.log(spec.theta))
    )
