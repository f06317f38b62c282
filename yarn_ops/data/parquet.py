"""Parquet columns of text in bounded memory, whatever a file says of itself.

A page of a few kilobytes may become gigabytes, and a batch of rows repeat a value of it many times. What a
page becomes is in its header (parquet.thrift, PageHeader), which is read here as the bytes go by on their
way to Arrow, before Arrow makes room for it. No value is larger than the largest page.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from yarn_ops.errors import DataError

BUFFER_BYTES = 1 << 20
BATCH_ROWS = 64
MOST_BATCH_BYTES = 256 << 20
MOST_PAGE_BYTES = 128 << 20
MOST_HEADER_BYTES = 1 << 20


def open_parquet(file: BinaryIO | Pages, uri: str) -> Any:
    """pyarrow's ParquetFile; DataError when it is none."""
    import pyarrow
    from pyarrow import parquet

    try:
        # With a buffer, a column is read page by page: a row group may be of any size.
        return parquet.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{uri}: damaged .parquet file ({error}); replace it") from None


def read_texts(file: BinaryIO, uri: str, field: str, start: int, stop: int | None) -> Iterator[Any]:
    """The values of a column of text, None for nulls, of the row groups [start, stop).

    DataError where there is no such column, it is of another type, or a page is too large.
    """
    import pyarrow

    pages = Pages(file, uri)
    table = open_parquet(pages, uri)
    column = _column(table, uri, field)
    try:
        for group in range(start, stop or table.metadata.num_row_groups):
            yield from _group(table, pages, group, column, field)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{uri}: damaged .parquet file ({error}); replace it") from None


def _column(table: Any, uri: str, field: str) -> int:
    from pyarrow import types

    schema = table.schema_arrow
    if field not in schema.names:
        raise DataError(
            f"{uri}: no field {field!r}, it has: {', '.join(schema.names)[:200]}; set data.text_field"
        )
    kind = schema.types[schema.names.index(field)]
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise DataError(f"{uri}, row 1: {field!r} is {kind}, not a string; set data.text_field")
    paths = [table.schema.column(number).path for number in range(len(table.schema))]
    return paths.index(field)


def _group(table: Any, pages: Pages, group: int, column: int, field: str) -> Iterator[Any]:
    rows, done = BATCH_ROWS, 0
    while True:
        pages.expect(table.metadata.row_group(group).column(column), MOST_BATCH_BYTES // rows)
        try:
            number = 0
            for batch in table.iter_batches(rows, [group], columns=[field], use_threads=False):
                for value in batch.column(0):
                    number += 1
                    if number > done:
                        done = number
                        yield value.as_py()
            return
        except LargePage as page:  # again from the group's beginning, in smaller batches
            rows = max(1, MOST_BATCH_BYTES // page.size_bytes)


class LargePage(Exception):
    """A page after which a batch of so many rows might be too large."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"a page of {size_bytes} bytes")
        self.size_bytes = size_bytes


class Pages(io.RawIOBase):
    """A Parquet file that looks at the headers of the pages of one column chunk as they are read."""

    def __init__(self, file: BinaryIO, uri: str) -> None:
        self._file, self._uri = file, uri
        self._next = self._end = 0
        self._most_bytes = MOST_PAGE_BYTES

    def expect(self, chunk: Any, most_bytes: int) -> None:
        """The chunk is read next, from its beginning; LargePage at a page above `most_bytes`."""
        first = chunk.data_page_offset
        if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < first:
            first = chunk.dictionary_page_offset
        self._next, self._end, self._most_bytes = first, first + chunk.total_compressed_size, most_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        at = self._file.tell()
        data = self._file.read(size)
        while at <= self._next < min(at + len(data), self._end):
            self._look(data[self._next - at :], at + len(data))
        return data

    def _look(self, data: bytes, behind: int) -> None:
        """At the page that begins with `data`, whose file goes on at `behind`."""
        sizes = page_sizes(data)
        if sizes is None:
            data += self._file.read(MOST_HEADER_BYTES)
            self._file.seek(behind)
            sizes = page_sizes(data)
        if sizes is None:
            raise DataError(f"{self._uri}: damaged .parquet file (a page without a header); replace it")
        header_bytes, size_bytes, stored_bytes = sizes
        if size_bytes > MOST_PAGE_BYTES:
            raise DataError(
                f"{self._uri}: a page of {size_bytes:,} bytes, and at most {MOST_PAGE_BYTES:,} are read; "
                "write it again with smaller pages"
            )
        if size_bytes > self._most_bytes:
            raise LargePage(size_bytes)
        self._next += header_bytes + stored_bytes


def page_sizes(data: bytes) -> tuple[int, int, int] | None:
    """(bytes of the header, of the page, of the page as it is stored); None where that is not in `data`."""
    reader = _Compact(data)
    try:
        fields = reader.numbers()
    except (IndexError, RecursionError):
        return None
    if fields.get(2, -1) < 0 or fields.get(3, -1) < 0:
        return None
    return reader.at, fields[2], fields[3]


class _Compact:
    """Thrift's compact protocol, as far as the numbers of a structure; the rest is skipped."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def numbers(self, depth: int = 0) -> dict[int, int]:
        """By their fields; IndexError where the data end."""
        if depth > 8:
            raise RecursionError
        found: dict[int, int] = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._signed()
            if (value := self._value(head & 15, depth)) is not None:
                found[field] = value
        return found

    def _value(self, kind: int, depth: int) -> int | None:
        if kind in (1, 2):  # a truth, told by the kind itself
            return None
        if kind in (4, 5, 6):
            return self._signed()
        if kind in (3, 7, 8):
            length = {3: 1, 7: 8}.get(kind) or self._number()
            self.at += length
        elif kind in (9, 10):
            head = self._byte()
            for _ in range(self._number() if head >> 4 == 15 else head >> 4):
                self._value(3 if head & 15 in (1, 2) else head & 15, depth + 1)
        elif kind == 12:
            self.numbers(depth + 1)
        else:
            raise IndexError
        return None

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _number(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > 63:
                raise IndexError
        return value | byte << shift

    def _signed(self) -> int:
        value = self._number()
        return (value >> 1) ^ -(value & 1)
