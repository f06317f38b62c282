"""The needle grid: length × depth, the published passkey, and controls without needles.

At each depth a few needles lie close together in a run of the documents, each at a place of its own, drawn
uniformly from that part; each is asked for alone, and the others' values are its wrong choices. The grid of
one run of text goes from its end to its start, after the control: so each text shares its beginning with
the one before it (see `reader`).
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from yarn_ops.evals.recall import TEMPLATES
from yarn_ops.evals.suite.haystack import Haystack
from yarn_ops.evals.suite.sample import (
    Encode,
    Ids,
    Item,
    Sample,
    draw_equal,
    plant,
    questions_of,
    require_room,
    uniform_offsets,
)

NEEDLES = 4
"""of one text; so the forced choice is among four and chance is .25"""
CHANCE = 1 / NEEDLES

# Mohtashami and Jaggi, Landmark Attention (2023), appendix: the passkey prompt that later papers use.
PASSKEY_TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.\n"
)
PASSKEY_NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
PASSKEY_NEEDLE = "The pass key is {value}. Remember it. {value} is the pass key.\n"
PASSKEY_QUESTION = "\nWhat is the pass key? The pass key is"


@dataclass(frozen=True)
class Shape:
    """How a needle is written; every text may hold {key} and {value}."""

    plant: str
    question: str
    answer: str


SHAPES: Mapping[str, Shape] = {
    name: Shape(template.plant, template.question, template.answer) for name, template in TEMPLATES.items()
}


def grid(
    shape: str, haystack: Haystack, context_tokens: int, parts: int, texts: int, seed: int
) -> list[Sample]:
    """Needles in `parts` equal parts of each of `texts` runs of the documents, the control first.

    DataError when the length cannot hold needles and question.
    """
    rng = np.random.default_rng([seed, context_tokens, parts, *shape.encode()])
    draw = _drawing(SHAPES[shape], haystack.encode, rng)
    name = f"needle/{shape}"

    def filler(tokens: int) -> Ids:
        return haystack.run(rng, tokens)

    return [
        sample
        for _ in range(texts)
        for sample in _one_text(name, draw, filler, context_tokens, parts, len(haystack.prefix), rng)
    ]


def passkey(haystack: Haystack, context_tokens: int, parts: int, texts: int, seed: int) -> list[Sample]:
    """The published prompt: one number in repeated noise, said twice, at a place uniform in each part."""
    rng = np.random.default_rng([seed, context_tokens, parts, *b"passkey"])
    encode = haystack.encode
    head = np.asarray([*haystack.prefix, *encode(PASSKEY_TASK)], dtype=np.int64)
    noise = np.asarray(encode(PASSKEY_NOISE), dtype=np.int64)

    def filler(tokens: int) -> Ids:
        return np.concatenate([head, np.resize(noise, max(0, tokens - len(head)))])

    def draw() -> Item:
        value = str(rng.integers(10_000, 100_000))
        return Item(
            tuple(encode(PASSKEY_NEEDLE.format(value=value))),
            tuple(encode(PASSKEY_QUESTION)),
            tuple(encode(f" {value}")),
        )

    return [
        sample
        for _ in range(texts)
        for sample in _one_text("passkey", draw, filler, context_tokens, parts, len(head), rng, needles=1)
    ]


def _drawing(shape: Shape, encode: Encode, rng: Generator) -> Callable[[], Item]:
    used: set[str] = set()

    def draw() -> Item:
        while (key := "".join(rng.choice(list(string.ascii_lowercase), 4))) in used:
            pass
        used.add(key)
        value = str(rng.integers(10_000, 100_000))
        return Item(
            tuple(encode(shape.plant.format(key=key, value=value))),
            tuple(encode(shape.question.format(key=key))),
            tuple(encode(shape.answer.format(value=value))),
        )

    return draw


def _one_text(
    task: str,
    draw: Callable[[], Item],
    filler_of: Callable[[int], Ids],
    context_tokens: int,
    parts: int,
    head: int,
    rng: Generator,
    needles: int = NEEDLES,
) -> list[Sample]:
    """The control and, from the last part to the first, one sample a part."""
    groups = [draw_equal(needles, draw)]
    while len(groups) < parts:
        groups.append(_like(groups[0][0], needles, draw))
    asking = groups[0][0].asking
    text = filler_of(context_tokens - asking)  # what a needle takes is cut off its end
    samples = []
    for part in reversed(range(parts)):
        items = groups[part]
        tokens = context_tokens - asking - sum(len(item.plant) for item in items)
        require_room(task, tokens - head, 2 * parts, context_tokens)
        low, high = _bounds(part, parts, head, tokens)
        context, starts = plant(
            text[:tokens], [item.plant for item in items], uniform_offsets(rng, len(items), low, high)
        )
        distances = [len(context) - start for start in starts]
        samples.append(Sample(context, questions_of(items, [part] * len(items), distances)))
    control = questions_of(groups[-1], [0] * needles, [0] * needles, planted=False)
    return [Sample(text, control), *samples]


def _like(first: Item, needles: int, draw: Callable[[], Item]) -> list[Item]:
    """More needles that take as many tokens to ask for as the first."""
    return draw_equal(needles + 1, _starting_with(first, draw))[1:]


def _starting_with(first: Item, draw: Callable[[], Item]) -> Callable[[], Item]:
    waiting = [first]
    return lambda: waiting.pop() if waiting else draw()


def _bounds(part: int, parts: int, head: int, tokens: int) -> tuple[int, int]:
    """First and last offset of a part: the offsets head..tokens, split evenly."""
    edges = np.linspace(head, tokens + 1, parts + 1).astype(int)
    return int(edges[part]), int(edges[part + 1]) - 1
