"""The table of a RoPE method: wavelength, frequency ratio and fate of each pair of dimensions."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Literal

from yarn_ops.recipe import Rope
from yarn_ops.rope.methods import RopeSpec, attention_factor, inverse_frequencies, turns
from yarn_ops.scores import Fit

Fate = Literal["kept", "blended", "interpolated"]
FATES: tuple[Fate, ...] = ("kept", "blended", "interpolated")
SAME = 1e-9
"""relative; what float64 arithmetic may lose"""


@dataclass(frozen=True)
class Pair:
    """One pair of rotary dimensions; index 0 turns fastest."""

    index: int
    wavelength_tokens: float
    """of the base: tokens a full turn takes"""
    turns: float
    """of the base, within its original context"""
    fate: Fate
    """kept as trained, interpolated by the whole factor or more, blended in between"""
    frequency_ratio: float
    """new / old"""
    new_wavelength_tokens: float


def pair_table(spec: RopeSpec) -> list[Pair]:
    """Every pair, fastest first. A method that depends on the length is shown at the target context."""
    base = spec.model_copy(update={"method": "none"})
    new = inverse_frequencies(spec, spec.target_context_tokens)
    old = inverse_frequencies(base)
    counts = turns(base)
    return [
        Pair(
            index=index,
            wavelength_tokens=2 * math.pi / float(old[index]),
            turns=float(counts[index]),
            fate=_fate(float(new[index] / old[index]), spec.factor),
            frequency_ratio=float(new[index] / old[index]),
            new_wavelength_tokens=2 * math.pi / float(new[index]),
        )
        for index in range(spec.dim // 2)
    ]


def summary(spec: RopeSpec) -> list[str]:
    """The pairs of each fate, and the attention factor, in words: one sentence a line."""
    pairs, original = pair_table(spec), spec.original_context_tokens
    lines = [
        f"{spec.method} ×{spec.factor:g}: {original:,} to {spec.target_context_tokens:,} tokens, "
        f"{len(pairs)} pairs of dimensions, theta {spec.theta:,.0f}"
    ]
    for fate in FATES:
        if same := [pair for pair in pairs if pair.fate == fate]:
            many, few = same[0].turns, same[-1].turns
            lines.append(
                f"{fate}: {_ranges([pair.index for pair in same])}, "
                f"{few:.3g} to {many:.3g} turns within {original:,} tokens"
            )
    return [*lines, _attention(spec)]


def _fate(ratio: float, factor: float) -> Fate:
    if ratio >= 1 - SAME:
        return "kept"
    return "interpolated" if ratio * factor <= 1 + SAME else "blended"


def _attention(spec: RopeSpec) -> str:
    factor = attention_factor(spec, spec.target_context_tokens)
    if factor == 1:
        return "attention factor 1: logits stay as they are"
    sharper = "sharper" if factor > 1 else "flatter"
    return (
        f"attention factor {factor:.4f}: logits × {factor**2:.4f}, a temperature t of {factor**-2:.4f}; "
        f"attention gets {sharper}"
    )


def _ranges(indices: list[int]) -> str:
    """`0-3, 7`: runs of consecutive numbers, ascending."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def fit_section(fit: Fit) -> list[str]:
    """A [rope] section of what was found; as comments its gain, its cost, engines that do not serve it."""
    values = [f"{key} = {json.dumps(fit.rope[key])}" for key in Rope.model_fields if key in fit.rope]
    return ["[rope]", *values, *(f"# {line}" for line in _fit_report(fit))]


def _fit_report(fit: Fit) -> list[str]:
    """Sentences that compare the found parameters with the defaults."""
    gain = (
        f"{fit.gain_nats:+.4f} nats a token [{fit.low_nats:+.4f}, {fit.high_nats:+.4f}] at "
        f"{fit.target_context_tokens:,} tokens, {fit.short_gain_nats:+.4f} within the original context"
    )
    lines = [f"gain: {gain}; on {fit.windows} fresh windows, the defaults at {fit.default_loss_nats:.4f}"]
    if not fit.adopted:
        found = ", ".join(f"{key} = {json.dumps(value)}" for key, value in sorted(fit.found.items()))
        lines.append(f"not surely better than the defaults, which stay; found: {found}")
    cost = f"{fit.evaluations} evaluations, {fit.tokens:,} tokens, {fit.seconds:.0f} s"
    return [*lines, f"cost: {cost}", *(f"not for {name}: {why}" for name, why in fit.unservable.items())]
