"""What all pictures have in common: style and colours, axes of lengths and of shares, heat maps, the PNG.

Colours are Okabe and Ito's and a single-hue map, which survive colour blindness and greyscale print.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

BEFORE_COLOUR, AFTER_COLOUR = "#D55E00", "#0072B2"
INK, MUTED, FAINT = "#1f2328", "#6a737d", "#e4e7eb"
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 10.5, "text.color": INK,
    "axes.titlesize": 12.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 30,
    "axes.labelcolor": MUTED, "axes.edgecolor": MUTED, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "figure.facecolor": "white", "savefig.facecolor": "white", "text.parse_math": False,  # a name may hold $
}  # fmt: skip
SHARES = LinearSegmentedColormap.from_list("shares", ["#eceff3", "#9ecae1", "#3182bd", "#08306b"])
DPI = 160
DECADE = 10.0
FEW_TICKS, MANY_TICKS = (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)
"""of every decade: where an axis spans more than one, and less"""


def save(figure: Figure, path: Path, dpi: int = DPI) -> None:
    """A PNG, the same bytes for the same figure."""
    FigureCanvasAgg(figure).print_figure(path, dpi=dpi, metadata={"Software": None})


def light_grid(axes: Any, axis: str = "y") -> None:
    axes.grid(axis=axis, which="major", color=FAINT, linewidth=0.9)
    axes.set_axisbelow(True)


def length_axis(axes: Any, ticks: Sequence[int], labels: Sequence[str]) -> None:
    """Along x: context in powers of two, with every measured length named."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, labels)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("context (tokens)")
    light_grid(axes)


def perplexity_axis(axes: Any, values: Sequence[float], room: float) -> None:
    """Along y, logarithmic: from the least to the most of `values`, with a factor of `room` at either end."""
    axes.set_yscale("log")
    if values:
        axes.set_ylim(min(values) / room, max(values) * room)
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=MANY_TICKS if high / low < DECADE else FEW_TICKS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("perplexity, last quarter of the window")


def share_axis(axes: Any, label: str) -> None:
    """Along y: 0 to 100 %."""
    axes.set_ylim(-0.04, 1.06)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axes.set_ylabel(label)


def heat_map(axes: Any, shares: Any, rows: Sequence[str], columns: Sequence[str], fontsize: float) -> Any:
    """shares: 0..1, float [rows, columns]; NaN is left blank. The image, for a colour bar."""
    image = axes.imshow(shares, cmap=SHARES, vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        if not np.isnan(share):
            axes.text(
                column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=fontsize,
                color="white" if share > 0.55 else INK,
            )  # fmt: skip
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), columns)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(len(columns) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2.5)
    axes.tick_params(which="minor", length=0)
    return image


def depth_names(count: int) -> list[str]:
    """Of so many depths, the farthest first."""
    return ["farthest", *[""] * (count - 2), "nearest"] if count > 1 else ["all"]


def not_measured(axes: Any) -> None:
    axes.text(0.5, 0.5, "not measured", ha="center", va="center", color=MUTED, transform=axes.transAxes)
    axes.set_axis_off()
