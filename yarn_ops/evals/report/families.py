"""Use beyond needles, before and after: families of tasks, and whether their kind was trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from yarn_ops.evals.capacity import interval, tokens
from yarn_ops.evals.conditions import compared
from yarn_ops.evals.intervals import bounds, figure
from yarn_ops.evals.names import CHAT, CHAT_ENDS, CLOZE, FAR_PASSAGE, ORDER, TRAINED
from yarn_ops.evals.reach import KEPT, Length, reach_of
from yarn_ops.scores import BeforeAfter, Score, Scorecard

FAMILIES = {
    TRAINED: ("needles found, forms of exercises", "lookup"),
    "needle/code": ("needles found, code form", "lookup"),
    "needle/prose": ("needles found, prose", "lookup"),
    "passkey": ("passkey in its published words", "lookup"),
    "multi-key": ("one of sixteen keys", "lookalikes"),
    "key-value": ("one of the lines of JSON", "table"),
    "two-hop": ("value at the end of two hops", "chain"),
    "count": ("how many ballots", "count"),
    "most-frequent": ("who has most ballots", "count"),
    "no-overlap": ("fact that shares no word with its question", "association"),
    "many-shot": ("label of a passage, from many shots", None),
    "hard-negative": ("passage among those most like it (BM25)", "section"),
    FAR_PASSAGE: ("nats lost where a far passage is removed", None),
}
"""of a task: its name in the table, the kind of exercise nearest to it; only the first has its forms"""

SHORT_SKILLS = {
    CLOZE: "short texts continued, chosen from four",
    ORDER: "order of what follows, of two",
    CHAT_ENDS: "answers in a chat that end",
    CHAT: "answers in a chat (nats a token)",
}


def family_rows(
    cards: BeforeAfter[Scorecard], trained: Sequence[str] | None
) -> tuple[list[str], list[list[str]]]:
    """(heads, rows) of a table: at the original and at the longest length, and what changed at the longest.

    trained: kinds of exercises; None: not known. No rows where no family was measured beside needles.
    """
    original = cards.before.original_context_tokens
    measured = [task for task in FAMILIES if cards.after.by_length(task)]
    if not set(measured) - {"needle/code", "needle/prose"}:
        return [], []
    heads = ["", *(["kind trained"] if trained is not None else [])]
    target = max(cards.after.by_length(task)[-1].context_tokens for task in measured)
    heads += [f"{when} at {tokens(length)}" for length in (original, target) for when in ("before", "after")]
    rows = []
    for task in measured:
        name, kind = FAMILIES[task]
        row = [name] if trained is None else [name, (kind or "none") if kind in trained else "none"]
        for length in (original, target):
            row += [_figure(card.score(task, length)) for card in cards]
        before, after = (card.score(task, target) for card in cards)
        rows.append([*row, _change(before, after)])
    return [*heads, f"change at {tokens(target)}"], rows


def skill_rows(cards: BeforeAfter[Scorecard]) -> list[list[str]]:
    """Of short skills: name, before, after, change item by item; none unmeasured."""
    rows = []
    for task, name in SHORT_SKILLS.items():
        (before, *_), (after, *_) = ((*card.by_length(task), None) for card in cards)
        if before is not None and after is not None:
            rows.append([name, _figure(before), _figure(after), _change(before, after)])
    return rows


def told(cards: BeforeAfter[Scorecard]) -> Iterator[str]:
    """Sentences: what does not reach the base's own score, and how far trained and other forms are used."""
    original = cards.before.original_context_tokens
    below = []
    for task, (name, _) in FAMILIES.items():
        own, found = cards.before.score(task, original), cards.after.by_length(task)
        if own is not None and found and found[-1].bounds[1] < own.value:
            below.append(f"{name} ({figure(found[-1])} against {figure(own)})")
    if below:
        yield f"Below the base's own score at {tokens(original)}, by interval: {'; '.join(below)}."
    taught, others = reach_of(cards.after, task=TRAINED).uses, reach_of(cards.after).uses
    if taught is None or others is None:
        return
    yield (
        f"Needles in the exercises' own forms are found to {_reach(taught)} tokens, in forms that no "
        f"exercise has to {_reach(others)}."
    )
    if others.high < KEPT * taught.low:
        yield "The gain shows in trained forms alone."


def _reach(length: Length) -> str:
    return f"{tokens(length)} {interval(length)}".rstrip()


def _change(before: Score | None, after: Score | None) -> str:
    if before is None or after is None:
        return ""
    value, low_high = compared(after, before, "difference")
    return f"{value:+.2f}{bounds(low_high)}"


def _figure(score: Score | None) -> str:
    return "" if score is None else figure(score)
