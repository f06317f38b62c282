"""What a task asks: examples, each a context and questions about it whose answers are known.

A context and any one of its questions, with the answer, are exactly as many tokens as the length under test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from yarn_ops.data.haystack import Ids
from yarn_ops.errors import DataError

Tokens = tuple[int, ...]

WRONG_CHOICES = 3
"""so chance is .25"""
EQUAL_TRIES = 2000
"""draws of keys and values until one has as many tokens as the first"""


@dataclass(frozen=True)
class Question:
    """Asked at the end of a context; several of one context do not see one another."""

    prompt: Tokens
    """not empty"""
    answer: Tokens
    choices: tuple[Tokens, ...] = ()
    """wrong answers that are as likely a priori: the forced choice is between them and the answer"""
    part: int | None = None
    """which equal part of the context holds the answer, 0 = farthest from the question"""
    distance: int = 0
    """tokens from where the needle starts to where its answer is asked for; 0: not counted"""
    planted: bool = True
    """False: the control, whose needle was left out; what is answered there is guessed"""
    close: Tokens = ()
    """what ends the answer where another question follows (`in_turn`)"""
    follow: Callable[[str], str | None] | None = None
    """of a chain: the question that a reply leads to; None when it leads nowhere"""
    form: str = ""
    """which of the forms that are planted in one text; their answers are scored apart"""

    @property
    def tokens(self) -> int:
        return len(self.prompt) + len(self.answer)

    @property
    def answers(self) -> tuple[Tokens, ...]:
        """The right one, then the choices."""
        return self.answer, *self.choices


@dataclass(frozen=True, eq=False)
class Example:
    context: Ids
    questions: tuple[Question, ...]

    def in_turn(self) -> tuple[Ids, list[int]]:
        """The context and all its questions with their answers, one after the other; where each answer
        starts."""
        pieces: list[Sequence[int]] = [self.context.tolist()]
        starts, at = [], len(self.context)
        for question in self.questions:
            starts.append(at + len(question.prompt))
            pieces += [question.prompt, question.answer, question.close]
            at = starts[-1] + len(question.answer) + len(question.close)
        return np.fromiter((token for piece in pieces for token in piece), dtype=np.int64), starts


@dataclass(frozen=True)
class Needle:
    """Something to find: how it is planted, how it is asked for, what is right."""

    plant: Tokens
    prompt: Tokens
    answer: Tokens
    close: Tokens = ()
    form: str = ""
    """as `Question.form`"""

    @property
    def asking(self) -> int:
        """Tokens of the question with its answer."""
        return len(self.prompt) + len(self.answer) + len(self.close)

    def question(
        self, part: int | None, distance: int = 0, choices: tuple[Tokens, ...] = (), *, planted: bool = True
    ) -> Question:
        return Question(
            self.prompt, self.answer, choices, part, distance, planted, self.close, form=self.form
        )


def draw_equal(count: int, draw: Callable[[], Needle]) -> list[Needle]:
    """`count` needles whose questions, and whose answers, have as many tokens as the first one's, with
    different answers; DataError when the tokenizer makes none."""
    needles = [draw()]
    lengths = len(needles[0].prompt), len(needles[0].answer)
    for _ in range(EQUAL_TRIES * count):
        if len(needles) == count:
            break
        other = draw()
        if (len(other.prompt), len(other.answer)) == lengths and all(
            other.answer != needle.answer for needle in needles
        ):
            needles.append(other)
    if len(needles) == count:
        return needles
    raise DataError("this tokenizer gives no two questions of equal length; the task cannot be asked exactly")


def questions_of(
    needles: Sequence[Needle], parts: Sequence[int], distances: Sequence[int], *, planted: bool = True
) -> tuple[Question, ...]:
    """One question a needle; the answers of the next three needles, round to the first, are its choices."""
    others = min(WRONG_CHOICES, len(needles) - 1)
    return tuple(
        needle.question(
            part, distance,
            tuple(needles[(number + step) % len(needles)].answer for step in range(1, others + 1)),
            planted=planted,
        )
        for number, (needle, part, distance) in enumerate(zip(needles, parts, distances, strict=True))
    )  # fmt: skip


def control_of(control: Needle, needles: Sequence[Needle]) -> Question:
    """The question for a needle that was not planted, among values that were."""
    return control.question(
        None, choices=tuple(needle.answer for needle in needles[:WRONG_CHOICES]), planted=False
    )


def plant(filler: Ids, plants: Sequence[Sequence[int]], offsets: Sequence[int]) -> tuple[Ids, list[int]]:
    """`filler` with every plant put before filler[offset]; and where each plant starts in the result."""
    order = sorted(range(len(plants)), key=lambda index: offsets[index])
    pieces: list[Ids] = []
    starts, at, last = [0] * len(plants), 0, 0
    for index in order:
        pieces += [filler[last : offsets[index]], np.asarray(plants[index], dtype=np.int64)]
        last = offsets[index]
        starts[index] = at + len(pieces[-2])
        at = starts[index] + len(pieces[-1])
    pieces.append(filler[last:])
    return np.concatenate(pieces), starts


def require_room(task: str, filler_tokens: int, least: int, context_tokens: int) -> None:
    """DataError when nothing is left of a length once needles and questions are in it."""
    if filler_tokens < least:
        raise DataError(
            f"{task}: {context_tokens} tokens cannot hold it ({least - filler_tokens} too few); "
            "measure longer texts"
        )
