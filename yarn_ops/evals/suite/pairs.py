"""Many pairs in one text: key-value lines, and needles that differ only in their key.

- `key-value`: the whole context is lines of JSON, as in Liu et al., Lost in the Middle (2023): every line is
  a pair of identifiers, a few of them are asked for.
- `multi-key`: a run of the documents in which sixteen sentences alike name sixteen keys.
"""

from __future__ import annotations

import string
import uuid

import numpy as np
from numpy.random import Generator

from yarn_ops.evals.suite.haystack import Haystack
from yarn_ops.evals.suite.needles import SHAPES
from yarn_ops.evals.suite.sample import (
    WRONG_CHOICES,
    Item,
    Question,
    Sample,
    draw_equal,
    plant,
    questions_of,
    require_room,
)

ASKED = 8
"""questions of one text, one in each equal part"""
KEYS = 16
MULTI_KEY_SHAPE = "prose"
KEY_VALUE_TASK = "Extract the value corresponding to the specified key in the JSON object below.\n{\n"
KEY_VALUE_LINE = '"{key}": "{value}",\n'
KEY_VALUE_QUESTION = '}}\n\nKey: "{key}"\nCorresponding value: "'
IDENTIFIER_DIGITS = 8
LEAST_LINES = 4


def key_value(haystack: Haystack, context_tokens: int, parts: int, texts: int, seed: int) -> list[Sample]:
    """Lines that fill the length, padded with blank lines to the exact token; DataError when too short."""
    rng = np.random.default_rng([seed, context_tokens, *b"key-value"])
    return [_key_value(haystack, context_tokens, parts, rng) for _ in range(texts)]


def multi_key(haystack: Haystack, context_tokens: int, parts: int, texts: int, seed: int) -> list[Sample]:
    """Sixteen keys at places uniform over the text, each asked for among three others' values."""
    rng = np.random.default_rng([seed, context_tokens, *b"multi-key"])
    return [_multi_key(haystack, context_tokens, parts, rng) for _ in range(texts)]


def _key_value(haystack: Haystack, context_tokens: int, parts: int, rng: Generator) -> Sample:
    encode = haystack.encode
    head = [*haystack.prefix, *encode(KEY_VALUE_TASK)]

    def draw() -> Item:
        key, value = _identifier(rng), _identifier(rng)
        return Item(
            tuple(encode(KEY_VALUE_LINE.format(key=key, value=value))),
            tuple(encode(KEY_VALUE_QUESTION.format(key=key))),
            tuple(encode(value)),
        )

    asked = draw_equal(ASKED + 1, draw)
    control, asked = asked[0], asked[1:]
    room = context_tokens - len(head) - asked[0].asking
    needed = sum(len(item.plant) for item in asked)
    others: list[Item] = []
    while (item := draw()) and needed + len(item.plant) <= room:
        others.append(item)
        needed += len(item.plant)
    require_room("key-value", len(others), LEAST_LINES, context_tokens)
    order = [*asked, *others]
    order = [order[index] for index in rng.permutation(len(order))]
    blank = list(encode("\n"))
    padding = (blank * (room - needed))[: room - needed]
    lines = [token for item in order for token in item.plant]
    context = np.asarray([*head, *padding, *lines], dtype=np.int64)
    starts = np.cumsum([len(head) + len(padding), *(len(item.plant) for item in order)])
    at = {id(item): int(start) for item, start in zip(order, starts, strict=False)}
    questions = _asked(asked, [at[id(item)] for item in asked], len(context), parts)
    return Sample(context, (*questions, _unplanted(control, asked)))


def _multi_key(haystack: Haystack, context_tokens: int, parts: int, rng: Generator) -> Sample:
    encode, shape = haystack.encode, SHAPES[MULTI_KEY_SHAPE]

    def draw() -> Item:
        key, value = "".join(rng.choice(list(string.ascii_lowercase), 4)), str(rng.integers(10_000, 100_000))
        return Item(
            tuple(encode(shape.plant.format(key=key, value=value))),
            tuple(encode(shape.question.format(key=key))),
            tuple(encode(shape.answer.format(value=value))),
        )

    control, *items = draw_equal(KEYS + 1, draw)
    tokens = context_tokens - items[0].asking - sum(len(item.plant) for item in items)
    require_room("multi-key", tokens, 2 * KEYS, context_tokens)
    text = haystack.run(rng, tokens)
    offsets = [int(offset) for offset in rng.integers(len(haystack.prefix), tokens + 1, KEYS)]
    context, starts = plant(text, [item.plant for item in items], offsets)
    questions = _asked(items, starts, len(context), parts)
    return Sample(context, (*questions, _unplanted(control, items)))


def _asked(items: list[Item], starts: list[int], tokens: int, parts: int) -> tuple[Question, ...]:
    where = [min(parts - 1, parts * start // tokens) for start in starts]
    return questions_of(items, where, [tokens - start for start in starts])


def _unplanted(control: Item, items: list[Item]) -> Question:
    return Question(
        control.prompt,
        control.answer,
        tuple(item.answer for item in items[:WRONG_CHOICES]),
        None,
        0,
        planted=False,
    )


def _identifier(rng: Generator) -> str:
    return uuid.UUID(bytes=rng.bytes(16)).hex[:IDENTIFIER_DIGITS]
