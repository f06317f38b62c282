"""Small files that become gigabytes end in one line: memory is bounded by a row and a batch, not by them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from limited import GIB, limited
from pyarrow import parquet

from yarn_ops.data.documents import read_texts
from yarn_ops.data.files import LocalFiles
from yarn_ops.data.parquet import page_of

MIB = 1 << 20
MOST_GROWTH_BYTES = int(1.2 * GIB)

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


def zstd_line(path: Path) -> None:
    """One line of 3 GiB, in some 100 kB."""
    with path.open("wb") as raw, zstandard.ZstdCompressor(level=1).stream_writer(raw) as packed:
        packed.write(b'{"text": "')
        for _ in range(192):
            packed.write(b"a" * (16 * MIB))


def zstd_item(path: Path) -> None:
    """An array with one item of 3 GiB."""
    with path.open("wb") as raw, zstandard.ZstdCompressor(level=1).stream_writer(raw) as packed:
        packed.write(b'[{"text": "')
        for _ in range(192):
            packed.write(b"a" * (16 * MIB))


def chats(path: Path) -> None:
    """A message of a megabyte, ten thousand times."""
    said = pa.StructArray.from_arrays([repeated(3, 9999), repeated(MIB, 9999)], ["role", "content"])
    messages = pa.ListArray.from_arrays(pa.array([0, 9999], pa.int32()), said)
    parquet.write_table(pa.table({"messages": messages}), path, compression="zstd")


def empty_messages(path: Path) -> None:
    """Forty million messages of nothing, in a row."""
    count = 40_000_000
    said = pa.StructArray.from_arrays([repeated(0, count)], ["role"])
    messages = pa.LargeListArray.from_arrays(pa.array([0, count], pa.int64()), said)
    parquet.write_table(pa.table({"messages": messages}), path, compression="zstd")


def zstd_lines(path: Path) -> None:
    """Ten million lines of a document each."""
    with path.open("wb") as raw, zstandard.ZstdCompressor(level=1).stream_writer(raw) as packed:
        for _ in range(25):
            packed.write(b'{"text": "a"}\n' * 400_000)


def gzip_line(path: Path) -> None:
    with gzip.open(path, "wb", 1) as packed:
        for _ in range(40):
            packed.write(b"\0" * (16 * MIB))


def json_line(line: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(line() + b"\n")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def column(values: Callable[[], pa.Array]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        parquet.write_table(pa.table({"text": values()}), path, compression="zstd")

    return write


def repeated(size_bytes: int, rows: int) -> pa.Array:
    """One value, many times, stored once."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["a" * size_bytes]))


def large_values(path: Path) -> None:
    """Rows of 100 MiB, each in a page of its own."""
    table = pa.schema({"text": pa.large_string()})
    with parquet.ParquetWriter(path, table, compression="zstd", use_dictionary=False) as writer:
        value = pa.table({"text": pa.array(["a" * (100 * MIB)], pa.large_string())})
        for _ in range(4):
            writer.write_table(value)


def huge_page(path: Path) -> None:
    """A page of a few bytes whose header says that it becomes 2 GiB."""
    parquet.write_table(pa.table({"text": ["a" * 70, "b"]}), path, use_dictionary=False, compression="zstd")
    content = bytearray(path.read_bytes())
    chunk = parquet.ParquetFile(path).metadata.row_group(0).column(0)
    page = page_of(content[chunk.data_page_offset :])
    assert page
    header = content[chunk.data_page_offset : chunk.data_page_offset + page.header_bytes]
    old, new = varint(page.size_bytes), varint(2**31 - 1)
    assert header.count(b"\x15" + old) == 1 and page.stored_bytes
    changed = header.replace(b"\x15" + old, b"\x15" + new)
    # the header is longer now: the chunk begins so much earlier, over the file's first four bytes if need be
    start = chunk.data_page_offset - (len(changed) - page.header_bytes)
    content[start : chunk.data_page_offset + page.header_bytes] = changed
    path.write_bytes(content.replace(varint(chunk.data_page_offset), varint(start)))


