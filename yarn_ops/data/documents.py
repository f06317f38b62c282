"""From a unit to its documents, streaming: one a text file, one a row of JSON or Parquet."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, NamedTuple

from yarn_ops.data.chats import CHATS, Chat, chat_of
from yarn_ops.data.files import WHOLE_BYTES, Files, SourceFile
from yarn_ops.data.formats import DAMAGES, UTF8_MARK, Content, Form, NotText, content_of, damaged, named
from yarn_ops.data.json_values import TooLong, json_values
from yarn_ops.data.parquet import read_rows
from yarn_ops.data.text import FRAGMENT_BYTES, fragments, fragments_of
from yarn_ops.data.units import Unit
from yarn_ops.errors import DataError
from yarn_ops.opening import read_json

MOST_ROW_BYTES = 64 << 20
MOST_EXPANSION = 4_000
"""times its size that a compressed file may become; text in use becomes 3 to 100"""
UNASKED_BYTES = 16 << 20
"""whatever its size, a file may become so much"""
ROW_BYTES = 200
"""what a row counts besides its text"""
LAST_ROW_BYTES = 64 << 10
"""a stretch of bytes is read up to the end of its last row, which is mostly not farther than that"""

Kind = Literal["text", "chat", "blank line", "no text"]
Render = Callable[[Chat], str]


class RowText(NamedTuple):
    """What a row holds."""

    text: str | None
    kind: Kind
    fault: str = ""
    """where and why it has no text"""


@dataclass(frozen=True)
class Fragment:
    """A document, or the part of it that is read at once (see text.py)."""

    text: str | None
    """None: a blank line between rows, which is no document, or a row without text; both count as rows"""
    first: bool
    last: bool
    kind: Kind = "text"
    row: bool = False
    """whether it is one of its file's rows, not the file"""


def read_fragments(
    unit: Unit, source: SourceFile, files: Files, text_field: str, render: Render | None = None
) -> Iterator[Fragment]:
    """What the unit has of one of its sources, in order (see formats.py). Texts may be empty.

    `text_field` names the field of a row; `render` makes a text of a chat. NotText when a text file is none,
    perhaps after some fragments; DataError naming file and row when a row is malformed, and naming the file
    when it is truncated or changed since it was surveyed, or when most rows of a whole file have no text.
    """
    with closing(_opened(source, files, unit)) as raw:
        _check_size(raw, source)
        if unit.form is None:
            content = content_of(raw, source, text_field)
        else:
            content = Content(raw, unit.form, plain=True)
        if content.form == "text":
            yield from _text(content, source, unit)
            return
        stretch = _Stretch(
            content.file, source.uri, unit.start, unit.stop, text_field, source.size_bytes, render
        )
        without = _Without()
        try:
            for row in without.counting(_ROW_READERS[content.form](stretch)):
                yield from _row(row.text, row.kind)
        except DAMAGES as error:
            raise damaged(source, content.packing, error) from None
        except UnicodeDecodeError as error:  # of UTF-16
            raise DataError(f"{source.uri}: not {error.encoding} ({error.reason}); replace it") from None
        if unit.stop is None:
            without.check()


def read_texts(
    source: SourceFile, files: Files, text_field: str, render: Render | None = None
) -> Iterator[str]:
    """The documents of a file, whole, in order. NotText and DataError as above."""
    parts: list[str] = []
    for fragment in read_fragments(Unit((source,)), source, files, text_field, render):
        parts.append(fragment.text or "")
        if fragment.last:
            if fragment.text is not None:
                yield "".join(parts)
            parts = []


def _opened(source: SourceFile, files: Files, unit: Unit) -> BinaryIO:
    if source.size_bytes <= WHOLE_BYTES:
        return io.BytesIO(files.read(source.uri))
    if "parquet" in (unit.form, named(source)):  # is read here and there
        return files.open(source.uri)
    return files.open(source.uri, source.size_bytes if unit.stop is None else unit.stop + LAST_ROW_BYTES)


def _text(content: Content, source: SourceFile, unit: Unit) -> Iterator[Fragment]:
    if not content.plain or not source.size_bytes:
        yield from _row(_decode(_all_of(content, source), source.uri, 0), "text", row=False)
        return
    for number, part in enumerate(fragments(content.file, source.size_bytes, unit.start, unit.stop)):
        at = unit.start + number * FRAGMENT_BYTES
        text = _decode(part, source.uri, at)
        yield Fragment(text, at == 0, at + FRAGMENT_BYTES >= source.size_bytes)


def _all_of(content: Content, source: SourceFile) -> bytes:
    """The bytes of a text that has to be unpacked, or written in UTF-8, from its beginning."""
    try:
        text = content.file.read(MOST_ROW_BYTES + 1)
    except DAMAGES as error:
        raise damaged(source, content.packing, error) from None
    except UnicodeDecodeError as error:
        raise NotText(f"{source.uri}: not {error.encoding} ({error.reason}); convert it to UTF-8") from None
    if len(text) > MOST_ROW_BYTES:
        raise DataError(
            f"{source.uri}: a text of more than {MOST_ROW_BYTES:,} bytes once unpacked; give it unpacked "
            "and in UTF-8, or cut it into documents"
        )
    return text


