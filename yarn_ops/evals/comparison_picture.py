"""The picture of a comparison: perplexity and recall against length, a line a method and a row an arm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from yarn_ops.evals.perplexity import LAST_QUARTER
from yarn_ops.evals.pictures import FAINT, INK, MUTED, STYLE, save
from yarn_ops.evals.recall import TEMPLATES, task_name
from yarn_ops.records import Comparison, Score, Scorecard

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
            for axes in (left, right):
                _length_axis(axes, comparison, before)
        handles, labels = grid[0][0].get_legend_handles_labels()
        columns = min(len(labels), LEGEND_COLUMNS)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
        save(figure, path)


def _perplexity(axes: Any, before: Scorecard, cards: dict[str, Scorecard]) -> None:
    axes.set_yscale("log")
    _lines(axes, before, cards, LAST_QUARTER)
    values = [score.value for card in cards.values() for score in _curve(card, LAST_QUARTER)]
    if values:  # the base may leave the picture: it explodes, and what is compared would be one line
        axes.set_ylim(min(values) / HEADROOM, max(values) * HEADROOM)
    narrow = bool(values) and max(values) < NARROW * min(values)
    axes.yaxis.set_major_locator(MaxNLocator(6) if narrow else LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("perplexity, last quarter of the window")


def _recall(axes: Any, before: Scorecard, cards: dict[str, Scorecard]) -> None:
    measured = {score.task for score in before.scores}
    template = next((name for name in TEMPLATES if task_name(name) in measured), next(iter(TEMPLATES)))
    _lines(axes, before, cards, task_name(template), intervals=True)
    axes.set_ylim(-0.04, 1.06)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axes.set_ylabel(f"{template} pairs found, 95 % intervals")


def _lines(
    axes: Any, before: Scorecard, cards: dict[str, Scorecard], task: str, intervals: bool = False
) -> None:
    """One line a card, each a little beside the others: equal values stay visible."""
    base = _curve(before, task)
    axes.plot(
        [score.context_tokens for score in base], [score.value for score in base],
        color=MUTED, linestyle="--", linewidth=1.6, label="base", zorder=2,
    )  # fmt: skip
    for place, (name, card) in enumerate(cards.items()):
        colour, curve = COLOURS[place % len(COLOURS)], _curve(card, task)
        aside = 2 ** (DODGE_OCTAVES * (place - (len(cards) - 1) / 2))
        lengths = [aside * score.context_tokens for score in curve]
        if intervals:
            known = [(x, score.low, score.high) for x, score in zip(lengths, curve, strict=True)]
            bars = [bar for bar in known if None not in bar]
            if bars:
                axes.vlines(*zip(*bars, strict=True), color=colour, linewidth=1.2, alpha=0.6)
        axes.plot(
            lengths, [score.value for score in curve], color=colour, marker=MARKERS[place % len(MARKERS)],
            markersize=5.5, linewidth=2, alpha=0.9, label=name, zorder=3,
        )  # fmt: skip


def _curve(card: Scorecard, task: str) -> list[Score]:
    return sorted(
        (score for score in card.scores if score.task == task and score.depth is None),
        key=lambda score: score.context_tokens,
    )


def _length_axis(axes: Any, comparison: Comparison, before: Scorecard) -> None:
    axes.set_xscale("log", base=2)
    lengths = [score.context_tokens for score in _curve(before, LAST_QUARTER)]
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axvline(comparison.original_context_tokens, color=INK, linestyle=":", linewidth=1, zorder=1)
    axes.grid(axis="y", color=FAINT)
    axes.set_axisbelow(True)
    axes.set_xlabel("context (tokens); dotted: the original")
