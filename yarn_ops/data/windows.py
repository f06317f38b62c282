"""Windows: runs of tokens that are trained on or scored at once, a pure function of seed and index."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from yarn_ops.data.layout import ShardReader, Split
from yarn_ops.errors import DataError

__all__ = ["ShardReader", "Split", "Window", "WindowSampler", "begun", "needed_tokens", "spread"]
NO_PREFIX = np.empty(0, dtype=np.int64)

# The golden ratio's fraction × 2^64: multiples of it, modulo 2^64, fill the range more evenly than any
# other step would (Knuth, The Art of Computer Programming 3, section 6.4).
GOLDEN = 0x9E3779B97F4A7C15
WORD = 1 << 64


@dataclass(frozen=True, eq=False)
class Window:
    """`window_tokens` inputs and their targets: `ids[:-1]` and `ids[1:]`."""

    ids: NDArray[np.int64]
    """[window_tokens + 1]"""
    document_ids: tuple[str, ...]
    segments: NDArray[np.int32]
    """[window_tokens + 1]; the document of each token, as an index into `document_ids`, never falling"""
    answers: NDArray[np.bool_] | None = None
    """[window_tokens + 1]; tokens that answer an exercise; None in a window without exercises"""
    planted: NDArray[np.bool_] | None = None
    """[window_tokens + 1]; tokens of an exercise that are read and not learnt: its facts and its questions"""


@dataclass(frozen=True)
class _Span:
    document: int
    start: int
    tokens: int


class WindowSampler:
    """Endless training windows.

    Over all tokens of the split lies a density: (n / w)^prefer_long in a document of n tokens, where w is
    what a window takes, window_tokens + 1 (a target follows the last input). So 0 is uniform over tokens,
    and at 1 a token in a document of 4w counts four times one in a document of w. A window begins at a
    point of that density: in a document of at least w tokens it lies wholly within it, at one of its
    n − w + 1 places with equal chance; a shorter document is taken from its start and the documents
    after it follow, the last one cut off, round to the split's first document after its last.

    The points are a golden-ratio sequence, not independent draws: any run of windows is spread evenly over
    the density, so fifty steps do not read one document three times while its equals wait.
    """

    def __init__(self, reader: ShardReader, *, window_tokens: int, seed: int, prefer_long: float) -> None:
        """DataError when the split is shorter than one window."""
        self._reader = reader
        self.prefix = reader.prefix
        self._needed = needed_tokens(reader.split, reader.tokens, window_tokens)
        lengths = reader.lengths.astype(np.float64)
        self._ends = np.cumsum(lengths * (lengths / self._needed) ** prefer_long)
        self._offset = int.from_bytes(hashlib.sha256(b"windows:%d" % seed).digest()[:8], "big")

    def window(self, index: int) -> Window:
        """Window number `index` ≥ 0; equal for equal shards, seed, prefer_long and index."""
        point = (self._offset + index * GOLDEN) % WORD / WORD * float(self._ends[-1])
        last = self._reader.documents - 1
        document = min(int(np.searchsorted(self._ends, point, "right")), last)
        spare = int(self._reader.lengths[document]) - self._needed
        if spare < 0:
            following = (number % (last + 1) for number in range(document, document + last + 1))
            return _assemble(self._reader, next(_pack(self._reader, following, self._needed)))
        begin = float(self._ends[document - 1]) if document else 0.0
        share = (point - begin) / (float(self._ends[document]) - begin)
        start = min(int(share * (spare + 1)), spare)
        return _assemble(self._reader, [_Span(document, start, self._needed)])


def spread(reader: ShardReader, window_tokens: int, count: int, seed: int) -> list[Window]:
    """`count` windows to measure on, from as many documents as there are.

    First come windows within one document, end to end from its start: every long document's first, in an
    order by seed, then every one's second, and so on. When these are used up, the short documents are
    packed. Up to there no token is in two windows; beyond, windows of WindowSampler follow, which overlap.
    DataError when the split is shorter than one window.
    """
    needed = needed_tokens(reader.split, reader.tokens, window_tokens)
    short = map(int, np.flatnonzero(reader.lengths < needed))
    every = chain(_within_documents(reader, needed, seed), _pack(reader, short, needed))
    windows = [_assemble(reader, plan) for plan in islice(every, count)]
    sampler = WindowSampler(reader, window_tokens=window_tokens, seed=seed, prefer_long=0)
    return [*windows, *map(sampler.window, range(count - len(windows)))]


def begun(ids: NDArray[np.int64], prefix: NDArray[np.int64]) -> NDArray[np.int64]:
    """Runs of tokens, int64 [..., T], with `prefix` in place of their first: what the tokenizer puts before
    every text, where models keep much of their attention. Written into `ids`."""
    ids[..., : prefix.size] = prefix
    return ids


def needed_tokens(split: Split, tokens: int, window_tokens: int) -> int:
    """What a window takes of a split that holds `tokens`; DataError when that is too few for one."""
    needed = window_tokens + 1
    if tokens < needed:
        raise DataError(
            f"{split}: corpus too short for one window of {window_tokens} tokens: it holds "
            f"{tokens}; add documents or ask for a shorter context"
        )
    return needed


def _within_documents(reader: ShardReader, needed: int, seed: int) -> Iterator[list[_Span]]:
    long = np.flatnonzero(reader.lengths >= needed)
    key = [hashlib.sha256(b"spread:%d:%d" % (seed, document)).digest() for document in long]
    order = [int(long[i]) for i in sorted(range(len(long)), key=key.__getitem__)]
    start = 0
    while order := [document for document in order if reader.lengths[document] >= start + needed]:
        yield from ([_Span(document, start, needed)] for document in order)
        start += needed


def _pack(reader: ShardReader, documents: Iterable[int], needed: int) -> Iterator[list[_Span]]:
    """Windows filled with whole documents one after the other; the last is cut off, its rest not used."""
    plan: list[_Span] = []
    missing = needed
    for document in documents:
        plan.append(_Span(document, 0, min(missing, int(reader.lengths[document]))))
        missing -= plan[-1].tokens
        if not missing:
            yield plan
            plan, missing = [], needed


def _assemble(reader: ShardReader, plan: list[_Span]) -> Window:
    runs = [reader.document(part.document, part.start, part.start + part.tokens) for part in plan]
    return Window(
        ids=begun(np.concatenate(runs).astype(np.int64), reader.prefix),
        document_ids=tuple(reader.document_id(part.document) for part in plan),
        segments=np.repeat(np.arange(len(plan), dtype=np.int32), [part.tokens for part in plan]),
    )
