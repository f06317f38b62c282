"""Prepare: documents become token shards, split by document into `train` and `held_out`."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Protocol

from yarn_ops.atomic import atomic_write
from yarn_ops.data import audit
from yarn_ops.data.compose import DocumentTable, choose, write_index
from yarn_ops.data.corpus import EVALUATION, read_sources
from yarn_ops.data.files import Files
from yarn_ops.data.fragments import TOKENS, Fate, make_unit
from yarn_ops.data.layout import ShardWriter, token_file_name
from yarn_ops.data.tokenizer import Tokenizer
from yarn_ops.data.units import Unit, UnitOptions, partition, unit_key, unit_options
from yarn_ops.digests import canonical_json, digest_tree
from yarn_ops.errors import DataError
from yarn_ops.progress import OnProgress
from yarn_ops.recipe import Data
from yarn_ops.records import BaseModel, Corpus, Dropped, Local, ShardSet, Tree
from yarn_ops.shown import counted

DIGESTS = "digests.json"
"""of the files of a unit that is kept on this machine: {name: sha256}"""


log = logging.getLogger(__name__)


class Units(Protocol):
    """Where units are made, and where their results are kept by the units' keys."""

    @property
    def files(self) -> Files:
        """Where the sources come from."""

    def make(self, units: Mapping[str, Unit], options: UnitOptions, tokenizer: Tokenizer) -> Iterator[str]:
        """Have every unit made that has no result yet; each key as its result is there, in any order."""

    def file(self, key: str, name: str) -> Path:
        """One of the files of a result (see fragments.py), on this machine."""

    def place(self, results: Mapping[str, str], out: Path) -> Tree | None:
        """Put token files beside what `out` holds: {name: key of the unit whose tokens it has}.

        The whole directory in object storage, where that is where they lie; then they do not come to `out`.
        """


def prepare(
    data: Data,
    corpus: Local[Corpus],
    base: Local[BaseModel],
    out: Path,
    *,
    units: Units,
    report: OnProgress,
) -> ShardSet:
    """Tokenise the corpus into `out` (see layout.py), and clean it as `data` asks.

    Documents are whole, in the order of the sources, with the tokenizer's prefix before each and EOS behind.
    For what is left out, and who is on which side of the split, see `compose.choose`.
    The result depends on the documents, the tokenizer and `data`, never on how many make units, nor on the
    order in which these are done, nor on paths or time. `report(bytes done, bytes in all, text)` is called as
    units are done. DataError when fewer than two different documents are found or a source is damaged.
    """
    tokenizer = Tokenizer(base.path, base.record.vocab_size)
    options = unit_options(data, tokenizer, base.record.vocab_size)
    parts = partition(read_sources(corpus.path), units.files, data.text_field)
    others = partition(read_sources(corpus.path, EVALUATION), units.files, data.text_field)
    keys = [unit_key(unit, options) for unit in [*parts, *others]]
    _make(dict(zip(keys, [*parts, *others], strict=True)), options, tokenizer, units, report)

    documents = DocumentTable(parts, lambda unit, name: units.file(keys[unit], name))
    measured = (
        DocumentTable(others, lambda unit, name: units.file(keys[len(parts) + unit], name))
        if others
        else None
    )
    out.mkdir(parents=True, exist_ok=True)
    held_out = choose(documents, data, measured)
    kept = documents.fates == Fate.KEPT
    left_out = audit.dropped(documents.fates)
    _check_sides(int((kept & ~held_out).sum()), int(held_out.sum()), corpus.record.files, left_out)
    filled = [unit for unit, tokens in enumerate(documents.unit_tokens) if tokens]
    with ShardWriter(out, tokenizer.dtype) as writer:
        write_index(documents, held_out, writer)
        sizes = writer.finish(
            [documents.unit_tokens[unit] for unit in filled],
            {
                "tokenizer_digest": tokenizer.digest,
                "vocab_size": base.record.vocab_size,
                "eos_token_id": tokenizer.eos,
                **({"prefix": tokenizer.prefix.tolist()} if tokenizer.prefix.size else {}),
                "dropped": left_out.model_dump(),
            },
        )
    tree = units.place({token_file_name(number): keys[unit] for number, unit in enumerate(filled)}, out)
    lengths = documents.tokens[kept]
    return ShardSet(
        tree=tree,
        tokenizer_digest=tokenizer.digest,
        vocab_size=base.record.vocab_size,
        train_documents=sizes["train"][0],
        train_tokens=sizes["train"][1],
        held_out_documents=sizes["held_out"][0],
        held_out_tokens=sizes["held_out"][1],
        longest_document_tokens=int(lengths.max()),
        dropped=left_out,
        lengths=audit.length_shares(lengths, base.record.context_tokens),
    )


def _make(
    asked: Mapping[str, Unit],
    options: UnitOptions,
    tokenizer: Tokenizer,
    units: Units,
    report: OnProgress,
) -> None:
    total = sum(unit.size_bytes for unit in asked.values())
    done_bytes = 0
    for count, key in enumerate(units.make(asked, options, tokenizer), 1):
        done_bytes += asked[key].size_bytes
        report(done_bytes, total, f"{count} of {len(asked)} units")


def _check_sides(train: int, held_out: int, files: int, left_out: Dropped) -> None:
    if train and held_out:
        return
    raise DataError(
        f"data.sources: {counted(train + held_out, 'usable document')} in {counted(files, 'file')} "
        f"(left out: {audit.in_words(left_out)}); "
        "give at least two different documents, one to train on and one to hold out"
    )


class LocalUnits:
    """`Units` made in threads of this process, kept in a directory: `<key>` is there once it is whole."""

    def __init__(self, folder: Path, files: Files, threads: int) -> None:
        self._folder = folder
        self._files = files
        self._threads = threads

    @property
    def files(self) -> Files:
        return self._files

    def make(self, units: Mapping[str, Unit], options: UnitOptions, tokenizer: Tokenizer) -> Iterator[str]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(self._threads) as pool:
            futures = {
                pool.submit(self._make, key, unit, options, tokenizer): key
                for key, unit in sorted(units.items(), key=lambda item: -item[1].size_bytes)
            }
            try:
                for future in as_completed(futures):
                    future.result()
                    yield futures[future]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _make(self, key: str, unit: Unit, options: UnitOptions, tokenizer: Tokenizer) -> None:
        whole = self._folder / key
        if whole.exists() and not _is_sound(whole):
            log.warning("%s: damaged since an earlier attempt; made again", whole)
            shutil.rmtree(whole)
        if not whole.exists():
            with atomic_write(whole, durable=True) as draft:
                make_unit(unit, options, tokenizer, self._files, draft)
                (draft / DIGESTS).write_text(canonical_json(digest_tree(draft, threads=1)), "utf-8")

    def file(self, key: str, name: str) -> Path:
        return self._folder / key / name

    def place(self, results: Mapping[str, str], out: Path) -> Tree | None:
        for name, key in results.items():
            (out / name).unlink(missing_ok=True)
            os.link(self.file(key, TOKENS), out / name)
        return None


def _is_sound(unit: Path) -> bool:
    """Whether a unit's directory holds the bytes that were written."""
    found = digest_tree(unit, threads=1)
    found.pop(DIGESTS, None)
    try:
        return (unit / DIGESTS).read_text("utf-8") == canonical_json(found)
    except (OSError, UnicodeDecodeError):
        return False
