"""Methods side by side on one base: the same data, budget and seeds; one table, one picture, one winner."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from yarn_ops.evals.gate import judge
from yarn_ops.evals.paired import loss_change_interval
from yarn_ops.evals.perplexity import LAST_QUARTER
from yarn_ops.evals.recall import TEMPLATES, task_name
from yarn_ops.recipe import Gate
from yarn_ops.records import Comparison, Contender, Score, Scorecard

TABLE, PICTURE, ROWS = "comparison.md", "comparison.png", "comparison.json"
UNITS = ((1e3, "k"), (1e6, "M"), (1e9, "G"))


@dataclass(frozen=True)
class Entry:
    """One arm as measured."""

    method: str
    arm: str
    scores: Scorecard
    trained_parameters: int


def compare(gate: Gate, before: Scorecard, entries: Sequence[Entry], out: Path) -> Comparison:
    """Judge every entry by the gate; write table, picture and rows into `out`.

    The winner is, of those that pass, the one that recalls most at the target context, then the one with
    the lowest perplexity there; none when none passes.
    """
    from yarn_ops.evals.comparison_picture import draw_comparison

    contenders = tuple(_contender(gate, before, entry) for entry in entries)
    comparison = Comparison(
        original_context_tokens=before.original_context_tokens,
        target_context_tokens=_target(before),
        contenders=contenders,
        winner=_winner(contenders),
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
    lengths, templates = _lengths(before), _templates(before)
    heads = ["method", "arm", "trained", f"perplexity at {_joined(lengths)}"]
    heads += [f"{template} recall" for template in templates] + ["short change", "gate"]
    rows = [_row(["base", "as it is", ""], before, before, lengths, templates, "")]
    for contender in comparison.contenders:
        verdict = "passed" if contender.verdict.passed else "failed"
        if comparison.winner == contender.name:
            verdict += ", **winner**"
        names = [contender.method, contender.arm, parameter_count(contender.trained_parameters)]
        rows.append(_row(names, contender.scores, before, lengths, templates, verdict))
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def parameter_count(count: int) -> str:
    """Three digits of it, as 75 k, 4.98 M, 8.03 G; nothing for none."""
    if not count:
        return ""
    scale, unit = next((pair for pair in UNITS if count < 999.5 * pair[0]), UNITS[-1])
    return f"{count / scale:.3g} {unit}"


def _contender(gate: Gate, before: Scorecard, entry: Entry) -> Contender:
    verdict = judge(
        gate,
        before,
        entry.scores,
        original_context_tokens=before.original_context_tokens,
        target_context_tokens=_target(before),
    )
    return Contender(
        method=entry.method,
        arm=entry.arm,
        trained_parameters=entry.trained_parameters,
        scores=entry.scores,
        verdict=verdict,
    )


def _winner(contenders: Iterable[Contender]) -> str | None:
    passed = [contender for contender in contenders if contender.verdict.passed]
    return max(passed, key=_merit).name if passed else None


def _merit(contender: Contender) -> tuple[float, float]:
    card, target = contender.scores, _target(contender.scores)
    recalls = [
        score.value
        for score in _over_depths(card)
        if score.task in _recall_tasks() and score.context_tokens == target
    ]
    perplexity = card.value(LAST_QUARTER, target)
    return sum(recalls) / len(recalls) if recalls else 0.0, -(perplexity or float("inf"))


def _row(
    names: list[str],
    card: Scorecard,
    before: Scorecard,
    lengths: list[int],
    templates: list[str],
    verdict: str,
) -> list[str]:
    perplexities = [card.value(LAST_QUARTER, length) for length in lengths]
    cells = [*names, _joined(_short(value) for value in perplexities)]
    for template in templates:
        scores = [_score(card, task_name(template), length) for length in lengths]
        cells.append(f"{_joined(_share(score) for score in scores)}{_interval(scores[-1])}")
    return [*cells, _change(card, before), verdict]


def _change(card: Scorecard, before: Scorecard) -> str:
    """Of perplexity at the original context, in percent of the base's; with its interval where it has one."""
    length = before.original_context_tokens
    old, new = (_score(one, LAST_QUARTER, length) for one in (before, card))
    if old is None or new is None:
        return ""
    told = f"{100 * (new.value / old.value - 1):+.1f} %"
    interval = loss_change_interval(old, new)
    if interval is None or card is before:
        return told
    low, high = (100 * math.expm1(bound) for bound in interval)
    return f"{told} [{low:+.1f}, {high:+.1f}]"


def _over_depths(card: Scorecard) -> Iterator[Score]:
    return (score for score in card.scores if score.depth is None)


def _score(card: Scorecard, task: str, length: int) -> Score | None:
    found = (s for s in _over_depths(card) if (s.task, s.context_tokens) == (task, length))
    return next(found, None)


def _lengths(card: Scorecard) -> list[int]:
    return sorted({score.context_tokens for score in _over_depths(card) if score.task == LAST_QUARTER})


def _target(card: Scorecard) -> int:
    return _lengths(card)[-1]


def _recall_tasks() -> list[str]:
    return [task_name(template) for template in TEMPLATES]


def _templates(card: Scorecard) -> list[str]:
    measured = {score.task for score in card.scores}
    return [template for template in TEMPLATES if task_name(template) in measured]


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _share(score: Score | None) -> str:
    return "–" if score is None else f"{score.value:.2f}"


def _interval(score: Score | None) -> str:
    return "" if score is None or score.low is None else f" [{score.low:.2f}, {score.high:.2f}]"


def _joined(values: Iterable[object]) -> str:
    return " / ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in values)
