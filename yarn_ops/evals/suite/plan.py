"""Which cells a suite measures, and how much of each.

`tiny`: seconds on two cores for a model of some million parameters, for trying out; wide intervals.
`quick`: minutes; needle grids, context, perplexity.
`full`: 200 samples a depth, every task, RULER.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from transformers import PreTrainedModel

from yarn_ops.digests import digest_of
from yarn_ops.errors import DataError
from yarn_ops.evals import perplexity
from yarn_ops.evals.suite import context, copying, needles, pairs, ruler, scoring
from yarn_ops.evals.suite.haystack import Haystack
from yarn_ops.evals.suite.reader import Reader
from yarn_ops.evals.suite.sample import Ids, Sample
from yarn_ops.recipe import SuiteName
from yarn_ops.records import Score

VERSION = 1
"""raised when the same cell would give other figures"""
LENGTHS = 5
"""the longest and its halves"""
LEAST_TOKENS = 128
"""no task fits in less"""
SLIDING_STRIDE_TOKENS = 256

Make = Callable[[Haystack, int, int, int, int], list[Sample]]
"""(documents, tokens, parts, texts, seed) -> samples"""


@dataclass(frozen=True)
class Size:
    """How much a suite asks."""

    parts: int
    """equal parts of a text: the resolution in depth"""
    texts: int
    """of each needle grid; four needles a part in each"""
    windows: int
    """of perplexity and of growing context"""
    ruler_samples: int
    tasks: tuple[str, ...]


SIZES: dict[SuiteName, Size] = {
    "tiny": Size(4, 2, 4, 0, ("context", "needle/code")),
    "quick": Size(8, 8, 16, 0, ("context", "perplexity", "needle/code", "needle/prose", "multi-key")),
    "full": Size(
        8, 50, 32, 30,
        ("context", "perplexity", "sliding", "long-perplexity", "needle/code", "needle/prose", "passkey",
         "key-value", "multi-key", "copy", "mqar", "ruler"),
    ),
}  # fmt: skip

GRIDS: dict[str, Make] = {
    "needle/code": partial(needles.grid, "code"),
    "needle/prose": partial(needles.grid, "prose"),
    "passkey": needles.passkey,
    "key-value": pairs.key_value,
    "multi-key": pairs.multi_key,
    "mqar": copying.mqar,
}


@dataclass(frozen=True)
class Cell:
    """One unit of a suite: a task at a length. Knows its documents and nothing of the model."""

    name: str
    context_tokens: int
    weight: int
    """about how many tokens go through the model"""
    measure: Callable[[Reader, PreTrainedModel], tuple[Score, ...]]


@dataclass(frozen=True, eq=False)
class Plan:
    size: Size
    lengths: tuple[int, ...]
    haystack: Haystack
    seed: int
    cells: tuple[Cell, ...]

    def protocol(self, precision: str) -> str:
        """Digest of what moves the figures besides model, cell, length and seed."""
        size = asdict(self.size) | {"tasks": None}
        return digest_of([VERSION, size, list(self.lengths), self.haystack.digest, precision])


def lengths_to(longest: int, original: int | None = None) -> tuple[int, ...]:
    """The longest length, its halves and the original context if that is shorter, ascending.

    DataError when even the longest is too short.
    """
    if longest < LEAST_TOKENS:
        raise DataError(f"{longest} tokens: no task fits in fewer than {LEAST_TOKENS}; measure longer texts")
    halves = [longest >> step for step in range(LENGTHS)]
    if original is not None and original < longest:
        halves.append(original)
    return tuple(sorted({length for length in halves if length >= LEAST_TOKENS}))


def needed_tokens(size: Size, longest: int) -> int:
    """Documents' tokens that a suite can make use of."""
    return 2 * (size.windows + size.texts) * (longest + 1)


