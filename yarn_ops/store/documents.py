"""Training documents in S3 buckets: s3://bucket/glob patterns, read as streams."""

from __future__ import annotations

import fnmatch
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO

from yarn_ops.data.files import Files, LocalFiles, SourceFile
from yarn_ops.digests import CHUNK_BYTES, digest_of
from yarn_ops.errors import DataError
from yarn_ops.store import ObjectInfo, StoreOptions

if TYPE_CHECKING:
    from yarn_ops.store.s3 import S3Store

S3 = "s3://"
MOST_ASKED_BYTES = 64 << 20
MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class FilesByScheme:
    """`Files` that takes s3:// from a bucket and everything else from this machine."""

    options: StoreOptions

    def expand(self, pattern: str, *, follow_links: bool = False) -> Iterator[SourceFile]:
        return self._home_of(pattern).expand(pattern, follow_links=follow_links)

    def open(self, uri: str, until: int = 0) -> BinaryIO:
        return self._home_of(uri).open(uri, until)

    def read(self, uri: str) -> bytes:
        return self._home_of(uri).read(uri)

    def _home_of(self, uri: str) -> Files:
        return S3Files(self.options) if uri.startswith(S3) else LocalFiles()


@dataclass(frozen=True)
class S3Files:
    """`Files` in S3 buckets. Holds no connection, so it can be handed to other processes."""

    options: StoreOptions

    def expand(self, pattern: str, *, follow_links: bool = False) -> Iterator[SourceFile]:
        """`*` and `?` stay within a directory, `**` does not. StoreError when the bucket cannot be listed."""
        bucket, key = _split(pattern)
        matches = glob_regex(key).fullmatch
        literal = MAGIC.split(key, maxsplit=1)[0]
        for info in self._store(bucket).list(literal):
            # Zero-byte objects named like directories are how some tools make "folders".
            if info.key == key or (matches(info.key) and not info.key.endswith("/")):
                facts = [info.version, info.size_bytes, info.modified.isoformat()]
                yield SourceFile(f"{S3}{bucket}/{info.key}", info.size_bytes, digest_of(facts))

    def open(self, uri: str, until: int = 0) -> BinaryIO:
        bucket, key = _split(uri)
        store = self._store(bucket)
        info = store.head(key)
        if info is None:
            raise DataError(f"{uri}: no such object; put it back or survey the documents again")
        return io.BufferedReader(ObjectStream(store, info, until), CHUNK_BYTES)

    def read(self, uri: str) -> bytes:
        bucket, key = _split(uri)
        return self._store(bucket).read(key)

    def _store(self, bucket: str) -> S3Store:
        return _store_of(bucket, self.options, os.getpid())


class ObjectStream(io.RawIOBase):
    """One version of an S3 object as a seekable file.

    A request asks for what is known to be read: up to `until` in one, from there on for twice as much each
    time. A seek begins anew.
    """

    def __init__(self, store: S3Store, info: ObjectInfo, until: int) -> None:
        self._store = store
        self._info = info
        self._until = until
        self._position = 0
        self._asked_bytes = CHUNK_BYTES
        self._chunks: Iterator[bytes] = iter(())
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._info.size_bytes}[whence]
        if start + offset != self._position:
            self._position = max(0, start + offset)
            self._asked_bytes = CHUNK_BYTES
            self._chunks, self._pending = iter(()), memoryview(b"")
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        if not self._pending:
            self._pending = memoryview(next(self._chunks, b"") or self._ask())
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        self._position += count
        return count

    def _ask(self) -> bytes:
        """The first piece of what follows, if anything does."""
        if self._position >= self._info.size_bytes:
            return b""
        stop = min(self._info.size_bytes, max(self._until, self._position + self._asked_bytes))
        self._asked_bytes = min(2 * self._asked_bytes, MOST_ASKED_BYTES)
        self._chunks = self._store.read_range(
            self._info.key, self._position, stop, version=self._info.version
        )
        return next(self._chunks, b"")


@lru_cache(maxsize=16)
def _store_of(bucket: str, options: StoreOptions, _process_id: int) -> S3Store:
    """One client a process: connections do not survive a fork."""
    from yarn_ops.store.s3 import S3Store

    return S3Store(f"{S3}{bucket}", options, any_key=True)  # others have named these


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix(S3).partition("/")
    if not uri.startswith(S3) or not bucket or not key or MAGIC.search(bucket):
        raise DataError(f"{uri}: names no objects; write s3://bucket/path/*.txt")
    return bucket, key


def glob_regex(pattern: str) -> re.Pattern[str]:
    """A glob over whole keys: `*`, `?` and `[...]` within a directory, `**/` over any number of them."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\])", pattern)
    return re.compile("".join(_regex_of(part) for part in parts), re.DOTALL)


def _regex_of(part: str) -> str:
    simple = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    if part in simple:
        return simple[part]
    if part.startswith("[") and part.endswith("]"):
        return f"(?!/){fnmatch.translate(part)[4:-3]}"  # without its (?s: and )\Z
    return re.escape(part)
