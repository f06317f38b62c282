"""Which cells a suite measures, and in which blocks.

A cell, a task at a length, is measured in blocks: units that nothing but the model connects, so that several
workers share a suite and a lost one costs its block. A block is of whole texts, never of some depths, since
the depths of a text share its reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import pairwise
from types import MappingProxyType

import numpy as np
from transformers import PreTrainedModel

from yarn_ops.digests import digest_of
from yarn_ops.errors import DataError
from yarn_ops.evals import perplexity
from yarn_ops.evals.suite import context, copying, needles, pairs, ruler, scoring
from yarn_ops.evals.suite.haystack import Haystack
from yarn_ops.evals.suite.reader import Reader
from yarn_ops.evals.suite.sample import Ids, Sample
from yarn_ops.evals.suite.size import (
    SIZES,
    SLIDING_STRIDE_TOKENS,
    Size,
    blocks_of,
    needed_tokens,
    sliding_documents,
    tokens_through,
)
from yarn_ops.evals.suite.version import VERSION
from yarn_ops.records import Score

__all__ = ["SIZES", "Block", "Cell", "Plan", "Size", "lengths_to", "needed_tokens", "plan", "samples_of"]

LENGTHS = 5
"""the longest and its halves"""
LEAST_TOKENS = 128
"""no task fits in less"""

OF_KINDS = ("perplexity", "sliding")
"""tasks that tell kinds of documents apart"""

Measure = Callable[[Reader, PreTrainedModel], tuple[Score, ...]]
Join = Callable[[Sequence[tuple[Score, ...]]], tuple[Score, ...]]
"""scores of a cell's blocks, in order -> the cell's; a block that does not fit its length is left out"""
Make = Callable[[Haystack, int, int, int, int], list[Sample]]
"""(documents, tokens, parts, texts, seed) -> samples"""


GRIDS: dict[str, Make] = {
    "needle/code": partial(needles.grid, "code"),
    "needle/prose": partial(needles.grid, "prose"),
    "passkey": needles.passkey,
    "key-value": pairs.key_value,
    "multi-key": pairs.multi_key,
    "mqar": copying.mqar,
}


@dataclass(frozen=True)
class Block:
    """What one worker measures at once. Knows its documents and nothing of the model."""

    name: str
    """its cell's, where that is one block"""
    context_tokens: int
    weight: int
    """about how many tokens go through the model"""
    measure: Measure


@dataclass(frozen=True)
class Cell:
    """A task at a length."""

    name: str
    context_tokens: int
    blocks: tuple[Block, ...]
    join: Join

    @classmethod
    def whole(cls, name: str, context_tokens: int, weight: int, measure: Measure) -> Cell:
        """In one block."""
        return cls(name, context_tokens, (Block(name, context_tokens, weight, measure),), _only)

    @property
    def weight(self) -> int:
        return sum(block.weight for block in self.blocks)


def _only(found: Sequence[tuple[Score, ...]]) -> tuple[Score, ...]:
    (scores,) = found
    return scores


@dataclass(frozen=True, eq=False)
class Plan:
    size: Size
    lengths: tuple[int, ...]
    haystack: Haystack
    seed: int
    cells: tuple[Cell, ...]
    kinds: Mapping[str, Haystack]

    def protocol(self, precision: str) -> str:
        """Digest of what moves the figures besides model, cell, length and seed."""
        size = asdict(self.size) | {"tasks": None}
        kinds = [[name, haystack.digest] for name, haystack in self.kinds.items()]
        what = [VERSION, size, list(self.lengths), self.haystack.digest, precision]
        return digest_of([*what, kinds] if kinds else what)


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


def plan(
    size: Size,
    lengths: Sequence[int],
    haystack: Haystack,
    seed: int,
    kinds: Mapping[str, Haystack] = MappingProxyType({}),
) -> Plan:
    """All cells, cheapest first. kinds: parts of the documents, by name, whose perplexity is told apart."""
    windows = haystack.windows(size.windows, lengths[-1] + 1, seed)
    cells: list[Cell] = []
    for task in size.tasks:
        if task == "context":
            more = haystack.windows(2 * size.windows, lengths[-1] + 1, seed)
            tokens = tokens_through(task, size, lengths[-1], lengths)
            measure = partial(_growing, windows=more, lengths=tuple(lengths), seed=seed)
            cells.append(Cell.whole(task, lengths[-1], tokens, measure))
            continue
        cells += [_cell(task, size, length, windows, haystack, seed, lengths) for length in lengths]
        if task in OF_KINDS:
            for name, kind in kinds.items():
                cells += _cells_of_kind(task, name, size, lengths, kind, seed)
    ordered = tuple(sorted(cells, key=lambda cell: cell.weight))
    return Plan(size, tuple(lengths), haystack, seed, ordered, kinds)


