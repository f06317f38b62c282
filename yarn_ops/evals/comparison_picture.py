"""The picture of a comparison: perplexity and recall against length, one line a method, one row an arm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from yarn_ops.evals.perplexity import LAST_QUARTER
from yarn_ops.evals.pictures import FAINT, INK, MUTED, STYLE, save
from yarn_ops.evals.recall import TEMPLATES, task_name
from yarn_ops.records import Comparison, Scorecard

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D", "#A5AA99", "#4B4B8F")
"""Okabe and Ito's, then distinct in lightness"""
MARKERS = "osD^vPX*h"


def draw_comparison(comparison: Comparison, before: Scorecard, path: Path) -> None:
    """One PNG; the base is the dashed grey line everywhere."""
    arms = list(dict.fromkeys(contender.arm for contender in comparison.contenders))
    methods = list(dict.fromkeys(contender.method for contender in comparison.contenders))
    with rc_context(STYLE | {"axes.titlepad": 10}):
        figure = Figure(figsize=(12.5, 0.9 + 3.9 * len(arms)), layout=ConstrainedLayoutEngine(wspace=0.08))
        grid = figure.subplots(len(arms), 2, squeeze=False)
        for (left, right), arm in zip(grid, arms, strict=True):
            cards = {c.method: c.scores for c in comparison.contenders if c.arm == arm}
            _perplexity(left, before, cards, methods)
            left.set_title(f"Perplexity, {arm}")
            _recall(right, before, cards, methods)
            right.set_title(f"Recall, {arm}")
            for axes in (left, right):
                _length_axis(axes, comparison, before)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        save(figure, path)


def _perplexity(axes: Any, before: Scorecard, cards: dict[str, Scorecard], methods: Sequence[str]) -> None:
    axes.set_yscale("log")
    _lines(axes, before, cards, methods, LAST_QUARTER)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("perplexity, last quarter of the window")


def _recall(axes: Any, before: Scorecard, cards: dict[str, Scorecard], methods: Sequence[str]) -> None:
    measured = {score.task for score in before.scores}
    template = next((name for name in TEMPLATES if task_name(name) in measured), next(iter(TEMPLATES)))
    _lines(axes, before, cards, methods, task_name(template))
    axes.set_ylim(-0.04, 1.06)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axes.set_ylabel(f"{template} pairs found")


def _lines(
    axes: Any, before: Scorecard, cards: dict[str, Scorecard], methods: Sequence[str], task: str
) -> None:
    axes.plot(*_curve(before, task), color=MUTED, linestyle="--", linewidth=1.6, label="base")
    for method, card in cards.items():
        place = methods.index(method)
        axes.plot(
            *_curve(card, task), color=COLOURS[place % len(COLOURS)], marker=MARKERS[place % len(MARKERS)],
            markersize=5.5, linewidth=2, alpha=0.9, label=method,
        )  # fmt: skip


def _curve(card: Scorecard, task: str) -> tuple[list[int], list[float]]:
    scores = sorted(
        (score for score in card.scores if score.task == task and score.depth is None),
        key=lambda score: score.context_tokens,
    )
    return [score.context_tokens for score in scores], [score.value for score in scores]


def _length_axis(axes: Any, comparison: Comparison, before: Scorecard) -> None:
    axes.set_xscale("log", base=2)
    lengths, _ = _curve(before, LAST_QUARTER)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axvline(comparison.original_context_tokens, color=INK, linestyle=":", linewidth=1, zorder=1)
    axes.grid(axis="y", color=FAINT)
    axes.set_axisbelow(True)
    axes.set_xlabel("context (tokens); dotted: the original")
