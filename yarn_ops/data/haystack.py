"""The haystack: the user's documents, concatenated, in which evaluations hide needles."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from yarn_ops.data.documents import read_texts
from yarn_ops.data.files import Files, SourceFile
from yarn_ops.data.formats import NotText
from yarn_ops.data.layout import ShardReader
from yarn_ops.data.tokenizer import Tokenizer
from yarn_ops.errors import DataError

STANDARD_LIBRARY = ("stdlib:**/*.py",)
"""the default documents: the running Python's own source"""
BETWEEN = "\n\n"
CHINESE_SHARE = 0.2
"""of the characters, from which a text is Chinese"""
LANGUAGE_CHARACTERS = 1000

Ids = NDArray[np.int64]
Encode = Callable[[str], Sequence[int]]
"""what goes on within a text -> token ids, no special tokens"""
Decode = Callable[[Sequence[int]], str]
"""token ids -> text"""
Chat = Callable[[str, str], tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""(user's text, assistant's) -> token ids before the assistant's, of it, and the first that ends its turn"""


@dataclass(frozen=True, eq=False)
class Haystack:
    """Documents in a fixed order. `prefix`: what the tokenizer puts before every text (often one BOS)."""

    texts: tuple[str, ...]
    documents: tuple[Ids, ...]
    prefix: tuple[int, ...]
    encode: Encode
    digest: str
    decode: Decode | None = None
    """token ids -> text; needed where answers are written"""
    chat: Chat | None = None
    """None: the tokenizer has no chat template"""

    @cached_property
    def ids(self) -> Ids:
        """All documents concatenated: int64 [tokens]."""
        return np.concatenate(self.documents)

    @cached_property
    def chinese(self) -> bool:
        """Whether the first document is, by its beginning."""
        return is_chinese(self.texts[0][:LANGUAGE_CHARACTERS])

    def run(self, rng: Generator, tokens: int) -> Ids:
        """`prefix` and a run of the documents from a random place: int64 [tokens]. DataError: too few
        tokens."""
        return self._from(int(rng.integers(0, self._spare(tokens) + 1)), tokens)

    def windows(self, count: int, tokens: int, seed: int) -> Ids:
        """int64 [count, tokens]: runs spread evenly over the documents; they overlap only if these are
        short."""
        spare = self._spare(tokens)
        offset = np.random.default_rng([seed, tokens]).random()
        starts = ((np.arange(count) + offset) / count * (spare + 1)).astype(int)
        return np.stack([self._from(start, tokens) for start in starts])

    def _spare(self, tokens: int) -> int:
        """How many more tokens the documents have than a text of `tokens` takes. DataError: fewer."""
        spare = len(self.ids) - (tokens - len(self.prefix))
        if spare < 0:
            raise DataError(
                f"documents: {len(self.ids)} tokens cannot fill a text of {tokens}; give more documents"
            )
        return spare

    def _from(self, start: int, tokens: int) -> Ids:
        run = self.ids[start : start + tokens - len(self.prefix)]
        return np.concatenate([np.asarray(self.prefix, dtype=np.int64), run])


def is_chinese(text: str) -> bool:
    return sum("\u4e00" <= one <= "\u9fff" for one in text) > CHINESE_SHARE * max(1, len(text))


def read_haystack(
    patterns: Sequence[str],
    files: Files,
    model_dir: Path,
    vocab_size: int,
    *,
    encode: Encode,
    decode: Decode | None = None,
    tokens: int,
    seed: int = 0,
) -> Haystack:
    """The documents of these patterns, in an order by seed, until they have `tokens` tokens.

    DataError when a pattern matches nothing. Files that are no text are left out.
    """
    tokenizer = Tokenizer(model_dir, vocab_size)
    texts: list[str] = []
    documents: list[Ids] = []
    total = 0
    sources: dict[str, SourceFile] = {}
    for pattern in patterns:
        found = {source.uri: source for source in files.expand(pattern) if source.size_bytes}
        if not found:
            raise DataError(f"documents: {pattern} matches no file with text; check the path, quote no globs")
        sources |= found
    order = sorted(sources.values(), key=lambda source: _shuffled(f"{seed}:{source.fingerprint}"))
    for source in order:
        try:
            of_source = [*read_texts(source, files, "text", tokenizer.render)]
        except NotText:
            continue
        for text in of_source:
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
    reader: ShardReader, tokenizer: Tokenizer, *, encode: Encode, decode: Decode, tokens: int, seed: int = 0
) -> Haystack:
    """Held-out documents, in an order by seed, until they have `tokens` tokens."""
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


def _shuffled(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
