"""Pictures of an evaluation as PNG files: perplexity, recall, training loss, and the two ends at a glance.

Colours are Okabe and Ito's and a single-hue map, which survive colour blindness and greyscale print.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from yarn_ops.evals.perplexity import LAST_QUARTER
from yarn_ops.evals.recall import TEMPLATES, task_name
from yarn_ops.records import Score, Scorecard

BEFORE_COLOUR, AFTER_COLOUR = "#D55E00", "#0072B2"
INK, MUTED, FAINT = "#1f2328", "#6a737d", "#e4e7eb"
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 10.5, "text.color": INK,
    "axes.titlesize": 12.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 30,
    "axes.labelcolor": MUTED, "axes.edgecolor": MUTED, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "figure.facecolor": "white", "savefig.facecolor": "white",
}  # fmt: skip
SHARES = LinearSegmentedColormap.from_list("shares", ["#eceff3", "#9ecae1", "#3182bd", "#08306b"])
DPI = 160
SMOOTH_STEPS = 5


@dataclass(frozen=True)
class Comparison:
    """The same measurements of a base and of its extension."""

    before: Scorecard
    after: Scorecard
    original_context_tokens: int
    target_context_tokens: int


def draw_overview(comparison: Comparison, path: Path) -> None:
    """Perplexity and recall against length side by side: the extension at a glance."""
    with rc_context(STYLE):
        figure = Figure(figsize=(12.5, 4.6), layout=ConstrainedLayoutEngine(wspace=0.08))
        left, right = figure.subplots(1, 2)
        _perplexity_axes(left, comparison)
        _recall_axes(right, comparison)
        save(figure, path)


def draw_perplexity(comparison: Comparison, path: Path) -> None:
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        _perplexity_axes(figure.subplots(), comparison)
        save(figure, path)


def draw_recall(comparison: Comparison, path: Path) -> None:
    """Heat maps, length by depth: one row of maps a template, before on the left and after on the right."""
    cards = {"before": comparison.before, "after": comparison.after}
    templates = [template for template in TEMPLATES if _by_depth(comparison.after, template)]
    with rc_context(STYLE | {"axes.titlepad": 10}):
        figure = Figure(figsize=(10, 0.9 + 2.9 * max(1, len(templates))), layout="constrained")
        grid = figure.subplots(max(1, len(templates)), 2, squeeze=False)
        image = None
        for row, template in zip(grid, templates, strict=False):
            for axes, (name, card) in zip(row, cards.items(), strict=True):
                image = _heat_axes(axes, _by_depth(card, template)) or image
                axes.set_title(f"{template.capitalize()} pairs recalled {name} (%)")
        if image is not None:
            bar = figure.colorbar(
                image, ax=grid, shrink=0.6, aspect=30, pad=0.02, ticks=[0, 0.5, 1], format="{x:.0%}"
            )
            bar.outline.set_visible(False)
        save(figure, path)


def draw_training_loss(losses: Sequence[tuple[int, float]], path: Path) -> None:
    """Loss of each optimizer step and its moving mean."""
    steps, values = np.array([step for step, _ in losses]), np.array([loss for _, loss in losses])
    with rc_context(STYLE | {"axes.titlepad": 14}):
        figure = Figure(figsize=(7.2, 3.8), layout="constrained")
        axes = figure.subplots()
        axes.plot(steps, values, color=AFTER_COLOUR, alpha=0.35, linewidth=1.2)
        if len(values) >= SMOOTH_STEPS:
            mean = np.convolve(values, np.full(SMOOTH_STEPS, 1 / SMOOTH_STEPS), mode="valid")
            axes.plot(steps[SMOOTH_STEPS - 1 :], mean, color=AFTER_COLOUR, linewidth=2.4)
            axes.annotate(
                f"{mean[-1]:.2f}", (steps[-1], mean[-1]), (6, 0), textcoords="offset points",
                va="center", color=AFTER_COLOUR, weight="bold",
            )  # fmt: skip
        axes.set(title="Training loss", xlabel=f"step (line: mean of {SMOOTH_STEPS})", ylabel="nats a token")
        _light_grid(axes)
        save(figure, path)


def _perplexity_axes(axes: Any, comparison: Comparison) -> None:
    curves = [_curve(card, LAST_QUARTER) for card in (comparison.before, comparison.after)]
    values = [bound for curve in curves for score in curve for bound in _interval(score)]
    axes.set_yscale("log")
    if values:
        axes.set_ylim(min(values) / 1.2, max(values) * 1.2)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    _length_axis(axes, comparison)
    _two_curves(axes, curves, "{:.1f}")
    axes.set(title="Perplexity: lower is better", ylabel="perplexity, last quarter of the window")


def _recall_axes(axes: Any, comparison: Comparison) -> None:
    template = next(
        (name for name in TEMPLATES if _curve(comparison.after, task_name(name))), next(iter(TEMPLATES))
    )
    curves = [_curve(card, task_name(template)) for card in (comparison.before, comparison.after)]
    axes.set_ylim(-0.04, 1.06)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    _length_axis(axes, comparison)
    _two_curves(axes, curves, "{:.0%}")
    axes.set(title="Recall: higher is better", ylabel=f"{template} pairs found in the window")


def _two_curves(axes: Any, curves: Sequence[Sequence[Score]], text: str) -> None:
    ends: list[tuple[Score, str, str]] = []
    for curve, colour, name in zip(curves, (BEFORE_COLOUR, AFTER_COLOUR), ("before", "after"), strict=True):
        if not curve:
            continue
        lengths, values = [score.context_tokens for score in curve], [score.value for score in curve]
        marker = "o" if name == "after" else "s"
        axes.plot(lengths, values, marker=marker, markersize=6, linewidth=2.2, color=colour, zorder=3)
        axes.fill_between(
            lengths,
            [_interval(score)[0] for score in curve],
            [_interval(score)[1] for score in curve],
            color=colour, alpha=0.14, linewidth=0,
        )  # fmt: skip
        ends.append((curve[-1], colour, name))
    heights = [
        axes.transAxes.inverted().transform(axes.transData.transform((1, end.value)))[1] for end, *_ in ends
    ]
    crowded = len(ends) == 2 and abs(heights[0] - heights[1]) < 0.07
    for height, (score, colour, name) in zip(heights, ends, strict=True):
        shift = 0 if not crowded else 8 if height == max(heights) else -8
        axes.annotate(
            f"{name} {text.format(score.value)}", (score.context_tokens, score.value), (9, shift),
            textcoords="offset points", va="center", color=colour, weight="bold", annotation_clip=False,
        )  # fmt: skip


def _length_axis(axes: Any, comparison: Comparison) -> None:
    """Length in powers of two, every measured length named; the original and the target context marked."""
    lengths = [
        score.context_tokens
        for card in (comparison.before, comparison.after)
        for score in _curve(card, LAST_QUARTER)
    ]
    ticks = sorted({*lengths, comparison.original_context_tokens, comparison.target_context_tokens})
    axes.set_xscale("log", base=2)
    axes.set_xlim(ticks[0] / 1.12, ticks[-1] * 1.12)
    axes.set_xticks(ticks, [_tokens(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("context (tokens)")
    _light_grid(axes)
    marks = {comparison.original_context_tokens: "original", comparison.target_context_tokens: "target"}
    axes.axvspan(
        ticks[0] / 1.12, comparison.original_context_tokens, color=FAINT, alpha=0.45, linewidth=0, zorder=0
    )
    for length, name in marks.items():
        axes.axvline(length, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"{name} context", (length, 1), (0, 5), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="center", color=MUTED, fontsize=9,
        )  # fmt: skip


def _heat_axes(axes: Any, cells: dict[tuple[int, float], float]) -> Any:
    """`cells` by (length, depth). The top row is farthest from the question."""
    if not cells:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", color=MUTED, transform=axes.transAxes)
        axes.set_axis_off()
        return None
    lengths, depths = sorted({length for length, _ in cells}), sorted({depth for _, depth in cells})
    shares = np.array([[cells.get((length, depth), np.nan) for length in lengths] for depth in depths])
    image = axes.imshow(shares, cmap=SHARES, vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        if not np.isnan(share):
            axes.text(
                column,
                row,
                f"{100 * share:.0f}",
                ha="center",
                va="center",
                color="white" if share > 0.55 else INK,
            )
    names = ["farthest", *[""] * (len(depths) - 2), "nearest"] if len(depths) > 1 else ["all"]
    axes.set_yticks(range(len(depths)), names)
    axes.set_xticks(range(len(lengths)), [_tokens(length) for length in lengths])
    axes.set_xlabel("context (tokens)")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(len(lengths) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(depths) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2.5)
    axes.tick_params(which="minor", length=0)
    return image


def _light_grid(axes: Any) -> None:
    axes.grid(axis="y", which="major", color=FAINT, linewidth=0.9)
    axes.set_axisbelow(True)


def _curve(card: Scorecard, task: str) -> list[Score]:
    scores = [score for score in card.scores if score.task == task and score.depth is None]
    return sorted(scores, key=lambda score: score.context_tokens)


def _interval(score: Score) -> tuple[float, float]:
    """The score's own value twice when it has no interval."""
    return score.value if score.low is None else score.low, score.value if score.high is None else score.high


def _by_depth(card: Scorecard, template: str) -> dict[tuple[int, float], float]:
    return {
        (score.context_tokens, score.depth): score.value
        for score in card.scores
        if score.task == task_name(template) and score.depth is not None
    }


def _tokens(count: int) -> str:
    return f"{count // 1024}k" if count >= 4096 and count % 1024 == 0 else f"{count:,}"


def save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure).print_figure(path, dpi=DPI, metadata={"Software": None})
