"""From the results of units to shards: which documents are kept, and in which split.

Only what is known of the documents is read here, never their tokens: some 150 bytes a document, and what
near duplicates and passages ask for besides. The order of documents is that of the sources and of the rows
in them; nothing depends on where or when a unit was made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yarn_ops.data.contamination import measured_hashes, shares_passage
from yarn_ops.data.files import SourceFile
from yarn_ops.data.fragments import FRAGMENT, FRAGMENTS, PASSAGES, SIGNATURES, Fate, Fragments
from yarn_ops.data.layout import Extent, ShardWriter
from yarn_ops.data.near_duplicates import PLACES, first_near_duplicates
from yarn_ops.data.text import text_digest
from yarn_ops.data.units import Unit
from yarn_ops.data.words import Hashes
from yarn_ops.errors import DataError
from yarn_ops.processes import scratch
from yarn_ops.recipe import Data

Find = Callable[[int, str], Path]
"""(number of a unit, name of a file of its result) to where that file lies on this machine"""
Mask = NDArray[np.bool_]
MAPPED_UNITS = 64


class DocumentTable:
    """The documents of units, in order, as arrays over documents.

    fates: uint8, a `Fate` each.  tokens, starts: where each one's tokens lie, counted over all units.
    """

    def __init__(self, units: Sequence[Unit], find: Find) -> None:
        self._find = find
        rows = [np.fromfile(find(number, FRAGMENTS), FRAGMENT) for number in range(len(units))]
        self.unit_tokens = [int(part["tokens"].sum()) for part in rows]
        self._unit_starts = np.cumsum([0, *map(len, rows)])
        fragments: Fragments = np.concatenate(rows)
        self._begins = np.flatnonzero(fragments["first"])
        self._ends = np.append(self._begins[1:], len(fragments))
        tokens = fragments["tokens"].astype(np.int64)
        self.tokens: NDArray[np.int64] = np.add.reduceat(tokens, self._begins)
        self.starts: NDArray[np.int64] = np.cumsum(tokens)[self._begins] - tokens[self._begins]
        self._passage_ends = np.cumsum(fragments["passages"], dtype=np.int64)
        self.fates = _fates(fragments["fate"], self._begins)
        self.digests = _digests(fragments["digest"], self._begins, self._ends)
        self._number(units, fragments)

    def __len__(self) -> int:
        return len(self._begins)

    def _number(self, units: Sequence[Unit], fragments: Fragments) -> None:
        """Which file of which unit each document is from, and which row it is there."""
        self._units = units
        self._unit_of = np.searchsorted(self._unit_starts, self._begins, "right") - 1
        self._file_of = fragments["file"][self._begins]
        self._is_row = fragments["row"][self._begins]
        self._rows = np.zeros(len(self), np.int64)
        rows_without: dict[SourceFile, list[int]] = {}
        before: SourceFile | None = None
        rows = 0
        places = np.flatnonzero(np.diff(self._unit_of, prepend=-1) | np.diff(self._file_of, prepend=-1))
        for start, stop in pairwise([*places.tolist(), len(self)]):
            source = self._source(start)
            rows = rows if source == before else 0
            self._rows[start:stop] = np.arange(rows, rows + stop - start)
            before, rows = source, rows + stop - start
            fates, counts = self.fates[start:stop], rows_without.setdefault(source, [0, 0])
            counts[0] += int((fates == Fate.NO_TEXT).sum())
            counts[1] += int((fates != Fate.NO_DOCUMENT).sum())
        for source, (without, of) in rows_without.items():
            if 2 * without > of:
                raise DataError(f"{source.uri}: {without:,} of {of:,} rows have no text; set data.text_field")

    def _source(self, number: int) -> SourceFile:
        return self._units[self._unit_of[number]].sources[self._file_of[number]]

    def name(self, number: int) -> str:
        """Where a document is from: its file's name, and `#row` (from 0) where a file holds many."""
        source = self._source(number)
        return f"{source.name}#{self._rows[number]}" if self._is_row[number] else source.name

    def passages(self, numbers: NDArray[np.int64]) -> Iterator[Hashes]:
        """The hashes of passages of each of these documents (see contamination.py)."""
        mapped = lru_cache(MAPPED_UNITS)(lambda unit: np.fromfile(self._find(unit, PASSAGES), np.uint64))
        for number in numbers:
            parts = [
                self._passages_of(mapped, fragment)
                for fragment in range(self._begins[number], self._ends[number])
            ]
            yield parts[0] if len(parts) == 1 else np.unique(np.concatenate(parts))

    def _passages_of(self, mapped: Callable[[int], Hashes], fragment: int) -> Hashes:
        unit = int(np.searchsorted(self._unit_starts, fragment, "right")) - 1
        first = int(self._unit_starts[unit])
        before = int(self._passage_ends[first - 1]) if first else 0
        start = int(self._passage_ends[fragment - 1]) if fragment else 0
        return mapped(unit)[start - before : int(self._passage_ends[fragment]) - before]

    def signatures(self, numbers: NDArray[np.int64], place: Path) -> NDArray[np.uint32]:
        """[documents, PLACES], memory-mapped, of these documents by their beginnings."""
        path = place / SIGNATURES
        units = self._unit_of[numbers]
        with path.open("wb") as file:
            for unit in np.unique(units):
                rows = self._begins[numbers[units == unit]] - self._unit_starts[unit]
                table = np.fromfile(self._find(int(unit), SIGNATURES), "<u4").reshape(-1, PLACES)
                file.write(table[rows].tobytes())
        return np.memmap(path, "<u4", mode="r", shape=(len(numbers), PLACES))


