"""Tasks of examples as an evaluation asks them: a cell in blocks of whole texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import pairwise

import numpy as np

from yarn_ops.data.haystack import Haystack
from yarn_ops.errors import DataError
from yarn_ops.evals import scoring
from yarn_ops.evals.cells import Block, Cell, ModelUnderTest, Reads, Size, Task, only
from yarn_ops.evals.examples import Example
from yarn_ops.evals.packed import PACKED_ROWS
from yarn_ops.evals.reader import GPU_CHUNK_TOKENS, GRAIN_TOKENS
from yarn_ops.evals.sequential import Looks
from yarn_ops.scores import Score

BLOCK_TOKENS = 1 << 20
"""through the model in one block: a minute of an 8B shape at 32k on an H100"""

QUESTION_ROWS = 32
"""of a question with its answer and three choices, on average"""

Make = Callable[[Haystack, int, int, int, int], list[Example]]
"""(documents, tokens, parts, texts, seed) -> examples, as many of each text"""


def grid_task(
    name: str,
    make: Make,
    *,
    tasks: Sequence[str] = (),
    deep: bool = False,
    by_token: bool = False,
    outcomes: Callable[[Size], int] | None = None,
) -> Task:
    """A task of examples, in blocks of whole texts. tasks: its scores', where texts hold several forms; left
    out, `name`. deep: a text is read once for its control, and from every depth on. by_token: as in
    `scoring.recall`. outcomes: of a text and a form, where it is asked until it is decided."""
    tasks = tasks or (name,)

    def tokens(size: Size, length: int, lengths: Sequence[int]) -> int:
        return round(size.texts * length * (1 + size.parts / 2 if deep else 1))

    def looks_of(size: Size) -> Looks:
        return Looks.at(size.texts, outcomes(size)) if outcomes else Looks((size.texts,), 1)

    def groups(size: Size, tokens: int) -> tuple[list[range], tuple[int, ...]]:
        """Texts of each block, and how many blocks lie before each look but the last."""
        blocks: list[range] = []
        before: list[int] = []
        for start, end in pairwise((0, *looks_of(size).texts)):
            count = min(end - start, math.ceil(tokens * (end - start) / size.texts / BLOCK_TOKENS))
            edges = np.linspace(start, end, max(1, count) + 1).round().astype(int).tolist()
            blocks += [range(*edge) for edge in pairwise(edges)]
            before.append(len(blocks))
        return blocks, tuple(before[:-1])

    def cell(haystack: Haystack, size: Size, length: int, lengths: Sequence[int], seed: int) -> Cell:
        through, looks = tokens(size, length, lengths), looks_of(size)
        some, before = groups(size, through)
        whole = len(some) == 1

        def measured(texts: range, under_test: ModelUnderTest) -> tuple[Score, ...]:
            if by_token and not under_test.by_token:
                raise DataError(f"{name}: a server is not asked for what follows a wrong token")
            examples = _examples(make, haystack, length, size.parts, size.texts, seed)
            of_text = len(examples) // size.texts
            asked = scoring.ask_all(
                under_test.reader, [examples[text * of_text : (text + 1) * of_text] for text in texts]
            )
            keeps = None if whole else scoring.every_outcome
            return scoring.recall_of(tasks, asked, length, size.parts, seed, keeps, by_token=by_token)

        names = [name] if whole else [f"{name} {number}/{len(some)}" for number in range(1, len(some) + 1)]
        blocks = tuple(
            Block(block, length, through * len(texts) // size.texts, partial(measured, texts))
            for block, texts in zip(names, some, strict=True)
        )
        asks = (haystack.digest, size.parts, size.texts)
        if not before:
            return Cell(name, length, asks, blocks, only if whole else partial(scoring.joined, tasks))
        join, enough = partial(scoring.joined, tasks, looks=looks), partial(scoring.decided, looks, tasks)
        return Cell(name, length, (*asks, looks.texts), blocks, join, before, enough)

    def reads(size: Size, length: int, lengths: Sequence[int]) -> Reads:
        examples = 1 + size.parts if deep else 1
        questions = len(tasks) * (outcomes(size) if outcomes else 1)
        asked = questions / (size.parts if deep else 1) * QUESTION_ROWS
        rows = asked + GRAIN_TOKENS["cuda"] / 2  # what a text has beyond its last grain is read with them
        from_depths = [1 - (part / size.parts) ** power if deep else 0 for power in (1, 2)
                       for part in range(size.parts)]  # fmt: skip
        again, pairs_again = sum(from_depths[: size.parts]), sum(from_depths[size.parts :])
        forwards = max(1.0, 0.75 * length / GPU_CHUNK_TOKENS) + math.ceil(asked / PACKED_ROWS)
        return Reads(
            size.texts * (length * (1 + again) + examples * rows),
            size.texts * (length**2 / 2 * (1 + pairs_again) + examples * rows * length),
            size.texts * examples * forwards,
            until_look=looks_of(size).least,
        )

    return Task(cell, tokens, lambda size, tokens: len(groups(size, tokens)[0]), reads)


@lru_cache(maxsize=1)  # the blocks of a cell come one after the other
def _examples(
    make: Make, haystack: Haystack, length: int, parts: int, texts: int, seed: int
) -> Sequence[Example]:
    return make(haystack, length, parts, texts, seed)
