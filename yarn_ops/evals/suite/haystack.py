"""The documents that needles are hidden in: the user's own, as one long run of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.random import Generator

from yarn_ops.data.documents import NotText, read_texts
from yarn_ops.data.files import Files
from yarn_ops.data.layout import ShardReader
from yarn_ops.data.tokenizer import Tokenizer
from yarn_ops.errors import DataError
from yarn_ops.evals.suite.sample import Encode, Ids

STANDARD_LIBRARY = ("stdlib:**/*.py",)
"""the documents of who names none: the running Python's own source"""
BETWEEN = "\n\n"


@dataclass(frozen=True, eq=False)
class Haystack:
    """Documents in a fixed order. `prefix`: what the tokenizer puts before every text (often one BOS)."""

    texts: tuple[str, ...]
    documents: tuple[Ids, ...]
    prefix: tuple[int, ...]
    encode: Encode
    digest: str
    decode: Callable[[Sequence[int]], str] | None = None
    """token ids -> text; needed where answers are written"""

    @cached_property
    def ids(self) -> Ids:
        """All documents, one after the other."""
        return np.concatenate(self.documents)

    def run(self, rng: Generator, tokens: int) -> Ids:
        """`prefix` and a run of the documents from a random place: int64 [tokens]. DataError: too short."""
        wanted = tokens - len(self.prefix)
        spare = len(self.ids) - wanted
        if spare < 0:
            raise DataError(
                f"documents: {len(self.ids)} tokens cannot fill a text of {tokens}; give more documents"
            )
        start = int(rng.integers(0, spare + 1))
        return np.concatenate([np.asarray(self.prefix, dtype=np.int64), self.ids[start : start + wanted]])

    def windows(self, count: int, tokens: int, seed: int) -> Ids:
        """int64 [count, tokens]: runs spread over the documents, that overlap only where these are short."""
        wanted = tokens - len(self.prefix)
        spare = len(self.ids) - wanted
        if spare < 0:
            raise DataError(
                f"documents: {len(self.ids)} tokens cannot fill a text of {tokens}; give more documents"
            )
        offset = np.random.default_rng([seed, tokens]).random()
        starts = ((np.arange(count) + offset) / count * (spare + 1)).astype(int)
        prefix = np.asarray(self.prefix, dtype=np.int64)
        return np.stack([np.concatenate([prefix, self.ids[start : start + wanted]]) for start in starts])


def read_haystack(
    patterns: Sequence[str],
    files: Files,
    model_dir: Path,
    vocab_size: int,
    *,
    encode: Encode,
    decode: Callable[[Sequence[int]], str] | None = None,
    tokens: int,
    text_field: str = "text",
    seed: int = 0,
) -> Haystack:
    """Documents of the patterns, in an order by seed, until there are `tokens` of them (or no more).

    DataError when a pattern matches nothing. Files that are no text are left out.
    """
    tokenizer = Tokenizer(model_dir, vocab_size)
    texts: list[str] = []
    documents: list[Ids] = []
    total = 0
    sources = {source.uri: source for pattern in patterns for source in _expand(pattern, files)}
    order = sorted(sources.values(), key=lambda source: _shuffled(f"{seed}:{source.fingerprint}"))
    for source in order:
        try:
            found = [*read_texts(source, files, text_field)]
        except NotText:
            continue
        for text in found:
            if total >= tokens:
                break
            if text.strip():
                ids = np.asarray(tokenizer.encode([text + BETWEEN])[0], dtype=np.int64)
                texts.append(text)
                documents.append(ids)
                total += len(ids)
    if not documents:
        raise DataError(f"documents: no text in {', '.join(patterns)}; give files with text")
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    prefix = tuple(int(token) for token in tokenizer.prefix)
    return Haystack(tuple(texts), tuple(documents), prefix, encode, digest, decode)


def held_out_haystack(
    reader: ShardReader,
    tokenizer: Tokenizer,
    *,
    encode: Encode,
    decode: Callable[[Sequence[int]], str],
    tokens: int,
    seed: int = 0,
) -> Haystack:
    """Documents that were kept from training, in an order by seed, until there are `tokens` of them."""
    order = sorted(
        range(reader.documents), key=lambda number: _shuffled(f"{seed}:{reader.document_id(number)}")
    )
    between = np.asarray(encode(BETWEEN), dtype=np.int64)
    prefix = tuple(int(token) for token in tokenizer.prefix)
    documents: list[Ids] = []
    total = 0
    for number in order:
        if total >= tokens:
            break
        ids = reader.document(number, len(prefix), len(prefix) + tokens).astype(np.int64)
        if len(ids) and ids[-1] == tokenizer.eos:
            ids = ids[:-1]
        documents.append(np.concatenate([ids, between]))
        total += len(documents[-1])
    digest = hashlib.sha256(b"".join(ids.tobytes() for ids in documents)).hexdigest()
    texts = tuple(decode(ids.tolist()) for ids in documents)
    return Haystack(texts, tuple(documents), prefix, encode, digest, decode)


def _expand(pattern: str, files: Files) -> list:  # type: ignore[type-arg]
    found = [source for source in files.expand(pattern) if source.size_bytes]
    if not found:
        raise DataError(f"documents: {pattern} matches no file with text; check the path, quote no globs")
    return found


def _shuffled(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
