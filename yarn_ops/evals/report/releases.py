"""Released versions side by side: what each is, and every cell that all of them were measured by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from yarn_ops.errors import EvaluationError
from yarn_ops.evals.conditions import compared
from yarn_ops.evals.intervals import Interval, bounds, change_interval
from yarn_ops.evals.names import BY_POSITION
from yarn_ops.evals.report.page import figure_of, image, table, whole_page
from yarn_ops.evals.report.titles import title_of
from yarn_ops.scores import SameCell, Score, Scorecard

PAGE, PICTURE = "releases.html", "releases.png"
NOTE = (
    "Only cells that all of them were asked alike: task, length, protocol, texts, seed. Change: perplexity "
    "/ A's, other scores less A's. Brackets: 95 %, each cell by itself; paired by item, but * made of both "
    "scores' own intervals, since no items are kept."
)


@dataclass(frozen=True)
class ReleaseFacts:
    """A released version: what was trained, how far it reaches, what its run cost."""

    name: str
    version: int
    aliases: tuple[str, ...]
    gate: str
    run: str
    method: str
    factor: float
    trained: str
    """lora or full; nothing where its run has no training"""
    steps: int
    """of all legs"""
    tokens_seen: int
    sees: Score | None
    uses: Score | None
    seconds: float | None
    """of its run, stages that were reused left out; None: nothing was kept"""
    device_s: float | None
    dollars: float | None

    @property
    def title(self) -> str:
        return f"{self.name}:{self.version}"


class ScoreChange(NamedTuple):
    """Of the first release's score: a ratio of perplexities, a difference of others."""

    value: float
    interval: Interval | None
    paired: bool


@dataclass(frozen=True)
class ComparedCell:
    """One cell that all were measured by; the first release has no change."""

    cell: SameCell
    scores: tuple[Score, ...]
    changes: tuple[ScoreChange | None, ...]


@dataclass(frozen=True)
class ReleaseComparison:
    releases: tuple[ReleaseFacts, ...]
    rows: tuple[ComparedCell, ...]
    left_out: tuple[int, ...]
    """cells of each release that not all have"""

    @property
    def shown(self) -> list[ComparedCell]:
        """Of a task at a length, over all depths, that may have been asked in several ways, the one with
        the most samples; no loss of a single position, of which there are many."""
        whole = (row for row in self.rows if row.cell.depth is None and row.cell.task != BY_POSITION)
        over_all = sorted(whole, key=lambda row: row.scores[0].samples)
        best = {(row.cell.task, row.cell.context_tokens): row for row in over_all}
        return [best[key] for key in sorted(best)]


def compare_cells(
    releases: Sequence[ReleaseFacts], scores: Sequence[dict[SameCell, Score]]
) -> ReleaseComparison:
    """The cells that all have, by task, length and depth. EvaluationError where there is none."""
    common = set.intersection(*map(set, scores))
    if not common:
        raise EvaluationError(
            f"{', '.join(one.title for one in releases)}: no cell in common, since they were measured on "
            "other texts, lengths or seeds; pull them and `yarn-ops evaluate` one with the other as --base"
        )
    cells = sorted(
        common,
        key=lambda cell: (cell.task, cell.context_tokens, cell.seed, cell.depth or -1.0, cell.protocol),
    )
    rows = []
    for cell in cells:
        first, *others = (found[cell] for found in scores)
        rows.append(
            ComparedCell(cell, (first, *others), (None, *(_change(first, other) for other in others)))
        )
    return ReleaseComparison(
        tuple(releases), tuple(rows), tuple(len(found) - len(common) for found in scores)
    )


def _change(first: Score, other: Score) -> ScoreChange:
    ratio = first.task.startswith("perplexity/") and min(first.value, other.value) > 0
    value, interval = compared(other, first, "ratio" if ratio else "difference")
    return ScoreChange(
        value, interval, change_interval(first, other, "ratio" if ratio else "difference") is not None
    )