def _row(text: str | None, kind: Kind, row: bool = True) -> Iterator[Fragment]:
    if text is None or 4 * len(text) <= FRAGMENT_BYTES:
        yield Fragment(text, True, True, kind, row)
        return
    parts = fragments_of(text.encode())
    for number, part in enumerate(parts):
        yield Fragment(part.decode(), number == 0, number + 1 == len(parts), kind, row)


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
    render: Render | None

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

    def row_of(self, data: bytes, row: int, noun: str) -> RowText:
        """What a row of JSON has."""
        try:
            value = read_json(data)
        except ValueError as error:
            raise DataError(f"{self.where(row, noun)}: not JSON ({error}); correct the {noun}") from None
        if not isinstance(value, dict):
            raise DataError(
                f"{self.where(row, noun)}: expected an object with {self.text_field!r}, "
                f"found {type(value).__name__}"
            )
        return self.text_of(value, row, noun)

    def text_of(self, row: Mapping[str, Any], number: int, noun: str) -> RowText:
        """The text of a row, or its chat as a text."""
        value, name = row.get(self.text_field), self.text_field
        if isinstance(value, str) and value.isascii():  # what most are
            return RowText(value, "text")
        where = self.where(number, noun)
        if value is None:
            name = next((chat for chat in CHATS if row.get(chat) is not None), name)
            value = row.get(name)
        if value is None or value == []:
            fields = ", ".join(map(str, row)) or "none"
            fault = f"{name!r} is null" if name in row else f"no field {name!r}, it has: {fields[:200]}"
            return RowText(None, "no text", f"{where}: {fault}")
        if isinstance(value, str) and name == self.text_field:
            return RowText(_sound(value, name, where), "text")
        try:
            chat = chat_of(value, row)
        except DataError as error:
            next_step = "correct the row, or set data.text_field to another"
            raise DataError(f"{where}: {name!r} {error}; {next_step}") from None
        if chat is None:
            return RowText(None, "no text", f"{where}: a message in {name!r} has no content")
        if self.render is None:
            raise DataError(f"{where}: {name!r} is a chat, and there is no chat template for it; give texts")
        try:
            return RowText(_sound(self.render(chat), name, where), "chat")
        except DataError as error:
            raise DataError(f"{where}: {str(error).removeprefix(where).lstrip(': ')}") from None


class _Without:
    """The rows without text of a file: a few are left out, of most rows something else is wrong."""

    def __init__(self) -> None:
        self._rows = self._without = 0
        self._first = ""

    def counting(self, rows: Iterator[RowText]) -> Iterator[RowText]:
        for row in rows:
            self._rows += row.kind != "blank line"
            self._without += row.kind == "no text"
            self._first = self._first or row.fault
            yield row

    def check(self) -> None:
        """DataError where more rows have no text than have one."""
        if 2 * self._without > self._rows:
            more = f" ({self._without:,} of {self._rows:,} rows have no text)" if self._rows > 1 else ""
            raise DataError(f"{self._first}{more}; set data.text_field")


def _json_lines(stretch: _Stretch) -> Iterator[RowText]:
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
            raise _too_long(stretch.where(row, "line"))
        at += len(line)
        line = line.removeprefix(UTF8_MARK) if not row and not stretch.start else line
        stretch.check_growth(at - stretch.start + ROW_BYTES * row)
        yield stretch.row_of(line, row, "line") if line.strip() else RowText(None, "blank line")
        row += 1


def _json_values(stretch: _Stretch) -> Iterator[RowText]:
    grown_bytes = row = 0
    try:
        for row, value in enumerate(json_values(stretch.file, MOST_ROW_BYTES), 1):
            grown_bytes += len(value) + ROW_BYTES
            stretch.check_growth(grown_bytes)
            yield stretch.row_of(value, row - 1, "item")
    except TooLong:
        raise _too_long(stretch.where(row, "item")) from None
    except ValueError as error:
        raise DataError(f"{stretch.where(row, 'item')}: not JSON ({error}); correct the item") from None


def _too_long(where: str) -> DataError:
    return DataError(
        f"{where}: longer than {MOST_ROW_BYTES:,} bytes; cut it into documents, or give each as a text file"
    )


def _parquet_rows(stretch: _Stretch) -> Iterator[RowText]:
    grown_bytes = 0
    rows = read_rows(stretch.file, stretch.uri, stretch.text_field, stretch.start, stretch.stop)
    for row, values in enumerate(rows):
        found = stretch.text_of(values, row, "row")
        if len(found.text or "") > MOST_ROW_BYTES:
            raise DataError(
                f"{stretch.where(row, 'row')}: longer than {MOST_ROW_BYTES:,} letters; cut it into documents"
            )
        grown_bytes += len(found.text or "") + ROW_BYTES
        stretch.check_growth(grown_bytes)
        yield found


def _sound(text: str, name: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: {name!r} holds half of a surrogate pair; correct the line") from None
    return text


_ROW_READERS: dict[Form, Callable[[_Stretch], Iterator[RowText]]] = {
    "lines": _json_lines,
    "values": _json_values,
    "parquet": _parquet_rows,
}
