"""The side by side as rows of text."""

from __future__ import annotations

from collections.abc import Sequence

from yarn_ops.remedies.side_by_side import (
    PARTS,
    PERPLEXITY,
    Row,
    SideBySide,
    part_depth,
    recall_tasks,
)

UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def heads(side: SideBySide) -> list[tuple[str, str]]:
    """Two lines of each column's head."""
    recall = []
    for task in recall_tasks(side.rows):
        name = task.removeprefix("recall/")
        if _by_part(side.rows, task):
            recall.append((f"{name}, by quarter", "farthest → nearest"))
        recall.append((name, "all [95 %]"))
    costs = [("prepare", "s"), ("answer", "ms"), ("memory", "peak"), ("memory", "held")]
    tokens = [("read to", "prepare"), ("read to", "answer"), ("tokens", "seen")]
    return [("", "remedy"), *recall, ("perplexity", ""), *costs, *tokens]


def cells(side: SideBySide, row: Row) -> list[str]:
    """One cell a column of `heads`."""
    recall = []
    for task in recall_tasks(side.rows):
        if _by_part(side.rows, task):
            recall.append(" ".join(_share(row.value(task, part_depth(part))) for part in range(PARTS)))
        recall.append(_with_interval(row, task))
    perplexity = row.value(PERPLEXITY)
    return [
        row.remedy,
        *recall,
        "" if perplexity is None else f"{perplexity:.1f}",
        f"{row.prepare_s:.3f}",
        f"{1000 * row.answer_s:.1f}",
        size(row.peak_bytes),
        size(row.held_bytes),
        f"{row.prepare_tokens:,}",
        f"{row.answer_tokens:,}",
        f"{row.seen_tokens:,}",
    ]


def lines(side: SideBySide) -> list[str]:
    """The table as plain text."""
    named = heads(side)
    rows = [
        [above for above, _ in named],
        [below for _, below in named],
        *(cells(side, row) for row in side.rows),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(named))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def size(count: int | None) -> str:
    """Bytes for people; nothing where not known."""
    if count is None:
        return ""
    for unit, name in UNITS:
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} B"


def _by_part(rows: Sequence[Row], task: str) -> bool:
    return any(row.value(task, part_depth(0)) is not None for row in rows)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _with_interval(row: Row, task: str) -> str:
    for score in row.scores:
        if (score.task, score.depth) == (task, None):
            return f"{score.value:.2f} [{score.low:.2f} {score.high:.2f}]"
    return ""
