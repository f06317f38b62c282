"""Many pairs in one text: key-value lines, and needles that differ only in their key.

- `key-value`: the whole context is lines of JSON, as in Liu et al., Lost in the Middle (2023): every line is
  a pair of identifiers, a few of them are asked for.
- `multi-key`: a run of the documents in which sixteen sentences alike name sixteen keys.
"""

from __future__ import annotations

import uuid

import numpy as np
from numpy.random import Generator

from yarn_ops.data.haystack import Haystack
from yarn_ops.evals.examples import (
    Example,
    Needle,
    Question,
    control_of,
    draw_equal,
    plant,
    questions_of,
    require_room,
)
from yarn_ops.evals.tasks.needles import Template, draw_many

ASKED = 8
"""questions of one text, one in each equal part"""
KEYS = 16
MULTI_KEY_TEMPLATE = "prose"
KEY_VALUE_TASK = "Extract the value corresponding to the specified key in the JSON object below.\n{\n"
KEY_VALUE = Template('"{key}": "{value}",\n', '}}\n\nKey: "{key}"\nCorresponding value: "', "{value}")
IDENTIFIER_DIGITS = 8
LEAST_LINES = 4


def key_value(haystack: Haystack, context_tokens: int, parts: int, texts: int, seed: int) -> list[Example]:
    """Lines that fill the length, padded with blank lines to the exact token; DataError when too short."""
    rng = np.random.default_rng([seed, context_tokens, *b"key-value"])
    return [_key_value(haystack, context_tokens, parts, rng) for _ in range(texts)]


def multi_key(haystack: Haystack, context_tokens: int, parts: int, texts: int, seed: int) -> list[Example]:
    """Sixteen keys at places uniform over the text, each asked for among three others' values."""
    rng = np.random.default_rng([seed, context_tokens, *b"multi-key"])
    return [_multi_key(haystack, context_tokens, parts, rng) for _ in range(texts)]


def _key_value(haystack: Haystack, context_tokens: int, parts: int, rng: Generator) -> Example:
    encode = haystack.encode
    head = [*haystack.prefix, *encode(KEY_VALUE_TASK)]

    def draw() -> Needle:
        return KEY_VALUE.needle(encode, _identifier(rng), _identifier(rng))

    control, *asked = draw_equal(ASKED + 1, draw)
    room = context_tokens - len(head) - asked[0].asking
    needed = sum(len(needle.plant) for needle in asked)
    others: list[Needle] = []
    while needed + len((line := draw()).plant) <= room:
        others.append(line)
        needed += len(line.plant)
    require_room("key-value", len(others), LEAST_LINES, context_tokens)
    order = [*asked, *others]
    order = [order[index] for index in rng.permutation(len(order))]
    blank = list(encode("\n"))
    padding = (blank * (room - needed))[: room - needed]
    lines = [token for needle in order for token in needle.plant]
    context = np.asarray([*head, *padding, *lines], dtype=np.int64)
    starts = np.cumsum([len(head) + len(padding), *(len(needle.plant) for needle in order)])
    at = {id(needle): int(start) for needle, start in zip(order, starts, strict=False)}
    questions = asked_where(asked, [at[id(needle)] for needle in asked], len(context), parts)
    return Example(context, (*questions, control_of(control, asked)))


def _multi_key(haystack: Haystack, context_tokens: int, parts: int, rng: Generator) -> Example:
    control, *needles = draw_many(MULTI_KEY_TEMPLATE, haystack, KEYS + 1, rng)
    tokens = context_tokens - needles[0].asking - sum(len(needle.plant) for needle in needles)
    require_room("multi-key", tokens, 2 * KEYS, context_tokens)
    text = haystack.run(rng, tokens)
    offsets = rng.integers(len(haystack.prefix), tokens + 1, KEYS).tolist()
    context, starts = plant(text, [needle.plant for needle in needles], offsets)
    questions = asked_where(needles, starts, len(context), parts)
    return Example(context, (*questions, control_of(control, needles)))


def asked_where(needles: list[Needle], starts: list[int], tokens: int, parts: int) -> tuple[Question, ...]:
    """One question a needle, each in the part of a text of `tokens` that its needle starts in."""
    where = [min(parts - 1, parts * start // tokens) for start in starts]
    return questions_of(needles, where, [tokens - start for start in starts])


def _identifier(rng: Generator) -> str:
    return uuid.UUID(bytes=rng.bytes(16)).hex[:IDENTIFIER_DIGITS]
