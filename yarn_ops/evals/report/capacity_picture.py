"""The capacity picture: how far it sees and uses as bars, then loss and recall by length, recall by depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from yarn_ops.charts import AFTER_COLOUR, BEFORE_COLOUR, INK, MUTED, STYLE, length_axis, save, share_axis
from yarn_ops.evals.capacity import Capacity, interval, tokens
from yarn_ops.evals.names import LAST_QUARTER, SAME_TARGETS
from yarn_ops.evals.reach import BLOW_UP, Length
from yarn_ops.evals.report.pictures import draw_depths
from yarn_ops.evals.report.titles import title_of

SEES_COLOUR, USES_COLOUR = "#9ecae1", "#08519c"
COLOURS = (AFTER_COLOUR, BEFORE_COLOUR)
CROWDED_NATS = 0.25
"""ends of two curves that are closer get their figures above and below"""


def draw_capacity(models: Sequence[Capacity], path: Path) -> None:
    """One PNG. models: the one under test, then, if there is one, the base that it is compared with."""
    with rc_context(STYLE | {"axes.titlepad": 14}):
        figure = Figure(figsize=(12.5, 6.6 + 0.9 * len(models)), layout="constrained")
        halves: Any = figure.subfigures(2, 1, height_ratios=(1.1 + 0.9 * len(models), 4.4))
        upper, lower = halves
        _bars(upper.subplots(), models)
        left, middle, right = lower.subplots(1, 3, width_ratios=(1, 1, 1.15))
        _loss(left, models)
        _recall(middle, models)
        right.set_title("Using: needles found by depth (%)")
        draw_depths(right, models[0].card, models[0].reach.task, tokens, 9)
        save(figure, path)


def _bars(axes: Any, models: Sequence[Capacity]) -> None:
    longest = max(max(model.lengths) for model in models)
    axes.set_title(f"{models[0].name}: {models[0].verdict}", fontsize=17, pad=12)
    names, places = [], []
    for row, model in enumerate(models):
        for step, (what, length, colour) in enumerate(
            (("sees", model.reach.sees, SEES_COLOUR), ("uses", model.reach.uses, USES_COLOUR))
        ):
            place = -2.6 * row - step
            places.append(place)
            names.append(what if len(models) == 1 else f"{model.name}  {what}")
            _bar(axes, place, length, colour)
        axes.vlines(
            model.card.original_context_tokens, -2.6 * row - 1.45, -2.6 * row + 0.45, color=INK,
            linewidth=1.2, linestyle=(0, (4, 3)),
        )  # fmt: skip
    axes.annotate(
        "trained on", (models[0].card.original_context_tokens, 0.5), (0, 2), textcoords="offset points",
        ha="center", color=MUTED, fontsize=9,
    )  # fmt: skip
    axes.set_yticks(places, names)
    axes.set_xlim(0, longest * 1.18)
    axes.set_ylim(min(places) - 0.6, 0.95)
    ticks = sorted({0, *models[0].lengths[-3:], longest})
    axes.set_xticks(ticks, [tokens(tick) for tick in ticks])
    axes.tick_params(axis="y", length=0, labelsize=11)
    axes.spines["left"].set_visible(False)


def _bar(axes: Any, place: float, length: Length | None, colour: str) -> None:
    if length is None:
        axes.text(0, place, " not measured", va="center", color=MUTED)
        return
    axes.barh(place, length.tokens, height=0.78, color=colour)
    if length.low != length.high:
        axes.plot(
            [length.low, length.high], [place, place], color=INK, linewidth=1.6, marker="|", markersize=9
        )
    text = f"  {tokens(length)} tokens {interval(length)}"
    axes.text(max(length.tokens, length.high), place, text, va="center", weight="bold", color=INK)


def _loss(axes: Any, models: Sequence[Capacity]) -> None:
    curves = [(colour, _losses(model)) for model, colour in zip(models, COLOURS, strict=False)]
    curves = [(colour, losses) for colour, losses in curves if losses]
    ends = [losses[-1][1] for _, losses in curves]
    crowded = len(ends) > 1 and abs(ends[0] - ends[1]) < CROWDED_NATS
    for place, (colour, losses) in enumerate(curves):
        axes.plot(*zip(*losses, strict=True), **_line(colour))
        shift = 0 if not crowded else 7 if place == ends.index(max(ends)) else -7
        axes.annotate(
            f"{ends[place]:.2f}", losses[-1], (6, shift), textcoords="offset points", va="center",
            color=colour, weight="bold",
        )  # fmt: skip
    lowest = min((loss for _, loss in _losses(models[0])), default=None)
    if lowest is not None:
        axes.axhline(lowest + BLOW_UP, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        axes.set_ylim(top=min(axes.get_ylim()[1], lowest + 3.5))
    axes.set(title="Seeing: loss of the same tokens", ylabel="nats a token; lower is better")
    _lengths(axes, models)


def _losses(model: Capacity) -> list[tuple[int, float]]:
    """(tokens of context, nats): of the same targets, or last quarters where these were not measured."""
    same = [(score.context_tokens, score.value) for score in model.card.by_length(SAME_TARGETS)]
    quarters = model.card.by_length(LAST_QUARTER)
    return same or [(score.context_tokens, math.log(score.value)) for score in quarters]


def _recall(axes: Any, models: Sequence[Capacity]) -> None:
    for model, colour in zip(models, COLOURS, strict=False):
        scores = model.card.by_length(model.reach.task or "")
        if not scores:
            continue
        x, y = zip(*[(s.context_tokens, s.value) for s in scores], strict=True)
        axes.plot(x, y, **_line(colour), label=model.name)
        axes.fill_between(
            x, [s.low or 0.0 for s in scores], [1.0 if s.high is None else s.high for s in scores],
            color=colour, alpha=0.14, linewidth=0,
        )  # fmt: skip
    if models[0].reach.threshold is not None:
        axes.axhline(models[0].reach.threshold, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    share_axis(axes, f"{title_of(models[0].reach.task or 'needles')}, all depths")
    axes.set_title("Using: needles found")
    if len(models) > 1 and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="lower left")
    _lengths(axes, models)


def _line(colour: str) -> dict[str, Any]:
    return {"color": colour, "marker": "o", "markersize": 5, "linewidth": 2.2}


def _lengths(axes: Any, models: Sequence[Capacity]) -> None:
    ticks = sorted({length for model in models for length in model.lengths})
    length_axis(axes, ticks, [tokens(tick) for tick in ticks])
    axes.set_xlim(ticks[0] / 1.15, ticks[-1] * 1.35)
    axes.axvline(models[0].card.original_context_tokens, color=INK, linewidth=1, linestyle=(0, (4, 3)))
