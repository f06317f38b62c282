"""From a source file to its documents, streaming: one a text file, one a row of JSON lines or Parquet."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from gzip import GzipFile
from typing import Any, BinaryIO

from yarn_ops.data.files import SourceFile
from yarn_ops.errors import DataError

PARQUET_BATCH_ROWS = 64
Opener = Callable[[str], BinaryIO]


@dataclass(frozen=True)
class Document:
    """A text and where it is from: `name` of its file, and `#row` (from 0) where a file holds many."""

    id: str
    text: str


class NotText(DataError):
    """A text file's bytes are not UTF-8, or hold NUL."""


def read_documents(source: SourceFile, opener: Opener, text_field: str) -> Iterator[Document]:
    """The documents of a file in order, by its suffix: .jsonl, .jsonl.gz, .jsonl.zst, .parquet, else text.

    Rows are streamed; a text file is read whole. `text_field` names the field of a row. Texts may be empty.
    NotText, before the first document, when a text file is none; DataError naming file and row when a row
    is malformed, and naming the file when it is truncated or changed since it was surveyed.
    """
    suffix, read = next(
        (item for item in _ROW_READERS.items() if source.uri.lower().endswith(item[0])), ("", None)
    )
    with closing(opener(source.uri)) as file:
        _check_size(file, source)
        if read is None:
            yield Document(source.name, _decode(file.read(), source.uri))
            return
        try:
            for row, text in read(file, source.uri, text_field):
                yield Document(f"{source.name}#{row}", text)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{source.uri}: damaged {suffix} file ({error}); replace it") from None


def _check_size(file: BinaryIO, source: SourceFile) -> None:
    size_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size_bytes != source.size_bytes:
        raise DataError(
            f"{source.uri}: has {size_bytes} bytes, had {source.size_bytes} when surveyed; "
            "run again once it is complete"
        )


def _decode(content: bytes, uri: str) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotText(
            f"{uri}: not UTF-8 at byte {error.start}; convert it or take it out of data.sources"
        ) from None
    if "\0" in text:
        raise NotText(f"{uri}: holds NUL, so it is no text; take it out of data.sources")
    return text


def _json_lines(file: BinaryIO, uri: str, text_field: str) -> Iterator[tuple[int, str]]:
    for row, line in enumerate(file):
        if not line.strip():
            continue
        where = f"{uri}, line {row + 1}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error}); correct the line") from None
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected an object with {text_field!r}, found {type(value).__name__}")
        yield row, _text_of(value, text_field, where)


def _gzip_lines(file: BinaryIO, uri: str, text_field: str) -> Iterator[tuple[int, str]]:
    with GzipFile(fileobj=file) as lines:
        yield from _json_lines(lines, uri, text_field)  # type: ignore[arg-type]


def _zstd_lines(file: BinaryIO, uri: str, text_field: str) -> Iterator[tuple[int, str]]:
    import pyarrow

    # Arrow's reader goes on over concatenated frames and notices a truncated one; zstandard's does not.
    with pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd") as stream:
        yield from _json_lines(io.BufferedReader(stream, 1 << 20), uri, text_field)


def _parquet_rows(file: BinaryIO, uri: str, text_field: str) -> Iterator[tuple[int, str]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        if text_field not in table.schema_arrow.names:
            fields = ", ".join(table.schema_arrow.names)
            raise DataError(f"{uri}: no field {text_field!r}, it has: {fields}; set data.text_field")
        row = 0
        for batch in table.iter_batches(PARQUET_BATCH_ROWS, columns=[text_field]):
            for value in batch.column(0):
                yield row, _text_of({text_field: value.as_py()}, text_field, f"{uri}, row {row + 1}")
                row += 1
    except pyarrow.ArrowException as error:
        raise DataError(f"{uri}: damaged .parquet file ({error}); replace it") from None


def _text_of(row: dict[str, Any], text_field: str, where: str) -> str:
    if text_field not in row:
        fields = ", ".join(map(str, row)) or "none"
        raise DataError(f"{where}: no field {text_field!r}, it has: {fields[:200]}; set data.text_field")
    text = row[text_field]
    if not isinstance(text, str):
        raise DataError(
            f"{where}: {text_field!r} is {type(text).__name__}, not a string; set data.text_field"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: {text_field!r} holds half of a surrogate pair; correct the line") from None
    return text


_ROW_READERS: dict[str, Callable[[BinaryIO, str, str], Iterator[tuple[int, str]]]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _gzip_lines,
    ".jsonl.zst": _zstd_lines,
    ".parquet": _parquet_rows,
}
