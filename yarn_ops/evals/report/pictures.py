"""Pictures of an extension as PNG files: perplexity, recall, training loss, and the two ends at a glance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from yarn_ops import charts
from yarn_ops.evals.names import LAST_QUARTER, RECALL, template_of
from yarn_ops.scores import BeforeAfter, Score, Scorecard

SMOOTH_STEPS = 5
CLOSE = 2.0
"""up to this ratio of target and original, their names would be printed over each other"""


def draw_overview(
    scores: BeforeAfter[Scorecard], target_context_tokens: int, path: Path, dpi: int = charts.DPI
) -> None:
    """Perplexity and recall against length side by side: the extension at a glance."""
    with rc_context(charts.STYLE):
        figure = Figure(figsize=(12.5, 4.6), layout=ConstrainedLayoutEngine(wspace=0.08))
        left, right = figure.subplots(1, 2)
        _perplexity(left, scores, target_context_tokens)
        _recall(right, scores, target_context_tokens)
        charts.save(figure, path, dpi)


def draw_perplexity(scores: BeforeAfter[Scorecard], target_context_tokens: int, path: Path) -> None:
    with rc_context(charts.STYLE):
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        _perplexity(figure.subplots(), scores, target_context_tokens)
        charts.save(figure, path)


def draw_recall(scores: BeforeAfter[Scorecard], path: Path) -> None:
    """Heat maps, length by depth: one row of maps a template, before on the left and after on the right."""
    tasks = [task for task in RECALL if scores.after.by_length(task)]
    with rc_context(charts.STYLE | {"axes.titlepad": 10}):
        figure = Figure(figsize=(10, 0.9 + 2.9 * max(1, len(tasks))), layout="constrained")
        grid = figure.subplots(max(1, len(tasks)), 2, squeeze=False)
        image = None
        for row, task in zip(grid, tasks, strict=False):
            for axes, name, card in zip(row, scores._fields, scores, strict=True):
                image = draw_depths(axes, card, task, _tokens, 10.5) or image
                axes.set_title(f"{template_of(task).capitalize()} pairs recalled {name} (%)")
        if image is not None:
            bar = figure.colorbar(
                image, ax=grid, shrink=0.6, aspect=30, pad=0.02, ticks=[0, 0.5, 1], format="{x:.0%}"
            )
            bar.outline.set_visible(False)
        charts.save(figure, path)


def draw_training_loss(losses: Sequence[tuple[int, float]], path: Path) -> None:
    """Loss of each optimizer step and its moving mean."""
    steps, values = np.array([step for step, _ in losses]), np.array([loss for _, loss in losses])
    with rc_context(charts.STYLE | {"axes.titlepad": 14}):
        figure = Figure(figsize=(7.2, 3.8), layout="constrained")
        axes = figure.subplots()
        axes.plot(steps, values, color=charts.AFTER_COLOUR, alpha=0.35, linewidth=1.2)
        if len(values) >= SMOOTH_STEPS:
            mean = np.convolve(values, np.full(SMOOTH_STEPS, 1 / SMOOTH_STEPS), mode="valid")
            axes.plot(steps[SMOOTH_STEPS - 1 :], mean, color=charts.AFTER_COLOUR, linewidth=2.4)
            axes.annotate(
                f"{mean[-1]:.2f}", (steps[-1], mean[-1]), (6, 0), textcoords="offset points",
                va="center", color=charts.AFTER_COLOUR, weight="bold",
            )  # fmt: skip
        axes.set(title="Training loss", xlabel=f"step (line: mean of {SMOOTH_STEPS})", ylabel="nats a token")
        charts.light_grid(axes)
        charts.save(figure, path)


def _perplexity(axes: Any, scores: BeforeAfter[Scorecard], target: int) -> None:
    curves = [card.by_length(LAST_QUARTER) for card in scores]
    charts.perplexity_axis(
        axes, [bound for curve in curves for score in curve for bound in score.bounds], 1.2
    )
    _lengths(axes, scores, target)
    _two_curves(axes, curves, "{:.1f}")
    axes.set_title("Perplexity: lower is better")


def _recall(axes: Any, scores: BeforeAfter[Scorecard], target: int) -> None:
    task = next((name for name in RECALL if scores.after.by_length(name)), RECALL[0])
    charts.share_axis(axes, f"{template_of(task)} pairs found in the window")
    _lengths(axes, scores, target)
    _two_curves(axes, [card.by_length(task) for card in scores], "{:.0%}")
    axes.set_title("Recall: higher is better")


def _two_curves(axes: Any, curves: Sequence[Sequence[Score]], text: str) -> None:
    ends: list[tuple[Score, str, str]] = []
    for curve, colour, name in zip(
        curves, (charts.BEFORE_COLOUR, charts.AFTER_COLOUR), ("before", "after"), strict=True
    ):
        if not curve:
            continue
        lengths, values = [score.context_tokens for score in curve], [score.value for score in curve]
        marker = "o" if name == "after" else "s"
        axes.plot(lengths, values, marker=marker, markersize=6, linewidth=2.2, color=colour, zorder=3)
        low, high = zip(*(score.bounds for score in curve), strict=True)
        axes.fill_between(lengths, low, high, color=colour, alpha=0.14, linewidth=0)
        ends.append((curve[-1], colour, name))
    heights = [
        axes.transAxes.inverted().transform(axes.transData.transform((1, end.value)))[1] for end, *_ in ends
    ]
    crowded = len(ends) == 2 and abs(heights[0] - heights[1]) < 0.07
    upper = heights.index(max(heights)) if heights else 0
    for place, (score, colour, name) in enumerate(ends):
        shift = 0 if not crowded else 8 if place == upper else -8
        axes.annotate(
            f"{name} {text.format(score.value)}", (score.context_tokens, score.value), (9, shift),
            textcoords="offset points", va="center", color=colour, weight="bold", annotation_clip=False,
        )  # fmt: skip


def _lengths(axes: Any, scores: BeforeAfter[Scorecard], target: int) -> None:
    """Every measured length; the original and the target context marked."""
    original = scores.after.original_context_tokens
    measured = {score.context_tokens for card in scores for score in card.by_length(LAST_QUARTER)}
    ticks = sorted(measured | {original, target})
    charts.length_axis(axes, ticks, [_tokens(tick) for tick in ticks])
    axes.set_xlim(ticks[0] / 1.12, ticks[-1] * 1.12)
    axes.axvspan(ticks[0] / 1.12, original, color=charts.FAINT, alpha=0.45, linewidth=0, zorder=0)
    sides = ("center", "center") if target > CLOSE * original else ("right", "left")
    for length, (name, side) in {original: ("original", sides[0]), target: ("target", sides[1])}.items():
        axes.axvline(length, color=charts.MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"{name} context", (length, 1), (0, 5), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha=side, color=charts.MUTED, fontsize=9,
        )  # fmt: skip


def draw_depths(
    axes: Any, card: Scorecard, task: str | None, told: Callable[[int], str], fontsize: float
) -> Any:
    """Recall by length and depth, on top what is farthest from the question; the image for a colour bar, None
    where it was not measured. told: a length as it is shown."""
    grid = {score.context_tokens: card.by_depth(score.task, score.context_tokens)
            for score in (card.by_length(task) if task else ())}  # fmt: skip
    grid = {length: parts for length, parts in grid.items() if parts}
    if not grid:
        charts.not_measured(axes)
        return None
    shares = np.array([[part.value for part in parts] for parts in grid.values()]).T
    image = charts.heat_map(
        axes, shares, charts.depth_names(len(shares)), [told(length) for length in grid], fontsize
    )
    axes.set_xlabel("context (tokens)")
    return image


def _tokens(count: int) -> str:
    return f"{count // 1024}k" if count >= 4096 and count % 1024 == 0 else f"{count:,}"
