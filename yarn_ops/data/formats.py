"""What a source file holds, told by its content; its name decides only where the content leaves it open.

Packed files (gzip, zstd, bzip2, xz) are unpacked and UTF-16 and UTF-32 with a byte order mark become UTF-8 on
the way. Below that a file is text, JSON lines, JSON values (the items of one array, or values over several
lines) or Parquet. One that is named as JSON or Parquet is never read as text; one with another name, or none,
is read as rows where its first rows are objects with the text field or with a chat.
"""

from __future__ import annotations

import bz2
import codecs
import io
import json
import lzma
import re
import unicodedata
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from gzip import GzipFile
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal
from urllib.parse import unquote

from yarn_ops.data.chats import CHATS
from yarn_ops.data.files import SourceFile
from yarn_ops.errors import DataError

Form = Literal["text", "lines", "values", "parquet"]
Named = Literal["json", "parquet", "table", "other rows", "other"]

BUFFER_BYTES = 1 << 20
HEAD_BYTES = 64 << 10
"""by which a file is told"""
PARQUET = b"PAR1"
UTF8_MARK = codecs.BOM_UTF8
MARKS = {  # UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
PACKING_SUFFIX = re.compile(r"(?:\.(gz|gzip|zst|zstd|bz2|xz|lz4|br|sz|snappy|lzma|zip|7z))+$")
UNREAD_PACKINGS = ("lz4", "br", "sz", "snappy", "lzma", "zip", "7z")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
SUFFIXES: dict[Named, re.Pattern[str]] = {
    "json": re.compile(r"\.(json|jsonl|ndjson|jsonlines|jl)$"),
    "parquet": re.compile(r"\.(parquet|pq)$"),
    "table": re.compile(r"\.[ct]sv$"),
    "other rows": re.compile(r"\.(arrow|feather|orc|avro|tfrecords?)$"),
}
FED_BYTES = 1 << 10
"""at once to zstd, which makes at most 32 MiB of them; the others are told how much to make"""
MOST_WINDOW = 31
"""what `zstd --long` takes at most, as a power of two"""
DAMAGES = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""what unpacking a damaged file raises"""
SPACE = b" \t\r\n"
DECODER = json.JSONDecoder()


class NotText(DataError):
    """A file's bytes are not UTF-8 or hold NUL, or are no file of its own at all."""


@dataclass(frozen=True)
class Content:
    """A source file's bytes as they are read."""

    file: BinaryIO
    """unpacked, in UTF-8; at its beginning"""
    form: Form
    plain: bool
    """whether these are the bytes that are stored, so that one can begin anywhere"""
    packing: str = ""


def named(source: SourceFile) -> Named:
    """What the file's name says that it is."""
    name = PACKING_SUFFIX.sub("", _name(source))
    return next((kind for kind, suffix in SUFFIXES.items() if suffix.search(name)), "other")


def _name(source: SourceFile) -> str:
    return PurePosixPath(source.link or unquote(source.uri)).name.lower()


def content_of(raw: BinaryIO, source: SourceFile, text_field: str) -> Content:
    """The content of a source file, given its stored bytes.

    DataError where these are damaged, or rows in a form that is not read here.
    """
    magic = _head(raw, len(LFS_POINTER))
    if magic == LFS_POINTER:
        raise _lfs_pointer(source)
    packing, unpacked = _packing(magic)
    if named(source) == "parquet" and packing:
        raise DataError(f"{source.uri}: Parquet packed by {packing}; unpack it, its pages are packed already")
    if named(source) == "parquet" or (magic.startswith(PARQUET) and _tail(raw) == PARQUET):
        return Content(raw, "parquet", plain=True)
    try:
        head = _head(raw, HEAD_BYTES) if unpacked is None else unpacked(raw).read(HEAD_BYTES)
    except DAMAGES as error:
        raise damaged(source, packing, error) from None
    raw.seek(0)
    file = raw if unpacked is None else unpacked(raw)
    encoding = next((encoding for mark, encoding in MARKS.items() if head.startswith(mark)), None)
    if encoding is not None:
        file, head = io.BufferedReader(_Utf8(file, encoding), BUFFER_BYTES), _utf8(head, encoding, source)
    start = head.removeprefix(UTF8_MARK).lstrip(SPACE)
    _require_rows_read(source, packing, start, text_field)
    whole = len(head) < HEAD_BYTES
    form = _json_form(start, whole) if named(source) == "json" else _other_form(start, whole, text_field)
    return Content(file, form, unpacked is None and encoding is None, packing)


def _packing(magic: bytes) -> tuple[str, Callable[[BinaryIO], Any] | None]:
    found = ((packing, unpack) for packing, (begins, unpack) in PACKINGS.items() if magic.startswith(begins))
    return next(found, ("", None))


def _lfs_pointer(source: SourceFile) -> DataError:
    told = f"{source.uri}: a Git LFS pointer and not the file itself; fetch that (git lfs pull) and run again"
    return NotText(told) if named(source) == "other" else DataError(told)


def _require_rows_read(source: SourceFile, packing: str, start: bytes, text_field: str) -> None:
    """DataError where the file is named as rows and holds them in a form that is not read here."""
    name, kind = _name(source), named(source)
    said = PACKING_SUFFIX.search(name)
    if said and kind == "json" and start[:1] not in (b"{", b"["):
        if said[1] in UNREAD_PACKINGS or _packing(start)[0]:
            how = "twice" if _packing(start)[0] else f"as {said[1]}, which is not read"
            raise DataError(f"{source.uri}: packed {how}; pack it with gzip, zstd, bzip2 or xz, once")
        if not packing:
            raise damaged(source, said[1], f"begins with {start[:8]!r}")
    if kind == "other rows":
        raise DataError(
            f"{source.uri}: files of this kind are not read; write its rows as Parquet or JSON lines"
        )
    if kind == "table":
        columns = re.split(r"[,;\t|]", start.partition(b"\n")[0].decode("utf-8", "replace").strip())
        if text_field in (column.strip(" \"'") for column in columns):
            raise DataError(
                f"{source.uri}: a table with the column {text_field!r}; write its rows as Parquet or JSON "
                "lines, or give it another name to train on it as it is"
            )


def damaged(source: SourceFile, packing: str, error: object) -> DataError:
    """What to raise where a packed file cannot be unpacked."""
    return DataError(f"{source.uri}: damaged {packing or 'packed'} file ({error}); replace it")


def _head(raw: BinaryIO, size_bytes: int) -> bytes:
    raw.seek(0)
    head = raw.read(size_bytes)
    raw.seek(0)
    return head


def _tail(raw: BinaryIO) -> bytes:
    raw.seek(-len(PARQUET), io.SEEK_END)
    tail = raw.read(len(PARQUET))
    raw.seek(0)
    return tail


def _json_form(start: bytes, whole: bool) -> Form:
    """Of a file that is named as JSON."""
    if start.startswith(b"["):
        return "values"
    line, ends, rest = start.partition(b"\n")
    if _parsed(line) is not None or not (ends or whole) or not rest.strip():
        return "lines"
    over_lines = _first_value(start)[0] is not None or line.rstrip()[-1:] in (b"{", b"[", b",", b":")
    return "values" if line.startswith(b"{") and over_lines else "lines"


def _other_form(start: bytes, whole: bool, field: str) -> Form:
    """Of a file whose name does not tell: rows where the first ones have the text field or a chat."""
    if start.startswith(b"["):
        first, rest = _first_value(start[1:].lstrip(SPACE))
        return "values" if _is_row(first, field) and rest[:1] in (",", "]", "") else "text"
    if not start.startswith(b"{"):
        return "text"
    lines = [line for line in start.split(b"\n") if line.strip()]
    complete = lines if whole or start.endswith(b"\n") else lines[:-1]
    if complete and all(_is_row(_parsed(line), field) for line in complete[:2]):
        return "lines"
    first, rest = _first_value(start)
    return "values" if _is_row(first, field) and rest[:1] in ("{", "") else "text"


def _is_row(value: Any, field: str) -> bool:
    texts = isinstance(value, dict) and isinstance(value.get(field), str)
    return texts or (isinstance(value, dict) and any(isinstance(value.get(name), list) for name in CHATS))


def _parsed(line: bytes) -> Any:
    """The JSON value that a line is; None where it is none."""
    with suppress(ValueError, RecursionError):
        return json.loads(line)
    return None


def _first_value(start: bytes) -> tuple[Any, str]:
    """The JSON value that bytes begin with, None where none ends within them, and what follows it."""
    text = start.decode("utf-8", "ignore")
    with suppress(ValueError, RecursionError):
        value, end = DECODER.raw_decode(text)
        return value, text[end:].lstrip()
    return None, ""


def _utf8(head: bytes, encoding: str, source: SourceFile) -> bytes:
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError as error:
        raise _not_text(source, encoding, error.start) from None
    if any(unicodedata.category(sign) in ("Cn", "Co") for sign in text):  # bytes that begin so by chance
        raise _not_text(source, encoding, 0)
    return text.encode()


def _not_text(source: SourceFile, encoding: str, at: int) -> NotText:
    return NotText(
        f"{source.uri}: not {encoding.upper()} at byte {at}, though it begins so; convert it to UTF-8 or "
        "take it out of data.sources"
    )


class _Made(io.RawIOBase):
    """Bytes that are made of those of another file, as they are asked for."""

    _pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._pending and self._make():
            pass
        count = min(len(buffer), len(self._pending))
        buffer[:count], self._pending = self._pending[:count], self._pending[count:]
        return count

    def _make(self) -> bool:
        """Put what comes next, if anything, into `_pending`; whether the other file goes on."""
        raise NotImplementedError


class _Utf8(_Made):
    """Bytes in another encoding, with a byte order mark, as UTF-8. UnicodeDecodeError where they are none."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._file, self._decoder = file, codecs.getincrementaldecoder(encoding)()

    def _make(self) -> bool:
        data = self._file.read(HEAD_BYTES)
        self._pending = memoryview(self._decoder.decode(data, final=not data).encode())
        return bool(data)


class _Frames(_Made):
    """Frames of a packing, one after the other, unpacked.

    new_frame: what unpacks one, as `bz2.BZ2Decompressor` or zstandard's decompressobj does. padding: what may
    lie between frames and after them. EOFError where the last one does not end, and OSError or LZMAError
    where something else follows: Python's own files of bzip2 and xz leave that out without a word.
    """

    def __init__(self, file: BinaryIO, new_frame: Callable[[], Any], padding: bytes = b"") -> None:
        self._file, self._new_frame, self._padding = file, new_frame, padding
        self._frame: Any = None
        self._rest = b""

    def _make(self) -> bool:
        hungry = self._frame is None or getattr(self._frame, "needs_input", True)
        data = (self._rest or self._file.read(FED_BYTES)) if hungry else b""
        if hungry and not data:
            if self._frame is not None:
                raise EOFError("it ends within a frame")
            return False
        if self._frame is None and not (data := data.lstrip(self._padding) if self._padding else data):
            self._rest = b""
            return True
        frame = self._frame or self._new_frame()
        most = (BUFFER_BYTES,) if hasattr(frame, "needs_input") else ()
        try:
            self._pending = memoryview(frame.decompress(data, *most))
        except Exception as error:  # OSError, lzma.LZMAError, zstandard.ZstdError
            raise OSError(str(error)) from None
        self._rest = frame.unused_data if frame.eof else b""
        self._frame = None if frame.eof else frame
        return True


def _zstd_frame() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=1 << MOST_WINDOW).decompressobj()


def _unpacked(raw: BinaryIO, new_frame: Callable[[], Any], padding: bytes = b"") -> BinaryIO:
    return io.BufferedReader(_Frames(raw, new_frame, padding), BUFFER_BYTES)


PACKINGS: dict[str, tuple[bytes | tuple[bytes, ...], Callable[[BinaryIO], Any]]] = {
    "gzip": (b"\x1f\x8b", lambda raw: GzipFile(fileobj=raw)),
    "zstd": (
        (b"\x28\xb5\x2f\xfd", *(bytes([low, 0x2A, 0x4D, 0x18]) for low in range(0x50, 0x60))),
        lambda raw: _unpacked(raw, _zstd_frame),
    ),
    "bzip2": (b"BZh", lambda raw: _unpacked(raw, bz2.BZ2Decompressor)),
    "xz": (b"\xfd7zXZ\x00", lambda raw: _unpacked(raw, lzma.LZMADecompressor, b"\0")),
}
"""by name: what files begin with (zstd's may be preceded by frames to be skipped), and what unpacks them"""
