"""Tasks of examples as an evaluation asks them: a cell in blocks of whole texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import pairwise

import numpy as np

from yarn_ops.data.haystack import Haystack
from yarn_ops.evals import scoring
from yarn_ops.evals.cells import Block, Cell, ModelUnderTest, Size, Task
from yarn_ops.evals.examples import Example
from yarn_ops.records import Score

BLOCK_TOKENS = 1 << 20
"""through the model in one block: a minute of an 8B shape at 32k on an H100"""

Make = Callable[[Haystack, int, int, int, int], list[Example]]
"""(documents, tokens, parts, texts, seed) -> examples, as many of each text"""


def grid_task(name: str, make: Make, *, deep: bool = False, by_token: bool = False) -> Task:
    """A task of examples, in blocks of whole texts. deep: a text is read once for its control, and from every
    depth on. by_token: as in `scoring.recall`."""

    def tokens(size: Size, length: int, lengths: Sequence[int]) -> int:
        return round(size.texts * length * (1 + size.parts / 2 if deep else 1))

    def blocks(size: Size, tokens: int) -> int:
        return min(size.texts, math.ceil(tokens / BLOCK_TOKENS))

    def cell(haystack: Haystack, size: Size, length: int, lengths: Sequence[int], seed: int) -> Cell:
        def measured(texts: range, count: int, under_test: ModelUnderTest) -> tuple[Score, ...]:
            examples = _examples(make, haystack, length, size.parts, size.texts, seed)
            of_text = len(examples) // size.texts
            asked = [
                pair
                for text in texts
                for pair in scoring.ask_all(
                    under_test.reader, examples[text * of_text : (text + 1) * of_text]
                )
            ]
            keeps = scoring.every_outcome if count > 1 else None
            return scoring.recall(name, asked, length, size.parts, seed, keeps, by_token=by_token)

        through = tokens(size, length, lengths)
        count = blocks(size, through)
        edges = np.linspace(0, size.texts, count + 1).round().astype(int).tolist()
        some = [range(*edge) for edge in pairwise(edges)]
        names = [name] if count == 1 else [f"{name} {number}/{count}" for number in range(1, count + 1)]
        return Cell(
            name, length, (haystack.digest, size.parts, size.texts),
            tuple(
                Block(block, length, through * len(texts) // size.texts, partial(measured, texts, count))
                for block, texts in zip(names, some, strict=True)
            ),
            *([] if count == 1 else [scoring.joined]),
        )  # fmt: skip

    return Task(cell, tokens, blocks)


@lru_cache(maxsize=1)  # the blocks of a cell come one after the other
def _examples(
    make: Make, haystack: Haystack, length: int, parts: int, texts: int, seed: int
) -> Sequence[Example]:
    return make(haystack, length, parts, texts, seed)