def plan(size: Size, lengths: Sequence[int], haystack: Haystack, seed: int) -> Plan:
    """All cells, cheapest first."""
    windows = haystack.windows(size.windows, lengths[-1] + 1, seed)
    cells: list[Cell] = []
    for task in size.tasks:
        if task == "context":
            more = haystack.windows(2 * size.windows, lengths[-1] + 1, seed)
            tokens = len(more) * (sum(lengths) + lengths[-1])
            measure = partial(_growing, windows=more, lengths=tuple(lengths), seed=seed)
            cells.append(Cell(task, lengths[-1], tokens, measure))
            continue
        cells += [_cell(task, size, length, windows, haystack, seed) for length in lengths]
    return Plan(size, tuple(lengths), haystack, seed, tuple(sorted(cells, key=lambda cell: cell.weight)))


def _cell(task: str, size: Size, length: int, windows: Ids, haystack: Haystack, seed: int) -> Cell:
    if task == "perplexity":
        tokens = perplexity.last_quarter_chunks(windows, length)[..., 1:].size
        return Cell(task, length, tokens, partial(_perplexity, windows=windows, length=length, seed=seed))
    if task == "sliding":
        document_tokens = length + 2 * SLIDING_STRIDE_TOKENS + 1
        documents = haystack.windows(max(4, size.windows // 8), document_tokens, seed)
        strides = math.ceil((document_tokens - 1 - length) / min(SLIDING_STRIDE_TOKENS, length)) + 1
        measure = partial(_sliding, documents=documents, length=length, seed=seed)
        return Cell(task, length, len(documents) * strides * length, measure)
    if task == "long-perplexity":
        some = haystack.windows(size.windows, length + 1, seed)
        return Cell(task, length, some.size, partial(_long_perplexity, windows=some, seed=seed))
    if task == "ruler":
        measure = partial(_ruler, length=length, haystack=haystack, count=size.ruler_samples, seed=seed)
        return Cell(task, length, size.ruler_samples * length * len(ruler.TASKS), measure)
    asked = partial(_asked, task=task, size=size, length=length, haystack=haystack, seed=seed)
    share = (1 + size.parts / 2) if task in ("needle/code", "needle/prose", "passkey", "copy") else 1
    return Cell(task, length, round(size.texts * share * length), asked)


def samples_of(task: str, size: Size, length: int, haystack: Haystack, seed: int) -> list[Sample]:
    """The samples of a task at a length; DataError when the length cannot hold it."""
    make = copying.copy if task == "copy" else GRIDS[task]
    return make(haystack, length, size.parts, size.texts, seed)


def _asked(
    reader: Reader, model: PreTrainedModel, task: str, size: Size, length: int, haystack: Haystack, seed: int
) -> tuple[Score, ...]:
    asked = scoring.ask_all(reader, samples_of(task, size, length, haystack, seed))
    score = scoring.continued if task == "copy" else scoring.recall
    return score(task, asked, length, size.parts, seed)


def _ruler(
    reader: Reader, model: PreTrainedModel, length: int, haystack: Haystack, count: int, seed: int
) -> tuple[Score, ...]:
    assert haystack.decode is not None, "RULER's answers are written, so they have to be decoded"
    return ruler.measure(reader, haystack, haystack.decode, length, count, seed)


def _growing(
    reader: Reader, model: PreTrainedModel, windows: Ids, lengths: tuple[int, ...], seed: int
) -> tuple[Score, ...]:
    return context.growing(model, windows, lengths, seed)


def _perplexity(
    reader: Reader, model: PreTrainedModel, windows: Ids, length: int, seed: int
) -> tuple[Score, ...]:
    return perplexity.window_scores(model, windows, length, seed)


def _sliding(
    reader: Reader, model: PreTrainedModel, documents: Ids, length: int, seed: int
) -> tuple[Score, ...]:
    texts = [np.ascontiguousarray(document) for document in documents]
    return perplexity.sliding_scores(model, texts, length, SLIDING_STRIDE_TOKENS, seed)


def _long_perplexity(reader: Reader, model: PreTrainedModel, windows: Ids, seed: int) -> tuple[Score, ...]:
    return context.long_perplexity(model, windows, seed)