def varint(value: int) -> bytes:
    """A whole number as thrift's compact protocol has it."""
    value, out = 2 * value, b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def shared_beginnings(path: Path) -> None:
    """Three gigabytes of values that begin alike, each stored as its end alone."""
    with parquet.ParquetWriter(
        path,
        pa.schema({"text": pa.large_string()}),
        compression="zstd",
        use_dictionary=False,
        column_encoding={"text": "DELTA_BYTE_ARRAY"},
    ) as writer:
        for start in range(0, 3000, 100):
            values = ["a" * MIB + str(number) for number in range(start, start + 100)]
            writer.write_table(pa.table({"text": pa.array(values, pa.large_string())}))


BOMBS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a line of gigabytes, zstd": ("a.jsonl.zst", zstd_line, "line 1: longer than"),
    "an item of gigabytes, zstd": ("a.json.zst", zstd_item, "item 1: longer than"),
    "many lines, zstd": ("a.jsonl.zst", zstd_lines, "becomes more than"),
    "a line of zeros, gzip": ("a.jsonl.gz", gzip_line, "line 1: longer than"),
    "a line without an end": ("a.jsonl", json_line(lambda: b'{"text": "' + b"a" * (65 * MIB)), "longer than"),
    "small parts": ("a.jsonl", json_line(lambda: b'{"a": [' + b"{}," * (20 * MIB) + b"0]}"), "1: not JSON"),
    "a nest": ("a.jsonl", json_line(lambda: b"[" * (60 * MIB)), "item 1: not JSON"),
    "a nest of objects": ("a.jsonl", json_line(lambda: b'{"a":' * (8 * MIB)), "line 1: not JSON"),
    "a long number": ("a.jsonl", json_line(lambda: b'{"n": ' + b"9" * (60 * MIB) + b"}"), "not JSON"),
    "a sparse file": ("a.txt", sparse, "hardly any are stored"),
    "one value, many rows": ("a.parquet", column(lambda: repeated(100 * MIB, 640)), "longer than"),
    "one small value, many rows": ("a.parquet", column(lambda: repeated(MIB, 100_000)), "becomes more than"),
    "nothing, in one row": ("a.parquet", empty_messages, "values in a column of a row group"),
    "nothing, many rows": ("a.parquet", column(lambda: repeated(0, 8_000_000)), "becomes more than"),
    "large values": ("a.parquet", large_values, "row 1: longer than"),
    "one message, many times": ("a.parquet", chats, "row 1: longer than"),
    "a page that says it is large": ("a.parquet", huge_page, "a page of 2,147,483,647 bytes"),
    "shared beginnings": ("a.parquet", shared_beginnings, "becomes more than"),
}  # fmt: skip


def read(path: Path) -> int:
    (source,) = LocalFiles().expand(str(path))
    return sum(len(text) for text in read_texts(source, LocalFiles(), "text"))


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_named_in_bounded_memory(tmp_path: Path, bomb: str) -> None:
    name, write, says = BOMBS[bomb]
    assert limited(write, tmp_path / name)[0] == "returned"  # in a child, which gives its memory back
    ended, told, seconds, taken_bytes = limited(read, tmp_path / name)
    assert (ended, says in told) == ("DataError", True), told
    assert name in told and "\n" not in told
    assert taken_bytes < MOST_GROWTH_BYTES, f"{taken_bytes / MIB:.0f} MiB in {seconds:.1f} s"


def test_large_rows_are_read(tmp_path: Path) -> None:
    """Rows of a few megabytes, in pages that are too large for a whole batch of rows."""
    texts = [f"{number}" * (5 * MIB) for number in range(8)] + ["small"] * 100
    parquet.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=60)
    (source,) = LocalFiles().expand(str(tmp_path / "a.parquet"))
    assert list(read_texts(source, LocalFiles(), "text")) == texts
