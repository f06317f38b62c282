"""Prepare: documents become token shards, split by document into `train` and `held_out`."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from yarn_ops.data.audit import Audit, SeenDigests
from yarn_ops.data.corpus import read_sources
from yarn_ops.data.documents import Document, NotText, read_documents
from yarn_ops.data.files import Files, SourceFile
from yarn_ops.data.layout import Extent, ShardWriter, Split, Tokens
from yarn_ops.data.tokenizer import PIECE_CHARS, Tokenizer, pieces
from yarn_ops.errors import DataError
from yarn_ops.recipe import Data
from yarn_ops.records import BaseModel, Corpus, Local, ShardSet

Report = Callable[[int, int, str], None]


def prepare(
    data: Data,
    corpus: Local[Corpus],
    base: Local[BaseModel],
    out: Path,
    *,
    files: Files,
    report: Report,
    workers: int,
) -> ShardSet:
    """Tokenise the corpus into `out` (see layout.py), `workers` threads at a time.

    Every document is kept whole, in the order of the sources, with the tokenizer's prefix before it and
    EOS behind it. Equal texts are kept once. A document's side of the split is decided by its text and
    `data.seed` alone: held out where its draw from [0, 1) is below `data.held_out_fraction`; besides, the
    lowest draw of all is held out and the highest trained on, so that neither side is ever empty.
    The files written depend on the documents, the tokenizer and `data`, never on `workers`, paths or time.
    Memory is bounded by the longest document and `workers`, not by the corpus.
    `report(bytes done, bytes in all, text)` is called as batches are written.
    DataError when fewer than two different documents are found or a source is damaged.
    """
    tokenizer = Tokenizer(base.path, base.record.vocab_size)
    audit = Audit(base.record.context_tokens)
    intake = _Intake(read_sources(corpus.path), files, data, audit)
    with ShardWriter(out, tokenizer.dtype) as writer, ThreadPoolExecutor(workers) as pool:
        sides = _Sides(writer, data.held_out_fraction)
        encoded = _map_in_order(pool, lambda batch: _encode(tokenizer, batch), _batches(intake), 2 * workers)
        for batch, tokens in encoded:
            for piece, piece_tokens in zip(batch, tokens, strict=True):
                if piece.first:
                    writer.append(tokenizer.prefix)
                writer.append(piece_tokens)
                if piece.last:
                    writer.append(tokenizer.suffix)
                    extent = writer.end_document()
                    audit.add(extent.tokens)
                    sides.add(_Draw(piece.draw, piece.document_id, extent))
            report(
                intake.bytes_done,
                corpus.record.size_bytes,
                f"{audit.documents} documents, {audit.tokens} tokens",
            )
        _check_documents(audit, len(intake.sources))
        sides.finish()
        sizes = writer.finish(
            {
                "tokenizer_digest": tokenizer.digest,
                "vocab_size": base.record.vocab_size,
                "eos_token_id": tokenizer.eos,
                "dropped": {"duplicates": audit.duplicates, "empty": audit.empty, "not_text": audit.not_text},
            }
        )
    return ShardSet(
        tokenizer_digest=tokenizer.digest,
        vocab_size=base.record.vocab_size,
        train_documents=sizes["train"][0],
        train_tokens=sizes["train"][1],
        held_out_documents=sizes["held_out"][0],
        held_out_tokens=sizes["held_out"][1],
        longest_document_tokens=audit.longest_tokens,
        duplicate_documents=audit.duplicates,
        lengths=audit.lengths(),
    )


@dataclass(frozen=True)
class _Piece:
    """A stretch of a document that is encoded at once."""

    text: str
    document_id: str
    draw: float
    first: bool
    last: bool


@dataclass(frozen=True, order=True)
class _Draw:
    value: float
    document_id: str
    extent: Extent = field(compare=False)


class _Intake:
    """The different documents of the sources, in order; counts what it drops."""

    def __init__(self, sources: list[SourceFile], files: Files, data: Data, audit: Audit) -> None:
        self.sources = sources
        self.bytes_done = 0
        self._files = files
        self._data = data
        self._audit = audit

    def __iter__(self) -> Iterator[tuple[Document, float]]:
        """Each document with its draw from [0, 1)."""
        with closing(SeenDigests()) as seen:
            for document in self._documents():
                if not document.text or document.text.isspace():
                    self._audit.empty += 1
                    continue
                digest = hashlib.sha256(document.text.encode()).digest()
                if seen.add(digest):
                    yield document, _draw(self._data.seed, digest)
                else:
                    self._audit.duplicates += 1

    def _documents(self) -> Iterator[Document]:
        for source in self.sources:
            try:
                yield from read_documents(source, self._files.open, self._data.text_field)
            except NotText:
                self._audit.not_text += 1
            self.bytes_done += source.size_bytes


def _draw(seed: int, digest: bytes) -> float:
    # 53 bits, so that the quotient is exact and below 1
    return (int.from_bytes(hashlib.sha256(b"%d:" % seed + digest).digest()[:8], "big") >> 11) / (1 << 53)


class _Sides:
    """Puts documents on their side. Withholds the lowest and the highest draw: their side is settled last."""

    def __init__(self, writer: ShardWriter, held_out_fraction: float) -> None:
        self._writer = writer
        self._held_out_fraction = held_out_fraction
        self._extremes: list[_Draw] = []

    def add(self, draw: _Draw) -> None:
        self._extremes = sorted([*self._extremes, draw])
        if len(self._extremes) == 3:
            middle = self._extremes.pop(1)
            side: Split = "held_out" if middle.value < self._held_out_fraction else "train"
            self._writer.index(side, middle.document_id, middle.extent)

    def finish(self) -> None:
        lowest, highest = self._extremes
        self._writer.index("held_out", lowest.document_id, lowest.extent)
        self._writer.index("train", highest.document_id, highest.extent)


def _batches(documents: Iterable[tuple[Document, float]]) -> Iterator[list[_Piece]]:
    """Pieces in order, about PIECE_CHARS of text a batch."""
    batch: list[_Piece] = []
    chars = 0
    for document, draw in documents:
        for start, stop in pieces(document.text):
            last = stop == len(document.text)
            batch.append(_Piece(document.text[start:stop], document.id, draw, start == 0, last))
            chars += stop - start
            if chars >= PIECE_CHARS:
                yield batch
                batch, chars = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, batch: list[_Piece]) -> list[Tokens]:
    return tokenizer.encode([piece.text for piece in batch])


def _map_in_order(
    pool: ThreadPoolExecutor,
    encode: Callable[[list[_Piece]], list[Tokens]],
    batches: Iterable[list[_Piece]],
    in_flight: int,
) -> Iterator[tuple[list[_Piece], list[Tokens]]]:
    """Batches with their tokens, in order, with at most `in_flight` of them begun and not yet yielded."""
    waiting: deque[tuple[list[_Piece], Future[list[Tokens]]]] = deque()
    for batch in batches:
        waiting.append((batch, pool.submit(encode, batch)))
        if len(waiting) >= in_flight:
            oldest, future = waiting.popleft()
            yield oldest, future.result()
    for oldest, future in waiting:
        yield oldest, future.result()


def _check_documents(audit: Audit, files: int) -> None:
    if audit.documents >= 2:
        return
    dropped = f"{audit.duplicates} duplicates, {audit.empty} empty, {audit.not_text} files not UTF-8 text"
    raise DataError(
        f"data.sources: {audit.documents} usable documents in {files} files ({dropped}); "
        "give at least two different documents, one to train on and one to hold out"
    )
