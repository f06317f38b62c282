"""Units: parts of a corpus that workers prepare independently, on any machine and in any order.

A unit is a run of small files, or a stretch of a large one: bytes of text or of JSON lines, row groups of
Parquet. Where units begin depends on the corpus alone, so what is composed of them does as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import BinaryIO

from yarn_ops.data.files import Files, SourceFile
from yarn_ops.data.formats import Form, NotText, content_of, named
from yarn_ops.data.parquet import open_parquet
from yarn_ops.data.text import FRAGMENT_BYTES
from yarn_ops.data.tokenizer import Tokenizer
from yarn_ops.digests import digest_of
from yarn_ops.recipe import Data

VERSION = 3
"""Raise it when the same unit gives another result."""
UNITS = 256
"""a corpus has about so many: enough to spread evenly, few enough to be read as files by a trainer"""
LEAST_BYTES = 1 << 20
MOST_BYTES = 128 << 20
"""what a node that dies costs at most: half a minute of a core"""
MOST_FILES = 4096

ASKED_AT_ONCE = 8
"""large files whose beginnings are read"""


@dataclass(frozen=True)
class Unit:
    """Whole files, or the stretch [start, stop) of one: in bytes, of Parquet in row groups."""

    sources: tuple[SourceFile, ...]
    start: int = 0
    stop: int | None = None
    form: Form | None = None
    """of a stretch: what its file was found to hold when it was cut"""

    @property
    def size_bytes(self) -> int:
        """Bytes of its sources that it covers; an estimate where it covers a part of a Parquet file."""
        whole = sum(source.size_bytes for source in self.sources)
        return whole if self.stop is None else min(whole, self.stop - self.start)


@dataclass(frozen=True)
class UnitOptions:
    """Everything that a unit's result depends on besides its bytes."""

    tokenizer_digest: str
    eos_token_id: int | None
    vocab_size: int
    text_field: str
    languages: tuple[str, ...]
    signatures: bool
    """whether near duplicates are looked for"""
    shared_words: int | None
    """passages of that many words are looked for; None: none are"""
    chat_digest: str | None = None
    """of what chats are rendered by"""


def unit_options(data: Data, tokenizer: Tokenizer, vocab_size: int) -> UnitOptions:
    """What the recipe asks of every unit; the rest of its section is decided when units are composed."""
    return UnitOptions(
        tokenizer_digest=tokenizer.digest,
        eos_token_id=tokenizer.eos,
        vocab_size=vocab_size,
        text_field=data.text_field,
        languages=tuple(sorted(set(data.languages))),
        signatures=data.near_duplicate_similarity is not None,
        shared_words=data.shared_words,
        chat_digest=tokenizer.chat_digest,
    )


def unit_key(unit: Unit, options: UnitOptions) -> str:
    """sha256 of everything that the result depends on: contents, not places or the rest of the corpus."""
    contents = [[named(source), source.size_bytes, source.fingerprint] for source in unit.sources]
    return digest_of([VERSION, contents, unit.start, unit.stop, vars(options)])


def partition(sources: Sequence[SourceFile], files: Files, text_field: str) -> list[Unit]:
    """Units in the order of the sources. DataError when a Parquet file does not tell its row groups."""
    target = unit_bytes(sum(source.size_bytes for source in sources))
    large = [source for source in sources if source.size_bytes > target]
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        cut = dict(
            zip(large, pool.map(lambda one: _parts(one, target, files, text_field), large), strict=True)
        )
    units: list[Unit] = []
    group: list[SourceFile] = []
    held = 0
    for source in sources:
        parts = cut.get(source, [])
        if len(parts) > 1:
            units += [Unit(tuple(group))] if group else []
            units += parts
            group, held = [], 0
            continue
        if group and (held + source.size_bytes > target or len(group) == MOST_FILES):
            units.append(Unit(tuple(group)))
            group, held = [], 0
        group.append(source)
        held += source.size_bytes
    return [*units, Unit(tuple(group))] if group else units


def unit_bytes(corpus_bytes: int) -> int:
    """Target size of a unit: a power of two, so that a growing corpus keeps its units until it has
    doubled."""
    power: int = 1 << (max(1, corpus_bytes // UNITS).bit_length() - 1)
    return min(MOST_BYTES, max(LEAST_BYTES, power))


def _parts(source: SourceFile, target: int, files: Files, text_field: str) -> list[Unit]:
    """The stretches of a large file; none where it has to be read from its beginning."""
    with closing(files.open(source.uri)) as file:
        try:
            content = content_of(file, source, text_field)
        except NotText:  # is told, and counted, where it is read
            return []
        if content.form == "parquet":
            return list(_row_groups(file, source, target))
    if not content.plain or content.form == "values":
        return []
    step = target if content.form == "lines" else max(1, target // FRAGMENT_BYTES) * FRAGMENT_BYTES
    return [
        Unit((source,), start, min(start + step, source.size_bytes), content.form)
        for start in range(0, source.size_bytes, step)
    ]


def _row_groups(file: BinaryIO, source: SourceFile, target: int) -> Iterator[Unit]:
    table = open_parquet(file, source.uri)
    start = held = 0
    for group in range(table.metadata.num_row_groups):
        columns = table.metadata.row_group(group)
        held += sum(columns.column(i).total_compressed_size for i in range(columns.num_columns))
        if held >= target or group + 1 == table.metadata.num_row_groups:
            yield Unit((source,), start, group + 1, "parquet")
            start, held = group + 1, 0
