"""From a unit to its documents, streaming: one a text file, one a row of JSON lines or Parquet."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from gzip import GzipFile
from typing import Any, BinaryIO

from yarn_ops.data.files import WHOLE_BYTES, Files, SourceFile
from yarn_ops.data.parquet import read_texts as read_texts_of_parquet
from yarn_ops.data.text import FRAGMENT_BYTES, fragments, fragments_of
from yarn_ops.data.units import Kind, Unit, kind_of
from yarn_ops.errors import DataError
from yarn_ops.opening import read_json

BUFFER_BYTES = 1 << 20
MOST_ROW_BYTES = 64 << 20
MOST_EXPANSION = 4_000
"""times its size that a compressed file may become; text in use becomes 3 to 100"""
UNASKED_BYTES = 16 << 20
"""whatever its size, a file may become so much"""
ROW_BYTES = 200
"""what a row counts besides its text"""
LAST_ROW_BYTES = 64 << 10
"""a stretch of bytes is read up to the end of its last row, which is mostly not farther than that"""


@dataclass(frozen=True)
class Fragment:
    """A document, or the part of it that is read at once (see text.py)."""

    text: str | None
    """None: a blank line between rows, which is no document but counts as a row"""
    first: bool
    last: bool


class NotText(DataError):
    """A text file's bytes are not UTF-8, or hold NUL."""


def read_fragments(unit: Unit, source: SourceFile, files: Files, text_field: str) -> Iterator[Fragment]:
    """What the unit has of one of its sources, in order, by the file's suffix. Texts may be empty.

    `text_field` names the field of a row. NotText when a text file is none, perhaps after some fragments;
    DataError naming file and row when a row is malformed, and naming the file when it is truncated or
    changed since it was surveyed.
    """
    kind = kind_of(source)
    with closing(_opened(source, files, unit.stop)) as file:
        _check_size(file, source)
        if kind == "text":
            yield from _text(file, source, unit.start, unit.stop)
            return
        try:
            stretch = _Stretch(file, source.uri, unit.start, unit.stop, text_field, source.size_bytes)
            for text in _ROW_READERS[kind](stretch):
                yield from _row(text)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{source.uri}: damaged .{kind} file ({error}); replace it") from None


def read_texts(source: SourceFile, files: Files, text_field: str) -> Iterator[str]:
    """The documents of a file, whole, in order. NotText and DataError as above."""
    parts: list[str] = []
    for fragment in read_fragments(Unit((source,)), source, files, text_field):
        parts.append(fragment.text or "")
        if fragment.last:
            if fragment.text is not None:
                yield "".join(parts)
            parts = []


def _opened(source: SourceFile, files: Files, stop: int | None) -> BinaryIO:
    if source.size_bytes <= WHOLE_BYTES:
        return io.BytesIO(files.read(source.uri))
    if kind_of(source) == "parquet":  # is read here and there
        return files.open(source.uri)
    return files.open(source.uri, source.size_bytes if stop is None else stop + LAST_ROW_BYTES)


def _text(file: BinaryIO, source: SourceFile, start: int, stop: int | None) -> Iterator[Fragment]:
    for number, content in enumerate(fragments(file, source.size_bytes, start, stop)):
        at = start + number * FRAGMENT_BYTES
        text = _decode(content, source.uri, at)
        yield Fragment(text, at == 0, at + FRAGMENT_BYTES >= source.size_bytes)


def _row(text: str | None) -> Iterator[Fragment]:
    if text is None or 4 * len(text) <= FRAGMENT_BYTES:
        yield Fragment(text, True, True)
        return
    parts = fragments_of(text.encode())
    for number, part in enumerate(parts):
        yield Fragment(part.decode(), number == 0, number + 1 == len(parts))


def _check_size(file: BinaryIO, source: SourceFile) -> None:
    size_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size_bytes != source.size_bytes:
        raise DataError(
            f"{source.uri}: has {size_bytes} bytes, had {source.size_bytes} when surveyed; "
            "run again once it is complete"
        )


