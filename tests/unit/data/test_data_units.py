"""A corpus may be cut into units anywhere, and these made in any order: the same documents come of it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from yarn_ops.data import documents as reading
from yarn_ops.data import text as texts
from yarn_ops.data import units as cutting
from yarn_ops.data.compose import DocumentTable, choose
from yarn_ops.data.corpus import survey
from yarn_ops.data.files import LocalFiles, SourceFile
from yarn_ops.data.fragments import FRAGMENT, FRAGMENTS, Fate
from yarn_ops.data.layout import SPLITS, ShardReader
from yarn_ops.data.shards import LocalUnits, prepare
from yarn_ops.data.text import fragments, fragments_of
from yarn_ops.data.tokenizer import Tokenizer
from yarn_ops.data.units import Unit, UnitOptions, partition, unit_bytes, unit_key
from yarn_ops.digests import digest_tree
from yarn_ops.errors import DataError
from yarn_ops.recipe import Data
from yarn_ops.records import BaseModel, Local

WORD = st.text(st.sampled_from("abz09_.(é中🌍"), min_size=1, max_size=6)
FRAGMENT_BYTES, CUT_BYTES = 300, 60


@pytest.fixture
def small_fragments(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (texts, reading, cutting):
        monkeypatch.setattr(module, "FRAGMENT_BYTES", FRAGMENT_BYTES)
    monkeypatch.setattr(texts, "CUT_BYTES", CUT_BYTES)


@settings(max_examples=60)
@given(st.lists(WORD, min_size=1, max_size=400), st.integers(1, 3))
def test_fragments_are_the_text_wherever_it_is_taken_up(words: list[str], together: int) -> None:
    content = " ".join(words).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "FRAGMENT_BYTES", FRAGMENT_BYTES)
        patch.setattr(texts, "CUT_BYTES", CUT_BYTES)
        whole = fragments_of(content)
        assert b"".join(whole) == content
        assert all(part.decode() and len(part) <= FRAGMENT_BYTES + CUT_BYTES for part in whole)
        step = together * FRAGMENT_BYTES
        stretches = [
            list(fragments(io.BytesIO(content), len(content), start, min(start + step, len(content))))
            for start in range(0, len(content), step)
        ]
        assert [part for stretch in stretches for part in stretch] == whole


@pytest.mark.parametrize(
    ("corpus_bytes", "expected"),
    [(0, 1 << 20), (300 << 20, 1 << 20), (2 << 30, 8 << 20), (3 << 30, 8 << 20), (10 << 40, 128 << 20)],
)
def test_units_grow_with_the_corpus_in_powers_of_two(corpus_bytes: int, expected: int) -> None:
    assert unit_bytes(corpus_bytes) == expected


class FilesByName(LocalFiles):
    """Of which each begins as it is named."""

    def open(self, uri: str, until: int = 0) -> BinaryIO:
        begins = {"jsonl": b'{"text": "a"}\n', "gz": gzip.compress(b"{}")}
        return io.BytesIO(begins.get(uri.rpartition(".")[2], b"text"))


@given(st.lists(st.tuples(st.integers(1, 3000), st.sampled_from(["txt", "jsonl", "jsonl.gz"])), min_size=1))
def test_every_byte_is_in_one_unit(files: list[tuple[int, str]]) -> None:
    sources = [SourceFile(f"file:///{n:03}.{kind}", size, str(n)) for n, (size, kind) in enumerate(files)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "LEAST_BYTES", 1000)
        patch.setattr(cutting, "FRAGMENT_BYTES", 500)
        units = partition(sources, FilesByName(), "text")
    assert [s for unit in units for s in unit.sources if unit.start == 0] == sources
    for source in sources:
        stretches = [(unit.start, unit.stop) for unit in units if source in unit.sources]
        ends = [0, *(stop or source.size_bytes for _, stop in stretches)]
        assert [start for start, _ in stretches] == ends[:-1] and ends[-1] == source.size_bytes
    whole = [unit for unit in units if not unit.sources[0].uri.endswith(".gz") or len(unit.sources) > 1]
    assert max((unit.size_bytes for unit in whole), default=0) <= 1000


def test_a_key_is_of_contents_not_of_places() -> None:
    options = UnitOptions("t", 0, 8192, "text", (), False, None)
    one = Unit((SourceFile("file:///a/x.jsonl", 9, "f"),), 0, 5)
    moved = Unit((SourceFile("s3://b/y.JSONL", 9, "f"),), 0, 5)
    others = [
        Unit((SourceFile("file:///a/x.jsonl", 9, "g"),), 0, 5),
        Unit((SourceFile("file:///a/x.txt", 9, "f"),), 0, 5),
        Unit((SourceFile("file:///a/x.jsonl", 9, "f"),), 0, 6),
    ]
    assert unit_key(one, options) == unit_key(moved, options)
    assert len({unit_key(unit, options) for unit in [one, *others]}) == 4
    assert unit_key(one, options) != unit_key(one, UnitOptions("t", 1, 8192, "text", (), False, None))


def documents_in(place: Path, rows: list[tuple[object, ...]], cuts: set[int]) -> DocumentTable:
    """Of one file of JSON lines whose fragments are in units that begin at `cuts`."""
    source = SourceFile("file:///a.jsonl", 1000, "f" * 64)
    bounds = sorted({0, *cuts, len(rows)})
    for number, (start, stop) in enumerate(pairwise(bounds)):
        (place / str(number)).mkdir(exist_ok=True)
        (place / str(number) / FRAGMENTS).write_bytes(np.array(rows[start:stop], FRAGMENT).tobytes())
    units = [Unit((source,), start, stop) for start, stop in pairwise(bounds)]
    return DocumentTable(units, lambda unit, name: place / str(unit) / name)


@given(
    st.lists(st.lists(st.sampled_from([0, 0, 0, 2, 4, 5]), min_size=1, max_size=4), min_size=1, max_size=30),
    st.sets(st.integers(1, 60), max_size=8),
    st.integers(0, 9),
)
def test_documents_do_not_depend_on_where_units_begin(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], cuts: set[int], seed: int
) -> None:
    chance = random.Random(seed)
    rows = []
    for fates in shapes:
        for at, fate in enumerate(fates):
            digest = hashlib.sha256(b"%d" % chance.randrange(8)).digest()
            rows.append((0, at == 0, True, fate, chance.randrange(50), 0, digest))
    data = Data(seed=seed, held_out_fraction=0.3, min_document_tokens=9)
    found = []
    for name, begins in (("one", set()), ("many", {cut for cut in cuts if cut < len(rows)})):
        documents = documents_in(tmp_path_factory.mktemp(name), rows, begins)
        held_out = choose(documents, data, None)
        arrays = (documents.fates, documents.tokens, documents.starts, held_out)
        names = [documents.name(number) for number in range(len(documents))]
        found.append(([array.tolist() for array in arrays], names))
    assert found[0] == found[1]
    assert found[0][1] == [f"a.jsonl@{'f' * 12}#{row}" for row in range(len(shapes))]
    kept = [number for number, fate in enumerate(found[0][0][0]) if fate == Fate.KEPT]
    texts = [tuple(row[6] for row in rows[start : start + len(fates)]) for start, fates in _begins(shapes)]
    assert len({texts[number] for number in kept}) == len(kept)


def _begins(shapes: list[list[int]]) -> Iterator[tuple[int, list[int]]]:
    start = 0
    for fates in shapes:
        yield start, fates
        start += len(fates)


class ShuffledUnits(LocalUnits):
    """Makes units one by one, in an order by chance."""

    def make(self, units: Mapping[str, Unit], options: UnitOptions, tokenizer: Tokenizer) -> Iterator[str]:
        for key in random.Random(len(units)).sample(sorted(units), len(units)):
            yield from super().make({key: units[key]}, options, tokenizer)


def write_corpus(folder: Path) -> Data:
    """Every kind of file; long, short, equal and empty documents; blank lines; a file that is no text."""
    folder.mkdir()
    chance = random.Random(4)
    rows = [" ".join(f"w{chance.randrange(50)}" for _ in range(chance.randrange(1, 200))) for _ in range(60)]
    rows += [rows[3], "", " \n", "Grüße 中文 🌍 " * 60]
    lines = [json.dumps({"text": row}) for row in rows]
    (folder / "a.jsonl").write_text("\n\n".join(lines[:40]) + "\n")
    parquet.write_table(pa.table({"text": rows[30:]}), folder / "b.parquet", row_group_size=5)
    (folder / "c.txt").write_text("\ufeff" + " ".join(f"long{n}" for n in range(900)))
    (folder / "d.txt").write_bytes((folder / "c.txt").read_bytes()[3:])
    (folder / "e.txt").write_text("text " * 300 + "\0")
    for number in range(9):
        (folder / f"f{number}.txt").write_text(f"small file number {number} " * (1 + number))
    return Data(sources=(f"{folder}/*",), near_duplicate_similarity=0.9, shared_words=40)


def documents_of(path: Path) -> dict[str, list[tuple[str, list[int]]]]:
    readers = {split: ShardReader(path, split) for split in SPLITS}
    return {
        split: [(reader.document_id(n), reader.document(n).tolist()) for n in range(reader.documents)]
        for split, reader in readers.items()
    }


def test_the_documents_do_not_depend_on_units_nor_the_bytes_on_their_order(
    tmp_path: Path, base: Local[BaseModel], monkeypatch: pytest.MonkeyPatch, small_fragments: None
) -> None:
    data = write_corpus(tmp_path / "in")
    corpus = Local(survey(data, LocalFiles(), tmp_path / "corpus"), tmp_path / "corpus")
    found, records, trees = {}, {}, {}
    for least_bytes in (200, 700, 3000, 1 << 20):
        monkeypatch.setattr(cutting, "LEAST_BYTES", least_bytes)
        for kind in (LocalUnits, ShuffledUnits):
            place = tmp_path / f"{kind.__name__}-{least_bytes}"
            units = kind(place / "units", LocalFiles(), 2)
            record = prepare(data, corpus, base, place / "out", units=units, report=lambda *_: None)
            records[place], found[place] = record, documents_of(place / "out")
            trees[kind, least_bytes] = digest_tree(place / "out")
        assert trees[LocalUnits, least_bytes] == trees[ShuffledUnits, least_bytes]
    first = next(iter(found))
    assert all(each == found[first] for each in found.values())
    assert all(each == records[first] for each in records.values())
    files = {least: sum(name.startswith("tokens-") for name in tree) for (_, least), tree in trees.items()}
    assert files[200] > files[700] > files[3000] > files[1 << 20] == 1
    dropped = records[first].dropped
    assert (dropped.not_text, dropped.empty, dropped.duplicates) == (1, 2, 11)
    names = [name for side in found[first].values() for name, _ in side]
    assert "a.jsonl" in {name.split("@")[0] for name in names}
    assert not [name for name in names if name.startswith("d.txt")]  # c.txt again, cut three bytes on
    assert dropped.near_duplicates == 1


def test_a_document_over_many_files_is_read_in_parts(
    tmp_path: Path, base: Local[BaseModel], monkeypatch: pytest.MonkeyPatch, small_fragments: None
) -> None:
    monkeypatch.setattr(cutting, "LEAST_BYTES", 300)
    data = write_corpus(tmp_path / "in")
    corpus = Local(survey(data, LocalFiles(), tmp_path / "corpus"), tmp_path / "corpus")
    units = LocalUnits(tmp_path / "units", LocalFiles(), 2)
    prepare(data, corpus, base, tmp_path / "out", units=units, report=lambda *_: None)
    reader = next(
        reader
        for reader in (ShardReader(tmp_path / "out", split) for split in SPLITS)
        if any(reader.document_id(n).startswith("c.txt") for n in range(reader.documents))
    )
    number = next(n for n in range(reader.documents) if reader.document_id(n).startswith("c.txt"))
    whole = reader.document(number).tolist()
    assert len(whole) == reader.lengths[number] > 1000
    for start, stop in ((0, None), (5, 9), (0, 0), (700, 2000), (len(whole) - 3, None), (10**6, None)):
        part = reader.document(number, start, stop)
        assert part.tolist() == whole[start:stop] and not part.flags.writeable


class NoFiles(LocalFiles):
    """Gives nothing to read."""

    def read(self, uri: str) -> bytes:
        raise DataError(f"{uri}: asked for again")


def test_finished_units_are_not_made_again(
    tmp_path: Path, base: Local[BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "LEAST_BYTES", 600)
    data = write_corpus(tmp_path / "in")
    (tmp_path / "in/z.jsonl").write_text("{")
    corpus = Local(survey(data, LocalFiles(), tmp_path / "corpus"), tmp_path / "corpus")
    units = LocalUnits(tmp_path / "units", LocalFiles(), 1)
    with pytest.raises(DataError, match=r"z\.jsonl, line 1: not JSON"):
        prepare(data, corpus, base, tmp_path / "out", units=units, report=lambda *_: None)
    (tmp_path / "in/z.jsonl").unlink()
    corpus = Local(survey(data, LocalFiles(), tmp_path / "again"), tmp_path / "again")
    left = prepare(data, corpus, base, tmp_path / "out", units=units, report=lambda *_: None)
    nothing = LocalUnits(tmp_path / "units", NoFiles(), 1)
    assert prepare(data, corpus, base, tmp_path / "out", units=nothing, report=lambda *_: None) == left
