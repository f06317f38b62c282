"""Training documents in a bucket: found by glob, fingerprinted, read as seekable streams."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from stores import swift_options
from swift_cluster import SwiftCluster

from yarn_ops.data.files import Files
from yarn_ops.errors import DataError, StoreError
from yarn_ops.store import Store, StoreOptions, files_for, open_store
from yarn_ops.store.documents import ObjectStream
from yarn_ops.store.s3 import S3Store

KEYS = ("books/a.txt", "books/b.md", "books/old/c.txt", "books/old/deep/d.txt", "notes.txt", "books/[x].txt")


@pytest.fixture
def root(swift: SwiftCluster, bucket: str) -> Store:
    store = open_store(f"s3://{bucket}", swift_options(swift))
    for key in KEYS:
        store.write(key, key.encode())
    return store


@pytest.fixture
def files(swift: SwiftCluster) -> Files:
    return files_for(swift_options(swift))


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("books/*.txt", ["books/[x].txt", "books/a.txt"]),
        ("books/**/*.txt", ["books/[x].txt", "books/a.txt", "books/old/c.txt", "books/old/deep/d.txt"]),
        ("**", sorted(KEYS)),
        ("books/?.md", ["books/b.md"]),
        ("books/[ab].*", ["books/a.txt", "books/b.md"]),
        ("books/[!a].*", ["books/b.md"]),
        ("books/[x].txt", ["books/[x].txt"]),
        ("notes.txt", ["notes.txt"]),
        ("books", []),
        ("books?a.txt", []),
    ],
)
def test_globs_name_objects(root: Store, files: Files, pattern: str, found: list[str]) -> None:
    assert [file.uri for file in files.expand(f"{root.url}/{pattern}")] == [
        f"{root.url}/{key}" for key in found
    ]


def test_a_fingerprint_changes_with_the_object(root: Store, files: Files) -> None:
    (before,) = files.expand(f"{root.url}/notes.txt")
    assert list(files.expand(f"{root.url}/notes.txt")) == [before]
    root.write("notes.txt", b"notes-txt")
    (after,) = files.expand(f"{root.url}/notes.txt")
    assert before.size_bytes == after.size_bytes == 9
    assert before.fingerprint != after.fingerprint


def test_an_object_is_a_seekable_file(root: Store, files: Files) -> None:
    data = os.urandom(3_000_000)
    root.write("large", data)
    with files.open(f"{root.url}/large") as file:
        assert file.read() == data
        assert file.seek(-5, io.SEEK_END) == len(data) - 5
        assert file.read() == data[-5:]
        assert file.seek(1_500_000) == 1_500_000
        assert file.read(7) == data[1_500_000:1_500_007]
        assert file.tell() == 1_500_007
        assert file.seek(len(data) + 9) == len(data) + 9
        assert file.read() == b""


class Noting(S3Store):
    """Notes the ranges that it is asked for."""

    def __init__(self, url: str, options: StoreOptions) -> None:
        super().__init__(url, options)
        self.ranges: list[tuple[int, int]] = []

    def read_range(self, key: str, start: int, stop: int, version: str | None = None) -> Iterator[bytes]:
        self.ranges.append((start, stop))
        return super().read_range(key, start, stop, version)


@pytest.fixture
def noting(root: Store, swift: SwiftCluster) -> Noting:
    return Noting(root.url, swift_options(swift))


def stream_of(noting: Noting, key: str, until: int) -> io.BufferedReader:
    info = noting.head(key)
    assert info is not None
    return io.BufferedReader(ObjectStream(noting, info, until), 1 << 20)


def test_a_stretch_is_asked_for_once_and_no_more_than_that(noting: Noting) -> None:
    data = os.urandom(6_000_000)
    noting.write("large", data)
    with stream_of(noting, "large", until=4_000_000) as file:
        file.seek(999_999)
        assert file.read(3_000_000) == data[999_999:3_999_999]
    assert noting.ranges == [(999_999, 4_000_000)]


def test_what_is_read_beyond_is_asked_for_in_growing_parts(noting: Noting) -> None:
    data = os.urandom(9_000_000)
    noting.write("large", data)
    with stream_of(noting, "large", until=0) as file:
        assert file.read() == data
    mib = 1 << 20
    assert noting.ranges == [(0, mib), (mib, 3 * mib), (3 * mib, 7 * mib), (7 * mib, len(data))]


def test_an_object_that_is_replaced_while_it_is_read_is_an_error(noting: Noting) -> None:
    noting.write("large", os.urandom(3_000_000))
    with stream_of(noting, "large", until=0) as file:
        file.read(1 << 20)
        noting.write("large", os.urandom(3_000_000))
        with pytest.raises(StoreError, match="large"):
            file.read()


def test_lines_and_parquet_are_read_from_a_bucket(root: Store, files: Files) -> None:
    table = arrow.table({"text": [f"document {number}" for number in range(1000)]})
    sink = io.BytesIO()
    parquet.write_table(table, sink, row_group_size=100)
    root.write("rows.parquet", sink.getvalue())
    root.write("lines.txt", b"one\ntwo\nthree")
    with files.open(f"{root.url}/rows.parquet") as file:
        assert parquet.read_table(file).equals(table)
    with files.open(f"{root.url}/lines.txt") as file:
        assert list(io.TextIOWrapper(file)) == ["one\n", "two\n", "three"]


def test_files_can_be_handed_to_another_process(root: Store, files: Files) -> None:
    assert next(files.expand(f"{root.url}/notes.txt")).size_bytes == 9
    again: Files = pickle.loads(pickle.dumps(files))
    assert again.open(f"{root.url}/notes.txt").read() == b"notes.txt"


def test_local_patterns_go_to_the_local_disk(files: Files) -> None:
    (found,) = files.expand("stdlib:json/__init__.py")
    assert b"JSON" in files.open(found.uri).read()


def test_what_cannot_be_read_is_said(root: Store, files: Files) -> None:
    with pytest.raises(DataError, match="gone: no such object"):
        files.open(f"{root.url}/gone")
    with pytest.raises(DataError, match="names no objects"):
        list(files.expand("s3://bucket-only"))
    with pytest.raises(StoreError, match="no such bucket"):
        list(files.expand("s3://no-such-bucket/*.txt"))