def _decode(content: bytes, uri: str, at: int) -> str:
    try:
        text = content.decode("utf-8" if at else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotText(
            f"{uri}: not UTF-8 at byte {at + error.start}; convert it or take it out of data.sources"
        ) from None
    if "\0" in text:
        raise NotText(f"{uri}: holds NUL, so it is no text; take it out of data.sources")
    return text


@dataclass(frozen=True)
class _Stretch:
    """What a reader of rows reads: a file from `start` to `stop`, in what its kind is cut by."""

    file: BinaryIO
    uri: str
    start: int
    stop: int | None
    text_field: str
    size_bytes: int

    def check_growth(self, grown_bytes: int) -> None:
        """DataError where the file has become so much that it is made to fill memory or disk."""
        if grown_bytes > UNASKED_BYTES and grown_bytes > MOST_EXPANSION * self.size_bytes:
            raise DataError(
                f"{self.uri}: becomes more than {MOST_EXPANSION:,} times its {self.size_bytes:,} bytes; no "
                "text does; take it out of data.sources"
            )

    def where(self, row: int, noun: str) -> str:
        """A row as a person finds it."""
        return f"{self.uri}, {noun} {row + 1}" + (f" from {self.start:,} on" if self.start else "")

    def text_of(self, line: bytes, row: int) -> str:
        """The text in a line of JSON."""
        where = self.where(row, "line")
        try:
            value = read_json(line)
        except ValueError as error:
            raise DataError(f"{where}: not JSON ({error}); correct the line") from None
        if not isinstance(value, dict):
            raise DataError(
                f"{where}: expected an object with {self.text_field!r}, found {type(value).__name__}"
            )
        return _text_of(value, self.text_field, where)


def _json_lines(stretch: _Stretch) -> Iterator[str | None]:
    """The lines that begin in the stretch."""
    file, at = stretch.file, stretch.start
    if at:
        file.seek(at - 1)
        at -= 1
        while part := file.readline(MOST_ROW_BYTES):  # the end of a line that began before
            at += len(part)
            if part.endswith(b"\n"):
                break
    row = 0
    while (stretch.stop is None or at < stretch.stop) and (line := file.readline(MOST_ROW_BYTES + 1)):
        if len(line) > MOST_ROW_BYTES:
            raise DataError(
                f"{stretch.where(row, 'line')}: longer than {MOST_ROW_BYTES:,} bytes; cut it into documents, "
                "or give each as a text file"
            )
        at += len(line)
        stretch.check_growth(at - stretch.start + ROW_BYTES * row)
        yield stretch.text_of(line, row) if line.strip() else None
        row += 1


def _gzip_lines(stretch: _Stretch) -> Iterator[str | None]:
    with GzipFile(fileobj=stretch.file) as lines:
        yield from _json_lines(replace(stretch, file=lines))  # type: ignore[arg-type]


def _zstd_lines(stretch: _Stretch) -> Iterator[str | None]:
    import pyarrow

    # Arrow's reader goes on over concatenated frames and notices a truncated one; zstandard's does not.
    with pyarrow.CompressedInputStream(pyarrow.PythonFile(stretch.file, mode="r"), "zstd") as stream:
        yield from _json_lines(replace(stretch, file=io.BufferedReader(stream, BUFFER_BYTES)))


def _parquet_rows(stretch: _Stretch) -> Iterator[str | None]:
    grown_bytes = 0
    field = stretch.text_field
    values = read_texts_of_parquet(stretch.file, stretch.uri, field, stretch.start, stretch.stop)
    for row, value in enumerate(values):
        text = _text_of({field: value}, field, stretch.where(row, "row"))
        if len(text) > MOST_ROW_BYTES:
            raise DataError(
                f"{stretch.where(row, 'row')}: longer than {MOST_ROW_BYTES:,} letters; cut it into documents"
            )
        grown_bytes += len(text) + ROW_BYTES
        stretch.check_growth(grown_bytes)
        yield text


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


_ROW_READERS: dict[Kind, Callable[[_Stretch], Iterator[str | None]]] = {
    "jsonl": _json_lines,
    "jsonl.gz": _gzip_lines,
    "jsonl.zst": _zstd_lines,
    "parquet": _parquet_rows,
}
