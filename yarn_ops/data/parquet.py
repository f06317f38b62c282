"""Parquet columns of text in bounded memory, whatever a file says of itself.

A page of a few kilobytes may become gigabytes, and a batch of rows repeat a value of it many times. What a
page becomes is in its header (parquet.thrift, PageHeader), which is read here as the bytes go by on their
way to Arrow, before Arrow makes room for it. No value is larger than the largest page.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, BinaryIO, NamedTuple

from yarn_ops.data.chats import ASIDES, first_chat
from yarn_ops.errors import DataError

BUFFER_BYTES = 1 << 20
BATCH_ROWS = 64
MOST_BATCH_BYTES = 256 << 20
MOST_PAGE_BYTES = 128 << 20
MOST_HEADER_BYTES = 1 << 20
MOST_VALUES = 1 << 25
"""of a column, in a row group"""
MOST_CHAT_BYTES = 64 << 20
MESSAGE_BYTES = 200
"""what a message counts besides its texts"""


def open_parquet(file: BinaryIO | Pages, uri: str, coded: Sequence[str] = ()) -> Any:
    """pyarrow's ParquetFile, which reads columns of these paths as codes; DataError when it is none."""
    import pyarrow
    from pyarrow import parquet

    try:
        # With a buffer, a column is read page by page: a row group may be of any size.
        return parquet.ParquetFile(
            file,
            buffer_size=BUFFER_BYTES,
            pre_buffer=False,
            read_dictionary=list(coded),
            page_checksum_verification=True,
        )
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{uri}: damaged .parquet file ({error}); replace it") from None


