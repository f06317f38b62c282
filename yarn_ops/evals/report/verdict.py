"""The verdict card: what came of an extension and what to do next, the same wherever a person meets it.

It is made once, with the report, as rows (label, text) in English. The terminal prints `as_text` of them;
Prefect's report, MLflow's description and the model card hold `as_markdown`: each in the settings' language.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len

from yarn_ops.languages import LANGUAGES, said
from yarn_ops.scores import BeforeAfter, Scorecard, Verdict

if TYPE_CHECKING:  # torch and scipy: not for what only shows a card
    from yarn_ops.evals.capacity import Capacity
    from yarn_ops.evals.reach import Length

Rows = tuple[tuple[str, str], ...]
COMMANDS = ("pull", "serve", "look", "approve")
"""labels of rows that hold a command"""
COLUMNS = 80
LABEL_COLUMNS = 10
GLANCE = "glance.png"
"""file of a report: the picture that stands below the card in MLflow"""
REMEDIES = {
    "base uses its window": "Take a base that finds what is within its own window: this one does not",
    "long gain": "Train longer (train.steps) on documents as long as the target",
    "long growth": "Train longer (train.steps) on documents as long as the target",
    "short loss": "Train more gently (train.learning_rate), or for a shorter target",
    "short recall loss": "Train more gently (train.learning_rate), or for a shorter target",
    "skill loss": "Train more gently (train.learning_rate), or for a shorter target",
}
MOST_BEYOND = 4.0
"""times target / original: the largest factor advised, as nothing beyond it was tried (decision 55)"""
USE = ("recall kept", "share used", "recall at the target")
"""checks of how much of its window a model uses"""


def verdict_rows(
    name: str,
    alias: str,
    verdict: Verdict,
    scores: BeforeAfter[Scorecard],
    capacities: BeforeAfter[Capacity],
    target_context_tokens: int,
    factor: float,
    *,
    approval: bool = False,
) -> Rows:
    """The card of one model: promoted or rejected, sees and uses, what failed, what next.

    approval: a person has to promote it, so that it is no more than passed.
    """
    original, directory = scores.after.original_context_tokens, f"./{name}"
    before, after = (capacity.reach for capacity in capacities)
    rows = [
        (
            ("passed" if approval else "promoted") if verdict.passed else "rejected",
            f"{name}, {original:,} to {target_context_tokens:,} tokens",
        ),
        ("sees", f"{_reached(before.sees)} → {_reached(after.sees)} tokens"),
        ("uses", f"{_reached(before.uses)} → {_reached(after.uses)} tokens"),
    ]
    rows += [("fails", check.reason) for check in verdict.checks if not check.passed]
    if verdict.passed:
        from yarn_ops.evals.advice import advise

        reasons = advise(scores, target_context_tokens).reasons
        if approval:
            rows.append(("next", "A person promotes it: the form of its run, or yarn-ops approve"))
        rows += [("next", f"{reason[0].upper()}{reason[1:]}") for reason in reasons]
        rows.append(("pull", f"yarn-ops pull {name} --alias {alias} --to {directory}"))
        rows.append(("serve", f"yarn-ops export {directory} --for vllm"))
    else:
        rows += [
            ("next", step) for step in _remedies(verdict, after.uses, original, target_context_tokens, factor)
        ]
        rows.append(("look", f"yarn-ops pull {name} --any-gate --to {directory}"))
    return tuple(rows)


def as_text(rows: Sequence[tuple[str, str]], columns: int = COLUMNS, language: str = "en") -> Iterator[str]:
    """Lines for a terminal; a command stays on one line, so that it can be copied."""
    for (label, _), (shown, text) in zip(rows, in_language(rows, language), strict=True):
        head = shown + " " * max(1, LABEL_COLUMNS - cell_len(shown))
        if label in COMMANDS:
            yield head + text
            continue
        for line in _wrapped(text, columns - cell_len(head)):
            yield head + line
            head = " " * LABEL_COLUMNS


def in_language(rows: Sequence[tuple[str, str]], language: str) -> Rows:
    """The card in another language; commands, names and figures stay as they are."""
    return tuple(
        (said(label, language), text if label in COMMANDS else said(text, language)) for label, text in rows
    )


def as_markdown(rows: Sequence[tuple[str, str]], language: str = "en") -> str:
    """The outcome and a list: a table's long cells are cut off in Prefect's pages."""
    commands = {said(label, language) for label in COMMANDS}
    (outcome, what), *rest = in_language(rows, language)
    lines = [f"**{outcome.capitalize()}: {what}**", ""]
    lines += [f"- {label}: {f'`{text}`' if label in commands else text}" for label, text in rest]
    return "\n".join(lines)


def reached_in(card: str) -> dict[str, int | None]:
    """{sees, uses} in tokens of the result, as a model card says; None: not measured. What it leaves out is
    left out."""
    found: dict[str, int | None] = {}
    unmeasured = "|".join(said("not measured", language) for language in LANGUAGES)
    for label in ("sees", "uses"):
        names = "|".join(said(label, language) for language in LANGUAGES)
        line = re.search(
            rf"^- (?:{names}): .* → (?:([\d,]+)(?: \[.*\])?|{unmeasured}) tokens$", card, re.MULTILINE
        )
        if line is not None:
            found[label] = None if line[1] is None else int(line[1].replace(",", ""))
    return found


def _wrapped(text: str, columns: int) -> Iterator[str]:
    """Lines of at most so many columns: Chinese breaks between any two characters, but not before a mark."""
    line = ""
    for piece in re.findall(
        r"\s+|（?(?:[\u2e80-\u9fff\uff00-\uffef]|[^\s\u2e80-\u9fff\uff00-\uffef]+)[，。；：、）]*", text
    ):
        if line.strip() and cell_len(line + piece) > columns:
            yield line.rstrip()
            line = ""
        line += piece if line or piece.strip() else ""
    yield line.rstrip()


def _reached(length: Length | None) -> str:
    """2,048 [1,024, 2,048], with the 95 % interval where there is one."""
    if length is None:
        return "not measured"
    within = "" if length.low == length.high else f" [{length.low:,}, {length.high:,}]"
    return f"{length.tokens:,}{within}"


def _remedies(
    verdict: Verdict, uses: Length | None, original: int, target: int, factor: float
) -> Iterator[str]:
    """What to do about every check that failed; each once."""
    failed = [check for check in verdict.checks if not check.passed]
    measured = [check.name for check in failed if check.measured is not None]
    yield from dict.fromkeys(REMEDIES[name] for name in measured if name in REMEDIES)
    if any(check.name in USE and check.measured is not None for check in failed):
        yield "Train on exercises (train.exercises.share=1), or longer on them (train.steps)"
        if 2 * factor <= MOST_BEYOND * target / original:
            yield (
                f"Or turn positions back further: rope.factor={2 * factor:.12g} with "
                f"rope.target_context_tokens={target}"
            )
        if uses is not None and original < uses.tokens < target:
            yield f"Ask for rope.target_context_tokens={uses.tokens}: it uses {uses.tokens:,} tokens"
    if any(check.measured is None for check in failed):
        yield "Measure what the gate asks for (section evaluate), or empty that threshold"
    if any(" " in check.name and "/" in check.name for check in failed):  # conditions are named by scores
        yield "See gate.conditions of its recipe: a changed gate costs seconds"