def choose(documents: DocumentTable, data: Data, measured: DocumentTable | None) -> Mask:
    """Set every document's fate, and return which documents are held out (bool [documents]).

    Of equal documents, and of near duplicates, the first is kept. A document's side of the split is decided
    by its text and `data.seed` alone: held out where its draw from [0, 1) is below `data.held_out_fraction`;
    besides, the lowest draw of all is held out and the highest trained on, so that neither side is empty.
    Then those to train on are left out that have a passage in common with one held out, or `measured`.
    """
    fates = documents.fates
    longest = np.inf if data.max_document_tokens is None else data.max_document_tokens
    kept = fates == Fate.KEPT
    fates[kept & ((documents.tokens < data.min_document_tokens) | (documents.tokens > longest))] = Fate.LENGTH
    _drop_duplicates(documents)
    if data.near_duplicate_similarity is not None:
        _drop_near_duplicates(documents, data.near_duplicate_similarity)
    held_out = _held_out(documents, data)
    if data.shared_words is not None:
        _drop_contaminated(documents, held_out, measured)
    return held_out & (fates == Fate.KEPT)


def write_index(documents: DocumentTable, held_out: Mask, writer: ShardWriter) -> None:
    """A row for every document that is kept, in order."""
    for number in np.flatnonzero(documents.fates == Fate.KEPT).tolist():
        extent = Extent(int(documents.starts[number]), int(documents.tokens[number]))
        writer.index("held_out" if held_out[number] else "train", documents.name(number), extent)


def _fates(fragments: NDArray[np.uint8], begins: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Fates of documents from those of their fragments: NOT_TEXT if one is, EMPTY only if all are."""
    fates = fragments[begins].copy()
    fates[fates == Fate.EMPTY] = Fate.KEPT
    fates[np.logical_and.reduceat(fragments == Fate.EMPTY, begins)] = Fate.EMPTY
    fates[np.logical_or.reduceat(fragments == Fate.NOT_TEXT, begins)] = Fate.NOT_TEXT
    return fates


def _digests(
    fragments: NDArray[np.void], begins: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.void]:
    digests = fragments[begins].copy()
    for number in np.flatnonzero(ends - begins > 1):
        parts = [fragment.tobytes() for fragment in fragments[begins[number] : ends[number]]]
        digests[number] = np.void(text_digest(parts))
    return digests


def _drop_duplicates(documents: DocumentTable) -> None:
    """Leave out all but the first of equal texts; where the first is left out, the others get its fate."""
    fates = documents.fates
    texts = np.flatnonzero((fates == Fate.KEPT) | (fates >= Fate.LANGUAGE))
    _, first, group = np.unique(documents.digests[texts], return_index=True, return_inverse=True)
    firsts = first[group.ravel()]
    later = firsts != np.arange(len(texts))
    reasons = fates[texts[firsts]]
    fates[texts[later]] = np.where(reasons == Fate.KEPT, Fate.DUPLICATE, reasons)[later]


def _drop_near_duplicates(documents: DocumentTable, similarity: float) -> None:
    numbers = np.flatnonzero(documents.fates == Fate.KEPT)
    if not len(numbers):
        return
    with scratch() as place:
        first = first_near_duplicates(documents.signatures(numbers, place), similarity)
    documents.fates[numbers[first != np.arange(len(first))]] = Fate.NEAR_DUPLICATE


def _held_out(documents: DocumentTable, data: Data) -> Mask:
    numbers = np.flatnonzero(documents.fates == Fate.KEPT)
    held_out = np.zeros(len(documents), np.bool_)
    if len(numbers):
        draws = np.array([_draw(data.seed, documents.digests[number].tobytes()) for number in numbers])
        held_out[numbers] = draws < data.held_out_fraction
        held_out[numbers[np.argmin(draws)]] = True
        held_out[numbers[np.argmax(draws)]] = False
    return held_out


def _draw(seed: int, digest: bytes) -> float:
    # 53 bits, so that the quotient is exact and below 1
    return (int.from_bytes(hashlib.sha256(b"%d:" % seed + digest).digest()[:8], "big") >> 11) / (1 << 53)


def _drop_contaminated(documents: DocumentTable, held_out: Mask, measured: DocumentTable | None) -> None:
    hashes = [*documents.passages(np.flatnonzero(held_out))]
    if measured is not None:
        hashes += measured.passages(np.arange(len(measured)))
    told = measured_hashes(hashes)
    train = np.flatnonzero((documents.fates == Fate.KEPT) & ~held_out)
    for number, found in zip(train, documents.passages(train), strict=True):
        if shares_passage(found, told):
            documents.fates[number] = Fate.CONTAMINATED
