"""Methods side by side on one base: the same data, budget and seeds; one table, one picture, one winner."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from yarn_ops.evals.gate import judge
from yarn_ops.evals.intervals import asked_of_both, bounds, loss_change_interval
from yarn_ops.evals.names import LAST_QUARTER, RECALL, template_of
from yarn_ops.recipe import Gate
from yarn_ops.scores import BeforeAfter, Comparison, Contender, Scorecard
from yarn_ops.shown import markdown_table

TABLE, PICTURE, ROWS = "comparison.md", "comparison.png", "comparison.json"
UNITS = ((1e3, "k"), (1e6, "M"), (1e9, "G"))


class Entry(NamedTuple):
    """One arm as measured."""

    method: str
    arm: str
    scores: Scorecard
    trained_parameters: int


def compare(
    gate: Gate, before: Scorecard, entries: Sequence[Entry], target_context_tokens: int, out: Path
) -> Comparison:
    """Judge every entry by the gate at the target; write table, picture and rows into `out`.

    The winner is, of those that pass, the one that recalls most at the target context, then the one with
    the lowest perplexity there; none when none passes.
    """
    from yarn_ops.evals.report.comparison_picture import draw_comparison

    contenders = tuple(
        Contender(
            **entry._asdict(), verdict=judge(gate, BeforeAfter(before, entry.scores), target_context_tokens)
        )
        for entry in entries
    )
    comparison = Comparison(
        original_context_tokens=before.original_context_tokens,
        target_context_tokens=target_context_tokens,
        contenders=contenders,
        winner=_winner(contenders, target_context_tokens),
        pictures=(PICTURE,),
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / TABLE).write_text(table(comparison, before), "utf-8")
    rows = [contender.model_dump(mode="json") for contender in contenders]
    (out / ROWS).write_text(json.dumps(rows, indent=1), "utf-8")
    draw_comparison(comparison, before, out / PICTURE)
    return comparison


def table(comparison: Comparison, before: Scorecard) -> str:
    """The comparison as a markdown table, the base first; recall with 95 % intervals at the target."""
    lengths = [score.context_tokens for score in before.by_length(LAST_QUARTER)]
    tasks = [task for task in RECALL if before.by_length(task)]
    heads = ["method", "arm", "trained", f"perplexity at {_joined(lengths)}"]
    heads += [f"{template_of(task)} recall" for task in tasks] + ["short change", "gate"]
    rows = [heads, _row(["base", "as it is", ""], before, before, lengths, tasks, "")]
    for contender in comparison.contenders:
        verdict = "passed" if contender.verdict.passed else "failed"
        if comparison.winner == contender.name:
            verdict += ", **winner**"
        names = [contender.method, contender.arm, parameter_count(contender.trained_parameters)]
        rows.append(_row(names, contender.scores, before, lengths, tasks, verdict))
    reasons = [
        f"- {contender.name} fails: {contender.verdict.reasons}"
        for contender in comparison.contenders
        if not contender.verdict.passed
    ]
    told = f"**Winner: {comparison.winner or 'none passed the gate'}**"
    parts = [told, markdown_table(rows, words=len(heads)), "\n".join(reasons)]
    return "\n\n".join(filter(None, parts)) + "\n"


def parameter_count(count: int) -> str:
    """Three digits of it, as 75 k, 4.98 M, 8.03 G; nothing for none."""
    if not count:
        return ""
    scale, unit = next((pair for pair in UNITS if count < 999.5 * pair[0]), UNITS[-1])
    return f"{count / scale:.3g} {unit}"


def _winner(contenders: Iterable[Contender], target: int) -> str | None:
    passed = [contender for contender in contenders if contender.verdict.passed]
    return max(passed, key=lambda contender: _merit(contender.scores, target)).name if passed else None


def _merit(card: Scorecard, target: int) -> tuple[float, float]:
    recalls = [value for task in RECALL if (value := card.value(task, target)) is not None]
    perplexity = card.value(LAST_QUARTER, target)
    return sum(recalls) / len(recalls) if recalls else 0.0, -(perplexity or float("inf"))


def _row(
    names: list[str], card: Scorecard, before: Scorecard, lengths: list[int], tasks: list[str], verdict: str
) -> list[str]:
    def values(task: str, style: str) -> str:
        found = (card.value(task, length) for length in lengths)
        return _joined("–" if value is None else format(value, style) for value in found)

    cells = [*names, values(LAST_QUARTER, ".3g")]
    for task in tasks:
        last = card.score(task, lengths[-1])
        cells.append(f"{values(task, '.2f')}{bounds(last.interval) if last else ''}")
    return [*cells, _change(card, before), verdict]


def _change(card: Scorecard, before: Scorecard) -> str:
    """Of perplexity at the original context, in percent of the base's; with its interval where it has one."""
    length = before.original_context_tokens
    old, new = (one.score(LAST_QUARTER, length) for one in (before, card))
    if old is None or new is None:
        return ""
    old, new = asked_of_both(old, new)
    told = f"{100 * (new.value / old.value - 1):+.1f} %"
    interval = loss_change_interval(old, new)
    if interval is None or card is before:
        return told
    low, high = (100 * math.expm1(bound) for bound in interval)
    return f"{told} [{low:+.1f}, {high:+.1f}]"


def _joined(values: Iterable[object]) -> str:
    return " / ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in values)
