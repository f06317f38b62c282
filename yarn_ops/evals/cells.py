"""What is measured at once: cells, a task at a length each, and the blocks that they are divided into.

A block is a unit that nothing but the model connects with others, so that several workers share an
evaluation and a lost one costs its block. It is of whole texts, never of some depths, since the depths of a
text share its reading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from yarn_ops.data.haystack import Haystack, Ids
from yarn_ops.digests import digest_of
from yarn_ops.errors import DataError
from yarn_ops.evals import VERSION
from yarn_ops.evals.forward import (
    GPU_BATCH_TOKENS,
    foreign_texts,
    losses_and_foreign,
    require_known_head,
    token_losses,
)  # fmt: skip
from yarn_ops.evals.reader import Reader, SharedReader
from yarn_ops.evals.reader_choice import open_reader, quicken
from yarn_ops.rope.methods import RopeSpec
from yarn_ops.scores import Score


class ModelUnderTest:
    """A model for losses, for questions as `reader`, for what else it computes as `model`; loaded when first
    needed, once."""

    by_token = True
    """whether every token of an answer is judged, each after right ones; else up to the first wrong one"""

    def __init__(self, load: Callable[[], Any], spec: RopeSpec | None) -> None:
        """load: the model in evaluation mode; spec None: its positions are not rotary."""
        self._load, self._spec = load, spec

    @cached_property
    def model(self) -> Any:
        """EvaluationError when its output layer is not known."""
        model = self._load()
        require_known_head(model)
        quicken(model, self._spec)
        return model

    @cached_property
    def reader(self) -> Reader:
        return open_reader(self.model, self._spec)

    def token_losses(self, windows: Ids, scored_tokens: int) -> NDArray[np.float32]:
        """As `forward.token_losses`."""
        return token_losses(self.model, windows, scored_tokens)

    def losses_and_foreign(
        self, windows: Ids, scored_tokens: int, near_tokens: int, targets: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As `forward.losses_and_foreign`; each text read whole where the model's reader shares nothing."""
        if isinstance(self.reader, SharedReader):
            return losses_and_foreign(self.model, windows, scored_tokens, near_tokens, targets)
        own = self.token_losses(windows, scored_tokens)
        return own, self.token_losses(foreign_texts(windows, near_tokens), targets)

    @property
    def read_tokens(self) -> int:
        """By the reader, with its questions."""
        return self.reader.read_tokens if "reader" in self.__dict__ else 0


LENGTHS = 5
"""of a suite: the longest and its halves"""
LEAST_TOKENS = 128
"""no task fits in less"""


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


LossesOf = Callable[[Ids, int], NDArray[np.float32]]
"""as `ModelUnderTest.token_losses`"""
Measure = Callable[[ModelUnderTest], tuple[Score, ...]]
Join = Callable[[Sequence[tuple[Score, ...]]], tuple[Score, ...]]
"""scores of a cell's blocks, in order -> the cell's; a block that does not fit its length is left out"""


@dataclass(frozen=True)
class Size:
    """How much an evaluation asks beside its scorecard."""

    parts: int
    """equal parts of a text: the resolution in depth"""
    texts: int
    """of each needle grid; four needles a part in each"""
    windows: int
    """of perplexity and of growing context"""
    ruler_samples: int
    tasks: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Block:
    """What one worker measures at once. Knows its documents and nothing of the model."""

    name: str
    """its cell's, where that is one block"""
    context_tokens: int
    tokens: int
    """about how many go through the model"""
    measure: Measure


def only(found: Sequence[tuple[Score, ...]]) -> tuple[Score, ...]:
    (scores,) = found
    return scores


def never(found: Sequence[tuple[Score, ...]]) -> bool:
    return False


@dataclass(frozen=True)
class Cell:
    """A task at a length."""

    name: str
    context_tokens: int
    asks: tuple[Any, ...]
    """what moves its figures beside name, length, seed, precision and model: documents, how much is asked"""
    blocks: tuple[Block, ...]
    join: Join = only
    looks: tuple[int, ...] = ()
    """after how many blocks, ascending, those that follow may turn out not to be needed"""
    enough: Callable[[Sequence[tuple[Score, ...]]], bool] = never
    """whether what blocks found, in order, decides; asked at a look"""
    others: tuple[Block, ...] = ()
    """blocks of other cells of the plan whose scores `join` and `enough` are given first"""
    needs: tuple[Block, ...] = ()
    """blocks without each of which there is nothing to join"""
    follows: Mapping[Block, Block] = field(default_factory=dict)
    """blocks that are asked only where a block of another cell, the last of its own, was"""

    @classmethod
    def whole(
        cls, name: str, context_tokens: int, asks: tuple[Any, ...], tokens: int, measure: Measure
    ) -> Cell:
        """In one block."""
        return cls(name, context_tokens, asks, (Block(name, context_tokens, tokens, measure),))

    @property
    def tokens(self) -> int:
        return sum(block.tokens for block in self.blocks)

    def protocol(self, precision: str) -> str:
        """Digest of `asks`, the precision and the version."""
        return digest_of([VERSION, precision, *self.asks])


class Reads(NamedTuple):
    """What goes through a model, as far as its seconds follow from it; means of what chance decides."""

    tokens: float
    pairs: float
    """of a row and a key that it sees"""
    forwards: float
    scored: float = 0.0
    """tokens whose logits are made"""
    until_look: float = 1.0
    """share of it that is asked where nothing is found"""

    @classmethod
    def once(cls, tokens: float, length: int, scored: float = 0.0, until_look: float = 1.0) -> Reads:
        """Of texts of a length that are read from their beginnings, as many at a time as fill a forward."""
        forwards = tokens / max(length, GPU_BATCH_TOKENS)
        return cls(tokens, tokens * length / 2, forwards, scored, until_look)


@dataclass(frozen=True)
class Task:
    """What an evaluation can ask beside its scorecard: its cell at a length, and what that takes."""

    cell: Callable[[Haystack, Size, int, Sequence[int], int], Cell]
    """(documents, size, length, all lengths ascending, seed)"""
    tokens: Callable[[Size, int, Sequence[int]], int]
    """(size, length, all lengths) -> about how many go through a model"""
    blocks: Callable[[Size, int], int] = lambda size, tokens: 1
    """(size, tokens of the cell) -> in how many blocks it is measured"""
    reads: Callable[[Size, int, Sequence[int]], Reads] | None = None
    """of (size, length, all lengths); None: texts of that length, `tokens` in all, once each"""


@dataclass(frozen=True)
class Load:
    """What a cell takes, as foretold."""

    name: str
    context_tokens: int
    tokens: int
    """about how many go through a model"""
    reads: Reads
    blocks: int = 1
