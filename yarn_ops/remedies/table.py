"""The side by side as rows of text."""

from __future__ import annotations

from yarn_ops.evals.names import CONTINUATION, template_of
from yarn_ops.remedies.side_by_side import PARTS, Row, SideBySide, by_part, part_depth, recall_tasks
from yarn_ops.shown import size


def lines(side: SideBySide) -> list[str]:
    """The table as plain text, its head two lines."""
    heads = _heads(side)
    rows = [list(line) for line in zip(*heads, strict=True)] + [_cells(side, row) for row in side.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _heads(side: SideBySide) -> list[tuple[str, str]]:
    recall = []
    for task in recall_tasks(side.rows):
        if by_part(side.rows, task):
            recall.append((f"{template_of(task)}, by quarter", "farthest → nearest"))
        recall.append((template_of(task), "all [95 %]"))
    costs = [("prepare", "s"), ("answer", "ms"), ("memory", "peak"), ("memory", "held")]
    tokens = [("read to", "prepare"), ("read to", "answer"), ("tokens", "seen")]
    return [("", "remedy"), *recall, ("perplexity", ""), *costs, *tokens]


def _cells(side: SideBySide, row: Row) -> list[str]:
    recall = []
    for task in recall_tasks(side.rows):
        if by_part(side.rows, task):
            values = (row.value(task, part_depth(part)) for part in range(PARTS))
            recall.append(" ".join("" if value is None else f"{value:.2f}" for value in values))
        whole = row.score(task)
        recall.append(f"{whole.value:.2f} [{whole.low:.2f} {whole.high:.2f}]" if whole else "")
    perplexity = row.value(CONTINUATION)
    return [
        row.remedy,
        *recall,
        "" if perplexity is None else f"{perplexity:.1f}",
        f"{row.prepare_s:.3f}",
        f"{1000 * row.answer_s:.1f}",
        "" if row.peak_bytes is None else size(row.peak_bytes),
        size(row.held_bytes),
        *(f"{count:,}" for count in (row.prepare_tokens, row.answer_tokens, row.seen_tokens)),
    ]