def _cells_of_kind(
    task: str, name: str, size: Size, lengths: Sequence[int], kind: Haystack, seed: int
) -> Iterator[Cell]:
    """Of one kind of documents; where it is too short for a length, the cell says so when it is measured."""
    for length in lengths:
        full_name = f"{task} of {name}"
        try:
            windows = kind.windows(size.windows, lengths[-1] + 1, seed)
            (block,) = _cell(task, size, length, windows, kind, seed, lengths).blocks
            named = partial(_named, name=name, measure=block.measure)
            yield Cell.whole(full_name, length, block.weight, named)
        except DataError as error:
            yield Cell.whole(full_name, length, 0, partial(_refuse, why=str(error)))


def _named(reader: Reader, model: PreTrainedModel, name: str, measure: Measure) -> tuple[Score, ...]:
    found = (score for score in measure(reader, model) if score.task.startswith("perplexity/"))
    return tuple(score.model_copy(update={"task": f"{score.task} of {name}"}) for score in found)


def _refuse(reader: Reader, model: PreTrainedModel, why: str) -> tuple[Score, ...]:
    raise DataError(why)


def _cell(
    task: str, size: Size, length: int, windows: Ids, haystack: Haystack, seed: int, lengths: Sequence[int]
) -> Cell:
    tokens = tokens_through(task, size, length, lengths)
    if task == "perplexity":
        measure = partial(_perplexity, windows=windows, length=length, seed=seed)
        return Cell.whole(task, length, tokens, measure)
    if task == "sliding":
        longest, beyond = windows.shape[1] - 1, 2 * SLIDING_STRIDE_TOKENS + 1
        documents = haystack.windows(sliding_documents(size), longest + beyond, seed)
        documents = documents[:, -(length + beyond) :]  # the ends of the same texts at every length
        return Cell.whole(
            task, length, tokens, partial(_sliding, documents=documents, length=length, seed=seed)
        )
    if task == "long-perplexity":
        some = haystack.windows(size.windows, length + 1, seed)
        return Cell.whole(task, length, tokens, partial(_long_perplexity, windows=some, seed=seed))
    if task == "ruler":
        asked = partial(_ruler, length=length, haystack=haystack, count=size.ruler_samples, seed=seed)
        blocks = [
            Block(f"{task}/{name}", length, tokens // len(ruler.TASKS), partial(asked, name=name))
            for name in ruler.TASKS
        ]
        return Cell(task, length, tuple(blocks), ruler.joined)
    return _grid(task, size, length, haystack, seed, tokens, blocks_of(task, size, length, lengths))


def _grid(task: str, size: Size, length: int, haystack: Haystack, seed: int, tokens: int, count: int) -> Cell:
    """In `count` blocks of whole texts."""
    asked = partial(_asked, task=task, size=size, length=length, haystack=haystack, seed=seed)
    if count == 1:
        return Cell.whole(task, length, tokens, asked)
    edges = np.linspace(0, size.texts, count + 1).round().astype(int).tolist()
    blocks = [
        Block(
            f"{task} {number}/{count}", length, tokens * (stop - start) // size.texts,
            partial(asked, texts=range(start, stop), every_item=True),
        )
        for number, (start, stop) in enumerate(pairwise(edges), start=1)
    ]  # fmt: skip
    return Cell(task, length, tuple(blocks), scoring.joined)


@lru_cache(maxsize=1)  # the blocks of a cell come one after the other
def samples_of(task: str, size: Size, length: int, haystack: Haystack, seed: int) -> Sequence[Sample]:
    """The samples of a task at a length; DataError when the length cannot hold it."""
    make = copying.copy if task == "copy" else GRIDS[task]
    return make(haystack, length, size.parts, size.texts, seed)


def _asked(
    reader: Reader, model: PreTrainedModel, task: str, size: Size, length: int, haystack: Haystack, seed: int,
    texts: range | None = None, every_item: bool = False,
) -> tuple[Score, ...]:  # fmt: skip
    """Some of a cell's texts; None: all."""
    samples = samples_of(task, size, length, haystack, seed)
    of_text = len(samples) // size.texts
    asked = [
        pair
        for text in texts or range(size.texts)
        for pair in scoring.ask_all(reader, samples[text * of_text : (text + 1) * of_text])
    ]
    score = scoring.continued if task == "copy" else scoring.recall
    return score(task, asked, length, size.parts, seed, every_item=every_item)


def _ruler(
    reader: Reader, model: PreTrainedModel, length: int, haystack: Haystack, count: int, seed: int, name: str
) -> tuple[Score, ...]:
    assert haystack.decode is not None, "RULER's answers are written, so they have to be decoded"
    return ruler.measure(reader, name, haystack, haystack.decode, length, count, seed)


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
