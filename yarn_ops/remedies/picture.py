"""The picture of a comparison: recall by distance, tokens seen and seconds, for each remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from yarn_ops.charts import INK, MUTED, STYLE, heat_map, light_grid, save
from yarn_ops.evals.names import template_of
from yarn_ops.remedies.side_by_side import PARTS, SideBySide, by_part, part_depth, recall_tasks

SEEN_COLOUR, TIME_COLOUR = "#0072B2", "#E69F00"


def draw(side: SideBySide, path: Path) -> None:
    """One PNG: recall by distance and family on the left; tokens seen and seconds on the right."""
    rows = len(side.rows)
    with rc_context(STYLE | {"axes.titlepad": 12, "axes.titlesize": 11.5}):
        figure = Figure(
            figsize=(13.5, 2 + 0.48 * rows), layout=ConstrainedLayoutEngine(wspace=0.03, h_pad=0.12)
        )
        recall, seen, seconds = figure.subplots(1, 3, width_ratios=(3.2, 2, 2))
        figure.suptitle(
            f"{side.model}: {side.context_tokens:,} tokens, trained on {side.window_tokens:,}",
            x=0.01, ha="left", weight="bold", fontsize=13.5,
        )  # fmt: skip
        _recall(recall, side)
        _bars(
            seen, [row.seen_tokens for row in side.rows], "Tokens seen by an answer", SEEN_COLOUR, "{:,.0f}"
        )
        _bars(
            seconds, [row.prepare_s + row.answer_s for row in side.rows], "Seconds to an answer",
            TIME_COLOUR, "{:.2g}",
        )  # fmt: skip
        save(figure, path)


def _recall(axes: Any, side: SideBySide) -> None:
    columns: list[tuple[str, str, float | None]] = []
    for task in recall_tasks(side.rows):
        name = template_of(task)
        if by_part(side.rows, task):
            ends = {0: f"{name}\nfarthest", PARTS - 1: f"{name}\nnearest"}
            columns += [(ends.get(part, ""), task, part_depth(part)) for part in range(PARTS)]
        else:
            columns.append((f"{name}\nof two", task, None))
    shares = np.array(
        [[row.value(task, depth) for _, task, depth in columns] for row in side.rows], dtype=float
    )
    heat_map(axes, shares, [row.remedy for row in side.rows], [name for name, *_ in columns], 10)
    axes.set_title("Answered (%), by the quarter that holds the answer")


def _bars(axes: Any, values: list[float], title: str, colour: str, text: str) -> None:
    places = np.arange(len(values))
    axes.barh(places, values, color=colour, height=0.62, zorder=2)
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 2, max(values) * 4)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_yticks([])
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            text.format(value), (value, place), (5, 0), textcoords="offset points", va="center", color=INK
        )
    axes.set_title(title)
    light_grid(axes, "x")
    axes.tick_params(axis="x", colors=MUTED)