def read_rows(file: BinaryIO, uri: str, field: str, start: int, stop: int | None) -> Iterator[dict[str, Any]]:
    """The rows of the row groups [start, stop), with their text field, or their chat and what is beside it.

    DataError where there is no such column, it is of another type, a page is too large, or a text is none.
    """
    import pyarrow

    pages = Pages(file, uri)
    table = open_parquet(pages, uri)
    columns = _columns(table.schema_arrow, uri, field)
    leaves = [table.schema.column(leaf) for each in columns.values() for leaf in each]
    if any(leaf.max_repetition_level for leaf in leaves):  # a value of many messages is to be held once
        table = open_parquet(pages, uri, [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"])
    try:
        for group in range(start, stop or table.metadata.num_row_groups):
            yield from _group(table, pages, group, columns, uri)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{uri}: damaged .parquet file ({error}); replace it") from None


def _columns(schema: Any, uri: str, field: str) -> dict[str, list[int]]:
    """The columns to be read, by name, each with its leaves among all of the file."""
    from pyarrow import types

    names = schema.names
    if field not in names and (chat := first_chat(names)):
        wanted = [chat, *(name for name in ASIDES if name in names)]
    else:
        wanted = [field]
    if wanted[0] not in names:
        has = ", ".join(names)[:200] or "none"
        raise DataError(f"{uri}: no field {field!r}, it has: {has}; set data.text_field")
    kind = schema.types[names.index(wanted[0])]
    kind = kind.value_type if types.is_dictionary(kind) else kind
    texts = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    if not texts and not types.is_null(kind) and not (types.is_nested(kind) and not types.is_struct(kind)):
        raise DataError(f"{uri}, row 1: {wanted[0]!r} is {kind}, not a string; set data.text_field")
    ends = list(accumulate(_leaves(kind) for kind in schema.types))
    places = {name: names.index(name) for name in wanted}
    return {name: list(range(ends[at] - _leaves(schema.types[at]), ends[at])) for name, at in places.items()}


def _leaves(kind: Any) -> int:
    """How many columns of values a column of that type is stored as."""
    inner = [kind.field(number).type for number in range(kind.num_fields)]
    return sum(map(_leaves, inner)) if inner else 1


def _group(
    table: Any, pages: Pages, group: int, columns: dict[str, list[int]], uri: str
) -> Iterator[dict[str, Any]]:
    rows, done = BATCH_ROWS, 0
    leaves = [leaf for each in columns.values() for leaf in each]
    while True:
        stored = table.metadata.row_group(group)
        pages.expect([stored.column(leaf) for leaf in leaves], MOST_BATCH_BYTES // rows)
        try:
            number = 0
            # By leaves: a name would also choose the leaf `text` of a column `a` for the column `a.text`.
            for batch in table.reader.iter_batches(
                rows, row_groups=[group], column_indices=leaves, use_threads=False
            ):
                for at in range(max(0, done - number), batch.num_rows):
                    done = number + at + 1
                    yield {name: _value(batch.column(name)[at], uri, group, done) for name in columns}
                number += batch.num_rows
            return
        except LargePage as page:  # again from the group's beginning, in smaller batches
            rows = max(1, MOST_BATCH_BYTES // page.size_bytes)


def _value(scalar: Any, uri: str, group: int, row: int) -> Any:
    where = f"row {row}" + (f" of row group {group + 1}" if group else "")
    messages = getattr(scalar, "values", None)
    if messages is not None and _size_bytes(messages) + MESSAGE_BYTES * len(messages) > MOST_CHAT_BYTES:
        raise DataError(f"{uri}, {where}: longer than {MOST_CHAT_BYTES:,} bytes; cut it into documents")
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        raise DataError(f"{uri}, {where}: not UTF-8 ({error.reason}); correct the row") from None


def _size_bytes(values: Any) -> int:
    """Of the texts in an array, however often each is held."""
    from pyarrow import compute, types

    if types.is_dictionary(values.type):
        if not types.is_string(values.type.value_type):
            return 0
        sizes = compute.binary_length(values.dictionary).take(values.indices)
        return int(compute.sum(sizes).as_py() or 0)
    if types.is_struct(values.type):
        return sum(map(_size_bytes, values.flatten()))
    return _size_bytes(values.flatten()) if types.is_list(values.type) else 0


class LargePage(Exception):
    """A page after which a batch of so many rows might be too large."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"a page of {size_bytes} bytes")
        self.size_bytes = size_bytes


class Pages(io.RawIOBase):
    """A Parquet file that looks at the headers of the pages of some column chunks as they are read."""

    def __init__(self, file: BinaryIO, uri: str) -> None:
        self._file, self._uri = file, uri
        self._chunks: list[list[int]] = []
        """of each chunk: where its next page begins, where it ends, how many values it may still have"""
        self._most_bytes = MOST_PAGE_BYTES

    def expect(self, chunks: Sequence[Any], most_bytes: int) -> None:
        """The chunks are read next, from their beginnings; LargePage at a page above `most_bytes`."""
        self._chunks, self._most_bytes = [], most_bytes
        for chunk in chunks:
            first = chunk.data_page_offset
            if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < first:
                first = chunk.dictionary_page_offset
            self._chunks.append([first, first + chunk.total_compressed_size, MOST_VALUES])

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
        for chunk in self._chunks:
            while at <= chunk[0] < min(at + len(data), chunk[1]):
                page = self._look(data[chunk[0] - at :], at + len(data))
                chunk[0] += page.header_bytes + page.stored_bytes
                chunk[2] -= page.values
                if chunk[2] < 0:
                    raise DataError(
                        f"{self._uri}: more than {MOST_VALUES:,} values in a column of a row group; write it "
                        "again with smaller groups"
                    )
        return data

    def _look(self, data: bytes, behind: int) -> Page:
        """At the page that begins with `data`, whose file goes on at `behind`."""
        page = page_of(data)
        if page is None:
            data += self._file.read(MOST_HEADER_BYTES)
            self._file.seek(behind)
            page = page_of(data)
        if page is None:
            raise DataError(f"{self._uri}: damaged .parquet file (a page without a header); replace it")
        size_bytes = page.size_bytes
        if size_bytes > MOST_PAGE_BYTES:
            raise DataError(
                f"{self._uri}: a page of {size_bytes:,} bytes, and at most {MOST_PAGE_BYTES:,} are read; "
                "write it again with smaller pages"
            )
        if size_bytes > self._most_bytes:
            raise LargePage(size_bytes)
        return page


class Page(NamedTuple):
    """What the header of a page says, and its own size."""

    header_bytes: int
    size_bytes: int
    stored_bytes: int
    values: int


def page_of(data: bytes) -> Page | None:
    """The page that begins with `data`; None where its header is not in it."""
    reader = _Compact(data)
    try:
        fields = reader.numbers()
    except (IndexError, RecursionError):
        return None
    data_page = fields.get(5) or fields.get(8)  # of version 1 or 2, whose first field is how many values
    values = data_page.get(1, 0) if isinstance(data_page, dict) else 0
    page = Page(reader.at, fields.get(2, -1), fields.get(3, -1), values)
    return page if all(isinstance(size, int) and size >= 0 for size in page) else None


class _Compact:
    """Thrift's compact protocol, as far as the numbers of a structure and those within it."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def numbers(self, depth: int = 0) -> dict[int, Any]:
        """By their fields; IndexError where the data end."""
        if depth > 8:
            raise RecursionError
        found: dict[int, Any] = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._signed()
            if (value := self._value(head & 15, depth)) is not None:
                found[field] = value
        return found

    def _value(self, kind: int, depth: int) -> Any:
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
            return self.numbers(depth + 1)
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
