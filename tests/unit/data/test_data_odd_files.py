"""Files whose names mislead, that are odd or malformed: read as what they hold, counted, or named in a line.

What is expected is written here as texts; documents and tokens are counted from these by the `tokenizers`
library.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet
from tokenizers import Tokenizer as Reference

from yarn_ops.data import json_values as splitting
from yarn_ops.data import units as cutting
from yarn_ops.data.layout import SPLITS, ShardReader
from yarn_ops.errors import DataError
from yarn_ops.records import Local
from yarn_ops.shipped import MODELS

BASE512 = MODELS / "base512"

CASES = Path(__file__).parents[3] / ".." / "shared" / "cases" / "data"


def texts(name: str, count: int = 3) -> list[str]:
    return [
        f'{name} holds document {number}: Grüße 🌍, "{number}" \\ [brackets], {{braces}}.'
        for number in range(count)
    ]


def rows(name: str, count: int = 3, **more: object) -> list[dict[str, object]]:
    return [{"id": number, **more, "text": text} for number, text in enumerate(texts(name, count))]


def lines(name: str, count: int = 3, **more: object) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(name, count, **more)).encode()


def packed_zstd(content: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(content)


def long_window(content: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(content) + packer.flush()


def table(options: dict[str, Any] | None = None, /, **columns: object) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pa.table(columns), out, row_group_size=2, **(options or {}))
    return out.getvalue()


def stream(**columns: object) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_stream(out, pa.table(columns).schema) as writer:
        writer.write_table(pa.table(columns))
    return out.getvalue()


def archive(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("a.jsonl", lines(name))
    return out.getvalue()


def tape(name: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as file:
        info = tarfile.TarInfo("a.jsonl")
        info.size = len(lines(name))
        file.addfile(info, io.BytesIO(lines(name)))
    return out.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
Bytes = Callable[[str], bytes]
ROWS: dict[str, Bytes] = {
    "lines.json": lines,
    "array.json": lambda name: json.dumps(rows(name)).encode(),
    "array over lines.json": lambda name: json.dumps(rows(name), indent=2).encode(),
    "array.jsonl": lambda name: b"\n " + json.dumps(rows(name)).encode() + b"\n",
    "objects over lines.json": lambda name: "\n".join(json.dumps(o, indent=1) for o in rows(name)).encode(),
    "first on one line.json": lambda name: b'{"text": ' + json.dumps(texts(name)[0]).encode() + b"\n}\n"
    + b"\n".join(json.dumps(row).encode() for row in rows(name)[1:]),
    "lines.ndjson": lines,
    "lines.jl": lines,
    "c4-train.00000-of-00001.json.gz": lambda name: gzip.compress(lines(name)),
    "two members.jsonl.gz": lambda name: gzip.compress(lines(name)[:40]) + gzip.compress(lines(name)[40:]),
    "array.json.gz": lambda name: gzip.compress(json.dumps(rows(name)).encode()),
    "lines.jsonl.zst": lambda name: packed_zstd(lines(name)),
    "lines.jsonl.zstd": lambda name: packed_zstd(lines(name)[:50]) + packed_zstd(lines(name)[50:]),
    "skipped frame.jsonl.zst": lambda name: b"\x50\x2a\x4d\x18" + bytes(4) + packed_zstd(lines(name)),
    "long.jsonl.zst": lambda name: long_window(lines(name)),
    "lines.jsonl.bz2": lambda name: bz2.compress(lines(name)),
    "lines.jsonl.xz": lambda name: lzma.compress(lines(name)),
    "two streams.jsonl.bz2": lambda name: bz2.compress(lines(name)[:40]) + bz2.compress(lines(name)[40:]),
    "padded.jsonl.xz": lambda name: b"".join(
        lzma.compress(part) + bytes(8) for part in (lines(name)[:40], lines(name)[40:])
    ),
    "padded.jsonl.gz": lambda name: gzip.compress(lines(name)) + bytes(9),
    "not packed.jsonl.lz4": lines,
    "of two keys.jsonl": lambda name: lines(name).replace(b'{"id"', b'{"text": "first", "id"'),
    "separated\u2028.jsonl": lambda name: lines(name).replace(b'"id"', '"\u2028\u0085"'.encode()),
    "line\nend, 100% #?&;'\"\\ ü.jsonl": lines,
    "views.parquet": lambda name: table(text=pa.array(texts(name), pa.string_view())),
    "checked.parquet": lambda name: table({"write_page_checksum": True}, text=texts(name)),
    "brotli.parquet": lambda name: table(
        {"compression": "brotli", "data_page_version": "2.0"}, text=texts(name)
    ),
    "unpacked on the way.jsonl.gz": lines,
    "packed.jsonl": lambda name: gzip.compress(lines(name)),
    "packed.txt": lambda name: packed_zstd(lines(name)),
    "part-00000": lines,
    "no suffix, packed": lambda name: gzip.compress(lines(name)),
    "rows.txt": lines,
    "rows.data": lambda name: json.dumps(rows(name), indent=2).encode(),
    "UPPER.JSONL": lines,
    "marked.jsonl": lambda name: codecs.BOM_UTF8 + lines(name),
    "marked.json": lambda name: codecs.BOM_UTF8 + json.dumps(rows(name)).encode(),
    "wide.jsonl": lambda name: lines(name).decode().encode("utf-16"),
    "wide, big end.json": lambda name: codecs.BOM_UTF16_BE + json.dumps(rows(name)).encode("utf-16-be"),
    "wider.jsonl": lambda name: lines(name).decode().encode("utf-32"),
    "returns.jsonl": lambda name: lines(name).replace(b"\n", b"\r\n"),
    "no last end.jsonl": lambda name: lines(name).rstrip(),
    "blank lines.jsonl": lambda name: b"\n\n" + lines(name).replace(b"\n", b"\n \n"),
    "one row.json": lambda name: json.dumps(rows(name)[0]).encode(),
    "rows.pq": lambda name: table(text=texts(name)),
    "rows.parquet.txt": lambda name: table(text=texts(name)),
    "large.parquet": lambda name: table(text=pa.array(texts(name), pa.large_string()), n=[1, 2, 3]),
    "codes.parquet": lambda name: table(text=pa.array(texts(name)).dictionary_encode()),
    "beside a struct.parquet": lambda name: table(
        a=[{"text": "wrong", "b": [1]}] * 3,
        m=pa.array([[("k", "v")]] * 3, pa.map_(pa.string(), pa.string())),
        text=texts(name),
    ),
}  # fmt: skip
"""files of three rows (of one: the first)"""
TEXTS: dict[str, tuple[Bytes, str]] = {
    "plain": (lambda name: b"%s, no suffix" % name.encode(), "plain, no suffix"),
    "packed.txt.gz": (lambda name: gzip.compress(b"a packed text\r\n"), "a packed text\r\n"),
    "wide.txt": (lambda name: "Wide Grüße\n".encode("utf-16"), "Wide Grüße\n"),
    "marked.md": (lambda name: codecs.BOM_UTF8 + b"marked", "marked"),
    "code.py": (lambda name: b'{"text": 1}.get("no rows")\n', '{"text": 1}.get("no rows")\n'),
    "settings.yaml": (lambda name: b'{"name": "no text field"}\n', '{"name": "no text field"}\n'),
    "table.csv": (lambda name: b"code,n\nrows of no text,1\n", "code,n\nrows of no text,1\n"),
}
NOT_TEXTS: dict[str, Bytes] = {
    "picture.png": lambda name: b"\x89PNG\r\n\x1a\n\x00\x00",
    "archive.zip": archive,
    "tape.tar.gz": tape,
    "latin.txt": lambda name: "Grüße".encode("latin-1"),
    "no mark.txt": lambda name: "no mark".encode("utf-16-le"),
    "broken wide.txt": lambda name: codecs.BOM_UTF16_LE + b"\x00\xd8\x00\x00\x00",
    "by chance": lambda name: b"\xff\xfe\x00" * 40,
    "chinese.txt": lambda name: "中文文本".encode("gb18030"),
    "half a letter.txt": lambda name: "Wide".encode("utf-16") + b"\0",
    "pointer.txt": lambda name: POINTER,
}
"""counted as files that are not UTF-8 text"""
WITHOUT: dict[str, tuple[Bytes, int]] = {
    "null.jsonl": (lambda name: lines(name) + b'{"text": null, "id": 9}\n', 1),
    "missing.jsonl": (lambda name: lines(name) + b'{"id": 9}\n{}\n', 2),
    "null.parquet": (lambda name: table(text=[*texts(name), None, None]), 2),
    "null.json": (lambda name: json.dumps([*rows(name), {"text": None}]).encode(), 1),
}
"""files of three rows, and how many rows without text"""
EMPTY = {"empty.txt": b"", "empty.jsonl": b"", "spaces.md": b" \n\n"}
MALFORMED: dict[str, tuple[bytes, str]] = {
    "cut.json": (json.dumps(rows("x")).encode()[:-9], "item 3: not JSON (the file ends within a value)"),
    "after.json": (b'[{"text": "a"}] {"text": "b"}', "something follows the array"),
    "comma.json": (b'[{"text": "a"},]', "an item is missing between two commas"),
    "strings.json": (b'["one", "two"]', "item 1: expected an object with 'text', found str"),
    "bare.json": (b'[{"text": one}]', "bare.json, item 1: not JSON"),
    "nested.json": (b'{"data": [{"text": "a"}]}', "no field 'text', it has: data; set data.text_field"),
    "binary.json": (bytes(range(256)), "binary.json, line 1: not JSON"),
    "picture.jsonl": (b"\x89PNG\r\n\x1a\n\x00", "picture.jsonl, line 1: not JSON"),
    "line.ndjson": (lines("x") + b'{"text": \n', "line.ndjson, line 4: not JSON"),
    "cut.json.gz": (gzip.compress(lines("x", 90))[:-30], "cut.json.gz: damaged gzip file"),
    "noise.jsonl.zstd": (packed_zstd(bytes(range(128, 256))), "line 1: not JSON"),
    "ends.jsonl.zst": (packed_zstd(lines("x", 90))[:-9], "damaged zstd file (it ends within a frame)"),
    "cut.jsonl.bz2": (bz2.compress(lines("x", 90))[:-9], "cut.jsonl.bz2: damaged bzip2 file"),
    "cut.jsonl.xz": (lzma.compress(lines("x", 90))[:-9], "cut.jsonl.xz: damaged xz file"),
    "cut.txt.gz": (gzip.compress(b"text " * 999)[:-9], "cut.txt.gz: damaged gzip file"),
    "other.jsonl.gz": (b"no gzip", "other.jsonl.gz: damaged gz file (begins with b'no gzip')"),
    "other.parquet": (lines("x"), "other.parquet: damaged .parquet file"),
    "most.jsonl": (b'{"text": "a"}\n' + b'{"text": null}\n' * 2, "line 2: 'text' is null (2 of 3 rows have"),
    "most.parquet": (table(text=pa.array([None, None, "a"])), "row 1: 'text' is null (2 of 3 rows"),
    "half.jsonl": (b'{"text": "\\ud800"}\n', "line 1: 'text' holds half of a surrogate pair"),
    "list.jsonl": (b'{"text": ["a"]}\n', "line 1: 'text' is list, not a text"),
    "more.jsonl.bz2": (bz2.compress(lines("x")) + b"BZhmore", "more.jsonl.bz2: damaged bzip2 file"),
    "more.jsonl.xz": (lzma.compress(lines("x")) + b"more", "more.jsonl.xz: damaged xz file"),
    "more.jsonl.gz": (gzip.compress(lines("x")) + b"more", "more.jsonl.gz: damaged gzip file"),
    "sum.jsonl.gz": (gzip.compress(lines("x"))[:-8] + bytes(8), "sum.jsonl.gz: damaged gzip file (CRC"),
    "twice.jsonl.gz.gz": (gzip.compress(gzip.compress(lines("x"))), "packed twice; pack it with gzip"),
    "twice.jsonl.gz": (gzip.compress(bz2.compress(lines("x"))), "packed twice; pack it with gzip"),
    "rows.jsonl.lz4": (pa.compress(lines("x"), "lz4", asbytes=True), "packed as lz4, which is not read"),
    "rows.json.br": (pa.compress(lines("x"), "brotli", asbytes=True), "packed as br, which is not read"),
    "rows.jsonl.zip": (archive("x"), "packed as zip, which is not read"),
    "rows.parquet.gz": (gzip.compress(table(text=texts("x"))), "Parquet packed by gzip; unpack it"),
    "rows.arrow": (stream(text=texts("x")), "files of this kind are not read; write its rows as Parquet"),
    "pointer.jsonl": (POINTER, "a Git LFS pointer and not the file itself; fetch that (git lfs pull)"),
    "pointer.parquet": (POINTER, "a Git LFS pointer and not the file itself"),
    "table.csv": (b'id,"text"\r\n1,a\r\n', "a table with the column 'text'; write its rows as Parquet"),
    "table.tsv.gz": (gzip.compress(b"id\ttext\n1\ta\n"), "a table with the column 'text'"),
    "digits.jsonl": (b'{"text": "a", "n": 1' + b"0" * 5000 + b"}\n", "(a number of thousands of digits)"),
    "nan.jsonl": (b'{"text": "a", "n": NaN}\n', "line 1: not JSON (NaN is not JSON)"),
    "latin.jsonl": ('{"text": "Grüße"}\n'.encode("latin-1"), "latin.jsonl, line 1: not JSON"),
    "chinese.jsonl": ('{"text": "中文"}\n'.encode("gb18030"), "chinese.jsonl, line 1: not JSON"),
    "no mark.jsonl": (lines("x").decode().encode("utf-16-le"), "no%20mark.jsonl, line 1: not JSON"),
    "nul.jsonl": (lines("x") + bytes(9), "nul.jsonl, line 4: not JSON"),
    "joined.jsonl": (lines("x") + codecs.BOM_UTF8 + lines("x"), "joined.jsonl, line 4: not JSON"),
    "mixed.jsonl": (lines("x") + b'"a"\n', "line 4: expected an object with 'text', found str"),
    "null.json": (b"null", "line 1: expected an object with 'text', found NoneType"),
    "page.json": (b"<html>404</html>", "page.json, line 1: not JSON"),
    "lists.parquet": (table(text=[["a"]]), "row 1: 'text' is list, not a text"),
    "bytes.parquet": (table(text=[b"a"]), "row 1: 'text' is binary, not a string"),
    "columns.parquet": (table(), "no field 'text', it has: none"),
    "checked.parquet": (
        table({"write_page_checksum": True, "compression": "none"}, text=texts("x")).replace(
            b"document 0", b"Document 0", 1
        ),
        "checked.parquet: damaged .parquet file",
    ),
    "bad_letters.parquet": (
        table(text=pa.Array.from_buffers(
            pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], "i4").tobytes()), pa.py_buffer(b"a\xff")]
        )),
        "bad_letters.parquet, row 1: not UTF-8",
    ),
    "chat.jsonl": (b'{"messages": [{"role": "user", "content": "a"}]}\n', "a chat, and the base has no chat"),
}  # fmt: skip


def tokens_of(text: str) -> int:
    tokenizer = Reference.from_file(str(BASE512 / "tokenizer.json"))
    return len(tokenizer.encode(text, add_special_tokens=False).ids) + 1


def documents_of(shards: Local[Any]) -> Iterator[tuple[str, int]]:
    """(name of its file, tokens) of each document."""
    for split in SPLITS:
        reader = ShardReader(shards.path, split)
        for number in range(reader.documents):
            yield reader.document_id(number).split("@")[0], len(reader.document(number))


def test_every_file_is_read_as_what_it_holds_and_all_is_counted(tmp_path: Path, prepare_sources: Any) -> None:
    expected: dict[str, list[int]] = {}
    for name, write in ROWS.items():
        (tmp_path / name).write_bytes(write(name))
        expected[name] = [tokens_of(text) for text in texts(name, 1 if name.startswith("one row") else 3)]
    for name, (write, text) in TEXTS.items():
        (tmp_path / name).write_bytes(write(name))
        expected[name] = [tokens_of(text)]
    for name, write in NOT_TEXTS.items():
        (tmp_path / name).write_bytes(write(name))
    for name, (write, _) in WITHOUT.items():
        (tmp_path / name).write_bytes(write(name))
        expected[name] = [tokens_of(text) for text in texts(name)]
    for name, content in EMPTY.items():
        (tmp_path / name).write_bytes(content)
    shards = prepare_sources(f"{tmp_path}/*")
    found: dict[str, list[int]] = {}
    for name, tokens in documents_of(shards):
        found.setdefault(name, []).append(tokens)
    assert {name: sorted(counts) for name, counts in found.items()} == {
        name: sorted(counts) for name, counts in expected.items()
    }
    dropped = {reason: count for reason, count in shards.record.dropped.model_dump().items() if count}
    assert dropped == {
        "empty": 2,  # an empty file of rows has none
        "no_text": sum(count for _, count in WITHOUT.values()),
        "not_text": len(NOT_TEXTS),
    }


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_named_in_one_line(tmp_path: Path, prepare_sources: Any, name: str) -> None:
    content, says = MALFORMED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as raised:
        prepare_sources(tmp_path / name)
    told = str(raised.value)
    assert says in told and "\n" not in told
    assert name.replace(" ", "%20") in told


def test_large_files_are_cut_only_where_one_can_begin_anywhere(
    tmp_path: Path, prepare_sources: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "LEAST_BYTES", 500)
    monkeypatch.setattr(splitting, "CHUNK_BYTES", 7)
    names = [
        "lines.json",
        "array over lines.json",
        "packed.jsonl",
        "rows.txt",
        "rows.parquet.txt",
        "wide.jsonl",
    ]
    for name in names:
        (tmp_path / name).write_bytes(ROWS[name](name) if "parquet" in name else repacked(name))
    found = [name for name, _ in documents_of(prepare_sources(f"{tmp_path}/*"))]
    assert {name: found.count(name) for name in names} == {
        name: 3 if "parquet" in name else 40 for name in names
    }


def repacked(name: str) -> bytes:
    if name.startswith("array"):
        return json.dumps(rows(name, 40), indent=3).encode()
    if name.startswith("wide"):
        return lines(name, 40).decode().encode("utf-16")
    return gzip.compress(lines(name, 40)) if name.startswith("packed") else lines(name, 40)


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases beside the checkout")
def test_the_files_of_public_reports(prepare_sources: Any) -> None:
    shards = prepare_sources(
        *(CASES / name for name in ("a.jsonl", "b.ndjson", "c4-train.00000-of-00001.json.gz"))
    )
    assert shards.record.train_documents + shards.record.held_out_documents == 36
    shards = prepare_sources(
        *(CASES / name for name in ("long31.jsonl.zst", "nulltext.jsonl", "null.parquet"))
    )
    assert shards.record.dropped.no_text == 2
    shards = prepare_sources(CASES / "dotclash.parquet", text_field="a.text")
    assert shards.record.train_documents + shards.record.held_out_documents == 20
    for name, says in (("badutf8.parquet", "row 1: not UTF-8"), ("bad.parquet", "damaged .parquet file")):
        with pytest.raises(DataError, match=f"{name}.*{says}"):
            prepare_sources(CASES / name)
