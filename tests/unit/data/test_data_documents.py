"""Every format gives the same documents; every malformed one is named by file and row."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from yarn_ops.data.documents import read_fragments, read_texts
from yarn_ops.data.files import LocalFiles
from yarn_ops.data.formats import NotText
from yarn_ops.data.units import Unit
from yarn_ops.errors import DataError

TEXTS = ["one\ntwo", "", "Grüße 🌍\r\n", "x" * 70_000]
LINES = "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in TEXTS).encode()


def read(path: Path, text_field: str = "text") -> list[str]:
    (source,) = LocalFiles().expand(str(path))
    return list(read_texts(source, LocalFiles(), text_field))


def zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


def write_parquet(path: Path, **columns: list[object]) -> None:
    parquet.write_table(pa.table(columns), path, row_group_size=2)


ROW_FILES: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: path.write_bytes(LINES),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "a.jsonl.zst": lambda path: path.write_bytes(zstd(LINES)),
    "frames.jsonl.zst": lambda path: path.write_bytes(zstd(LINES[:50]) + zstd(LINES[50:])),
    "A.JSONL": lambda path: path.write_bytes(LINES.replace(b"\n", b"\r\n").rstrip()),
    "a.parquet": lambda path: write_parquet(path, n=[1] * 4, text=TEXTS),
}


@pytest.mark.parametrize("name", ROW_FILES)
def test_a_row_is_a_document(tmp_path: Path, name: str) -> None:
    ROW_FILES[name](tmp_path / name)
    assert read(tmp_path / name) == TEXTS


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "no_suffix"])
def test_a_text_file_is_a_document(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + TEXTS[2].encode())
    assert read(tmp_path / name) == [TEXTS[2]]


def test_blank_lines_are_no_rows_but_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"text": "a"}\n  \n{"text": "b"}\n')
    (source,) = LocalFiles().expand(str(tmp_path / "a.jsonl"))
    rows = [fragment.text for fragment in read_fragments(Unit((source,)), source, LocalFiles(), "text")]
    assert rows == [None, "a", None, "b"]


def test_another_field_can_be_the_text(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", body=["a", "b"])
    assert read(tmp_path / "a.parquet", "body") == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl, item 1: not JSON"),
        ("a.jsonl", b'["text"]\n', "item 1: expected an object with 'text', found str"),
        ("a.jsonl", b'{"body": "a"}\n', "line 1: no field 'text', it has: body; set data.text_field"),
        ("a.jsonl", b'{"text": null}\n', "a.jsonl, line 1: 'text' is null; set data.text_field"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1: 'text' holds half of a surrogate pair"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9], "a.jsonl.gz: damaged gzip file"),
        (
            "a.jsonl.gz",
            gzip.compress(LINES, mtime=0)[:30] + b"\xff" * 30,
            "a.jsonl.gz: damaged gzip file",
        ),
        ("a.jsonl.zst", zstd(LINES)[:-9], "a.jsonl.zst: damaged zstd file"),
        ("a.parquet", LINES, "a.parquet: damaged .parquet file"),
    ],
)
def test_a_damaged_row_file_is_named_in_one_line(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as raised:
        read(tmp_path / name)
    assert says in str(raised.value) and "\n" not in str(raised.value)
    assert not isinstance(raised.value, NotText)


def test_a_truncated_parquet_page_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", text=[f"{i} " * 2000 for i in range(4)])
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[4:40] = b"\xff" * 36
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet: damaged"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"body": ["a"]}, "a.parquet: no field 'text', it has: body; set data.text_field"),
        ({"text": [None, None, "a"]}, "a.parquet, row 1: 'text' is null (2 of 3 rows have no text)"),
        ({"text": [1]}, "a.parquet, row 1: 'text' is int"),
    ],
)
def test_a_bad_parquet_column_is_named(tmp_path: Path, columns: dict[str, list[object]], says: str) -> None:
    write_parquet(tmp_path / "a.parquet", **columns)
    with pytest.raises(DataError) as raised:
        read(tmp_path / "a.parquet")
    assert says in str(raised.value)


@pytest.mark.parametrize("content", [b"caf\xe9 au lait", b"\x7fELF\0\0"])
def test_bytes_that_are_no_text_are_told_apart(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(NotText, match=r"a\.txt"):
        read(tmp_path / "a.txt")


def test_a_file_changed_since_the_survey_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short")
    (source,) = LocalFiles().expand(str(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_text("longer")
    with pytest.raises(DataError, match="has 6 bytes, had 5 when surveyed"):
        list(read_texts(source, LocalFiles(), "text"))
