"""The picture of a comparison: perplexity and recall against length, a line a method and a row an arm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from yarn_ops.charts import INK, MUTED, STYLE, length_axis, not_measured, perplexity_axis, save, share_axis
from yarn_ops.evals.names import LAST_QUARTER, NEEDLES, RECALL, template_of
from yarn_ops.evals.report.titles import title_of
from yarn_ops.scores import Comparison, Scorecard

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D", "#A5AA99", "#4B4B8F")
"""Okabe and Ito's, then distinct in lightness"""
MARKERS = "osD^vPX*h"
DODGE_OCTAVES = 0.035
LEGEND_COLUMNS = 6
HEADROOM = 1.15
NARROW = 4
"""range of perplexities, largest / smallest, below which ticks are even steps"""


def draw_comparison(comparison: Comparison, before: Scorecard, path: Path) -> None:
    """One PNG; the base is the dashed grey line everywhere. Where there are more arms than methods, lines are
    arms and rows are methods."""
    arms = list(dict.fromkeys(contender.arm for contender in comparison.contenders))
    methods = list(dict.fromkeys(contender.method for contender in comparison.contenders))
    by_arm = len(arms) > len(methods)
    rows, lines = (methods, arms) if by_arm else (arms, methods)
    cards = {
        (c.method, c.arm) if by_arm else (c.arm, c.method): c.scores for c in comparison.contenders
    }  # fmt: skip
    with rc_context(STYLE | {"axes.titlepad": 10}):
        figure = Figure(figsize=(12.5, 0.9 + 3.9 * len(rows)), layout=ConstrainedLayoutEngine(wspace=0.08))
        grid = figure.subplots(len(rows), 2, squeeze=False)
        for (left, right), row in zip(grid, rows, strict=True):
            of_row = {line: cards[row, line] for line in lines}
            _perplexity(left, before, of_row)
            left.set_title(f"Perplexity, {row}")
            _recall(right, before, of_row)
            right.set_title(f"Recall, {row}")
            lengths = [score.context_tokens for score in before.by_length(LAST_QUARTER)]
            for axes in (left, right):
                length_axis(axes, lengths, [f"{length:,}" for length in lengths])
                axes.axvline(
                    comparison.original_context_tokens, color=INK, linestyle=":", linewidth=1, zorder=1
                )
                axes.set_xlabel("context (tokens); dotted: the original")
        handles, labels = grid[0][0].get_legend_handles_labels()
        columns = min(len(labels), LEGEND_COLUMNS)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
        save(figure, path)


def draw_releases(cards: dict[str, Scorecard], path: Path) -> None:
    """One PNG: perplexity and recall against length, a line a model."""
    tasks = [task for task in (*RECALL, *NEEDLES) if any(card.by_length(task) for card in cards.values())]
    with rc_context(STYLE | {"axes.titlepad": 10}):
        figure = Figure(figsize=(12.5, 5), layout=ConstrainedLayoutEngine(wspace=0.08))
        left, right = figure.subplots(1, 2)
        for axes, task, title in (
            (left, LAST_QUARTER, "Perplexity"),
            (right, tasks[0] if tasks else "", "Recall"),
        ):
            lengths = sorted(
                {score.context_tokens for card in cards.values() for score in card.by_length(task)}
            )
            axes.set_title(title)
            if not lengths:
                not_measured(axes)
                continue
            if axes is left:
                _perplexity(axes, None, cards)
            else:
                _lines(axes, None, cards, task, intervals=True)
                share_axis(axes, f"{title_of(task)}, 95 % intervals")
            length_axis(axes, lengths, [f"{length:,}" for length in lengths])
        handles, labels = (left if left.lines else right).get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3), frameon=False)
        save(figure, path)


def _perplexity(axes: Any, before: Scorecard | None, cards: dict[str, Scorecard]) -> None:
    """The base may leave the picture: it explodes, and what is compared would be one line."""
    values = [score.value for card in cards.values() for score in card.by_length(LAST_QUARTER)]
    _lines(axes, before, cards, LAST_QUARTER)
    perplexity_axis(axes, values, HEADROOM)
    if values and max(values) < NARROW * min(values):
        axes.yaxis.set_major_locator(MaxNLocator(6))


def _recall(axes: Any, before: Scorecard, cards: dict[str, Scorecard]) -> None:
    task = next((name for name in RECALL if before.by_length(name)), RECALL[0])
    _lines(axes, before, cards, task, intervals=True)
    share_axis(axes, f"{template_of(task)} pairs found, 95 % intervals")


def _lines(
    axes: Any, before: Scorecard | None, cards: dict[str, Scorecard], task: str, intervals: bool = False
) -> None:
    """One line a card, each a little beside the others: equal values stay visible."""
    if before is not None:
        base = before.by_length(task)
        axes.plot(
            [score.context_tokens for score in base], [score.value for score in base],
            color=MUTED, linestyle="--", linewidth=1.6, label="base", zorder=2,
        )  # fmt: skip
    for place, (name, card) in enumerate(cards.items()):
        colour, curve = COLOURS[place % len(COLOURS)], card.by_length(task)
        aside = 2 ** (DODGE_OCTAVES * (place - (len(cards) - 1) / 2))
        lengths = [aside * score.context_tokens for score in curve]
        if intervals:
            known = [(x, *score.interval) for x, score in zip(lengths, curve, strict=True) if score.interval]
            if known:
                axes.vlines(*zip(*known, strict=True), color=colour, linewidth=1.2, alpha=0.6)
        axes.plot(
            lengths, [score.value for score in curve], color=colour, marker=MARKERS[place % len(MARKERS)],
            markersize=5.5, linewidth=2, alpha=0.9, label=name, zorder=3,
        )  # fmt: skip
