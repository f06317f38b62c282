"""The picture of a RoPE method: wavelengths before and after, and how much of each frequency is left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from yarn_ops.charts import INK, MUTED, STYLE, light_grid, save
from yarn_ops.rope.methods import RopeSpec
from yarn_ops.rope.table import FATES, Fate, Pair, pair_table

COLOURS: dict[Fate, str] = {"kept": "#0072B2", "blended": "#E69F00", "interpolated": "#D55E00"}
MARKERS: dict[Fate, str] = {"kept": "o", "blended": "D", "interpolated": "s"}


def draw_rope(spec: RopeSpec, path: Path) -> None:
    """One PNG: wavelength by pair above, share of the frequency below."""
    pairs = pair_table(spec)
    with rc_context(STYLE | {"axes.titlepad": 16}):
        figure = Figure(figsize=(8.8, 6.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        upper.set_title(
            f"{spec.method} ×{spec.factor:g}: {spec.original_context_tokens:,} to "
            f"{spec.target_context_tokens:,} tokens"
        )
        _wavelengths(upper, spec, pairs)
        _shares(lower, spec, pairs)
        for axes in (upper, lower):
            light_grid(axes)
        figure.align_ylabels()
        save(figure, path)


def _wavelengths(axes: Any, spec: RopeSpec, pairs: Sequence[Pair]) -> None:
    axes.set_yscale("log")
    indices = [pair.index for pair in pairs]
    axes.plot(indices, [pair.wavelength_tokens for pair in pairs], color=MUTED, linewidth=1.4, zorder=2)
    _points(axes, pairs, [pair.new_wavelength_tokens for pair in pairs])
    axes.annotate(
        "before", (pairs[-1].index, pairs[-1].wavelength_tokens), (8, 0), textcoords="offset points",
        va="center", color=MUTED, annotation_clip=False,
    )  # fmt: skip
    marks = {spec.original_context_tokens: "original context", spec.target_context_tokens: "target context"}
    for tokens, name in marks.items():
        axes.axhline(tokens, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"{name}, {tokens:,}", (0, tokens), (6, 4), xycoords=("axes fraction", "data"),
            textcoords="offset points", color=INK, fontsize=9,
        )  # fmt: skip
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("tokens for a full turn")
    axes.legend(loc="lower right", frameon=False, handletextpad=0.3)


def _shares(axes: Any, spec: RopeSpec, pairs: Sequence[Pair]) -> None:
    _points(axes, pairs, [pair.frequency_ratio for pair in pairs])
    axes.set_ylim(-0.04, 1.08)
    ticks = sorted({0.0, 0.5, 1.0, 1 / spec.factor})
    axes.set_yticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("frequency, new / old")
    axes.set_xlabel("pair of dimensions, the fastest first")


def _points(axes: Any, pairs: Sequence[Pair], values: Sequence[float]) -> None:
    for fate in FATES:
        found = [(pair.index, value) for pair, value in zip(pairs, values, strict=True) if pair.fate == fate]
        if found:
            axes.plot(
                *zip(*found, strict=True), linestyle="none", marker=MARKERS[fate], markersize=5,
                color=COLOURS[fate], label=f"{fate} ({len(found)})", zorder=3,
            )  # fmt: skip