def letter(place: int) -> str:
    """A, B, …, Z, A1, …"""
    return chr(ord("A") + place % 26) + (str(place // 26) if place >= 26 else "")


def facts_table(side: ReleaseComparison) -> list[list[str]]:
    """Heads, then a row a fact and a column a release."""
    from yarn_ops.shown import duration

    def spent(seconds: float | None) -> str:
        return "not kept" if seconds is None else duration(seconds)

    def reach(score: Score | None) -> str:
        if score is None:
            return "not measured"
        low, high = score.bounds
        return f"{score.value:,.0f}" + (f" [{low:,.0f}, {high:,.0f}]" if low < high else "")

    def column(place: int, one: ReleaseFacts) -> list[str]:
        return [
            letter(place), one.title, ", ".join(one.aliases), one.gate,
            f"{one.method} ×{one.factor:g}", one.trained or "nothing",
            f"{one.steps:,}", f"{one.tokens_seen:,}", reach(one.sees), reach(one.uses), spent(one.seconds),
            spent(one.device_s), "not kept" if one.dollars is None else f"{one.dollars:,.4f}",
        ]  # fmt: skip

    heads = [
        "", "release", "aliases", "gate", "RoPE", "trained", "steps", "tokens seen", "sees to", "uses to",
        "its run took", "on device", "$",
    ]  # fmt: skip
    columns = [column(place, one) for place, one in enumerate(side.releases)]
    return [list(row) for row in zip(heads, *columns, strict=True)]


def cell_table(side: ReleaseComparison, tasks: Sequence[str] = ()) -> list[list[str]]:
    """Heads, then of each cell that is shown a row a release; tasks: only these, or all."""
    lines = [["score", "tokens", "", "value", "change from A"]]
    for row in side.shown:
        if tasks and row.cell.task not in tasks:
            continue
        for place, (score, change) in enumerate(zip(row.scores, row.changes, strict=True)):
            named = [title_of(score.task), f"{score.context_tokens:,}"] if place == 0 else ["", ""]
            lines.append([*named, letter(place), figure_of(score), _told(score, change)])
    return lines


def _told(score: Score, change: ScoreChange | None) -> str:
    if change is None:
        return ""
    ratio = score.task.startswith("perplexity/")
    told = f"×{change.value:.3f}" if ratio else f"{round(change.value, 2) + 0.0:+.2f}"
    mark = " *" if change.interval and not change.paired else ""
    return f"{told}{bounds(change.interval, 3 if ratio else 2)}{mark}"


def as_json(side: ReleaseComparison) -> dict[str, Any]:
    """All of it, depths included."""

    def reached(score: Score | None) -> dict[str, float | None] | None:
        return None if score is None else {"tokens": score.value, "low": score.low, "high": score.high}

    releases = [
        asdict(one) | {"sees": reached(one.sees), "uses": reached(one.uses), "cells_left_out": out}
        for one, out in zip(side.releases, side.left_out, strict=True)
    ]
    cells = [
        row.cell._asdict() | {
            "measure": "ratio" if row.cell.task.startswith("perplexity/") else "difference",
            "values": [
                {
                    "release": one.title, **score.model_dump(include={"value", "low", "high", "samples"}),
                    "change": None if change is None else change._asdict(),
                }
                for one, score, change in zip(side.releases, row.scores, row.changes, strict=True)
            ],
        }
        for row in side.rows
    ]  # fmt: skip
    return {"releases": releases, "cells": cells}


def write(side: ReleaseComparison, out: Path) -> Path:
    """releases.html, with everything in it, and releases.png into `out`; the page's path."""
    from yarn_ops.evals.report.comparison_picture import draw_releases

    cards = {
        f"{letter(place)} {one.title}": Scorecard(
            model_digest="", original_context_tokens=1, scores=tuple(row.scores[place] for row in side.shown)
        )
        for place, one in enumerate(side.releases)
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        draw_releases(cards, out / PICTURE)
        (out / PAGE).write_text(_html(side, (out / PICTURE).read_bytes()), "utf-8")
    except OSError as error:
        raise EvaluationError(f"{out}: the page cannot be written ({error.strerror})") from None
    return out / PAGE


def _html(side: ReleaseComparison, picture: bytes) -> str:
    title = " beside ".join(one.title for one in side.releases)

    def head() -> Iterator[str]:
        yield f"<h1>{escape(title)}</h1>"
        heads, *rows = facts_table(side)
        yield from table(heads, rows)
        yield from image("Perplexity and recall by length", picture)

    def cells() -> Iterator[str]:
        yield "<h2>Measured alike</h2>"
        heads, *rows = cell_table(side)
        yield from table(heads, rows)
        yield f"<p><small>{escape(NOTE)} {escape(told_left_out(side))}</small></p>"

    return whole_page(title, (head(), cells()))


def told_left_out(side: ReleaseComparison) -> str:
    """How many cells not all have."""
    counts = [f"{letter(place)} {count}" for place, count in enumerate(side.left_out)]
    return f"Cells that not all of them have: {', '.join(counts)}."
