"""What a task asks: a context, and questions about it whose answers are known.

A context and any one of its questions, with the answer, are exactly as many tokens as the length under test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from yarn_ops.errors import DataError

Ids = NDArray[np.int64]
Encode = Callable[[str], Sequence[int]]
"""text -> token ids, no special tokens"""
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
    """tokens from where the needle starts to where its answer is asked for"""
    planted: bool = True
    """False: the control, whose needle was left out; what is answered there is guessed"""

    @property
    def tokens(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True, eq=False)
class Sample:
    context: Ids
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Item:
    """Something to find: how it is planted, how it is asked for, what is right."""

    plant: Tokens
    prompt: Tokens
    answer: Tokens

    @property
    def asking(self) -> int:
        return len(self.prompt) + len(self.answer)

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens of question and of answer: items of one shape are choices for one another."""
        return len(self.prompt), len(self.answer)


def draw_equal(count: int, draw: Callable[[], Item]) -> list[Item]:
    """`count` items of one shape, with different answers; DataError when the tokenizer makes none."""
    items = [draw()]
    for _ in range(EQUAL_TRIES * count):
        if len(items) == count:
            return items
        item = draw()
        if item.shape == items[0].shape and all(item.answer != other.answer for other in items):
            items.append(item)
    if len(items) == count:
        return items
    raise DataError("this tokenizer gives no two questions of equal length; the task cannot be asked exactly")


def questions_of(
    items: Sequence[Item], parts: Sequence[int], distances: Sequence[int], *, planted: bool = True
) -> tuple[Question, ...]:
    """One question an item; the answers of the next three items are its wrong choices."""
    return tuple(
        Question(
            item.prompt,
            item.answer,
            wrong_choices(items, number),
            part,
            distance,
            planted,
        )
        for number, (item, part, distance) in enumerate(zip(items, parts, distances, strict=True))
    )


def wrong_choices(items: Sequence[Item], number: int) -> tuple[Tokens, ...]:
    """Answers of the items after this one, round to the first: three, or as many as there are others."""
    others = min(WRONG_CHOICES, len(items) - 1)
    return tuple(items[(number + step) % len(items)].answer for step in range(1, others + 1))


def plant(filler: Ids, plants: Sequence[Tokens], offsets: Sequence[int]) -> tuple[Ids, list[int]]:
    """`filler` with every plant put before filler[offset]; and where each plant starts in the result."""
    order = sorted(range(len(plants)), key=lambda index: offsets[index])
    pieces: list[Ids] = []
    starts, at, last = [0] * len(plants), 0, 0
    for index in order:
        pieces.append(filler[last : offsets[index]])
        last = offsets[index]
        at += len(pieces[-1])
        starts[index] = at
        pieces.append(np.asarray(plants[index], dtype=np.int64))
        at += len(plants[index])
    pieces.append(filler[last:])
    return np.concatenate(pieces), starts


def uniform_offsets(rng: Generator, count: int, low: int, high: int) -> list[int]:
    """`count` places drawn from low..high inclusive, each with equal chance."""
    return [int(offset) for offset in rng.integers(low, high + 1, count)]


def require_room(task: str, filler_tokens: int, least: int, context_tokens: int) -> None:
    """DataError when nothing is left of a length once needles and questions are in it."""
    if filler_tokens < least:
        raise DataError(
            f"{task}: {context_tokens} tokens cannot hold it ({least - filler_tokens} too few); "
            "measure longer texts"
        )
