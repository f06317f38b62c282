"""Where source files come from: a pattern becomes fingerprinted files, a URI becomes bytes."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol
from urllib.parse import unquote, unquote_to_bytes

from yarn_ops.digests import file_digest
from yarn_ops.errors import DataError

HASHING_THREADS = 8
WHOLE_BYTES = 1 << 20
"""files up to here are read in one request and held"""
AHEAD_FILES = 8
STDLIB = "stdlib:"
FILE = "file://"
NOT_STDLIB = frozenset({"site-packages", "dist-packages", "lib-dynload", "__pycache__"})


@dataclass(frozen=True, order=True)
class SourceFile:
    """One file of a corpus, as it was when surveyed."""

    uri: str
    """what `Files.open` takes; `stdlib:relative/path` for the standard library, so equal on all machines"""
    size_bytes: int
    fingerprint: str
    """changes when the content changes: sha256 of a local file, a version or ETag of a remote one"""

    @property
    def name(self) -> str:
        """Tells the file from all others of a corpus without naming a place on this machine."""
        if not self.uri.startswith(FILE):
            return self.uri
        return f"{PurePosixPath(unquote(self.uri)).name}@{self.fingerprint[:12]}"


class Files(Protocol):
    """A place that source files come from."""

    def expand(self, pattern: str) -> Iterator[SourceFile]:
        """The regular files that `pattern` names, in any order, none when nothing matches.

        DataError when a file cannot be read or the pattern is of a kind not known here.
        """
        ...

    def open(self, uri: str, until: int = 0) -> BinaryIO:
        """The bytes of a file from its start; seekable, because Parquet is read from its end.

        until: the byte up to which it will be read in one go, so that this can be asked for at once.
        DataError when it cannot be opened. The caller closes it.
        """
        ...

    def read(self, uri: str) -> bytes:
        """All bytes of a small file, in one request. DataError when it cannot be read."""
        ...


class LocalFiles:
    """Paths, globs (`**` and `~` too), `file://` and `stdlib:`, the running Python's own source files."""

    def expand(self, pattern: str) -> Iterator[SourceFile]:
        uris = _stdlib_uris(pattern) if pattern.startswith(STDLIB) else _path_uris(pattern)
        with ThreadPoolExecutor(HASHING_THREADS) as pool:
            yield from pool.map(_fingerprint, uris)

    def open(self, uri: str, until: int = 0) -> BinaryIO:
        try:
            return _path_of(uri).open("rb")
        except OSError as error:
            raise _unreadable(uri, error) from None

    def read(self, uri: str) -> bytes:
        try:
            return _path_of(uri).read_bytes()
        except OSError as error:
            raise _unreadable(uri, error) from None


class ReadAhead:
    """Reads small files before they are asked for, so that nobody waits for a distant server.

    To be asked for them in their order; `close` it.
    """

    def __init__(self, files: Files, sources: Sequence[SourceFile]) -> None:
        self._files = files
        self._pool = ThreadPoolExecutor(AHEAD_FILES)
        self._left = iter([source.uri for source in sources if source.size_bytes <= WHOLE_BYTES])
        self._coming = {uri: self._pool.submit(files.read, uri) for uri in islice(self._left, AHEAD_FILES)}

    def expand(self, pattern: str) -> Iterator[SourceFile]:
        return self._files.expand(pattern)

    def open(self, uri: str, until: int = 0) -> BinaryIO:
        return self._files.open(uri, until)

    def read(self, uri: str) -> bytes:
        content = self._coming.pop(uri).result()
        for following in islice(self._left, 1):
            self._coming[following] = self._pool.submit(self._files.read, following)
        return content

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _stdlib_root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _stdlib_uris(pattern: str) -> list[str]:
    relative = pattern.removeprefix(STDLIB)
    if not relative or relative.startswith("/") or ".." in PurePosixPath(relative).parts:
        raise DataError(
            f"{pattern}: write stdlib: and a path or glob below the standard library, e.g. stdlib:**/*.py"
        )
    root = _stdlib_root()
    found = map(PurePosixPath, _glob(relative, root))
    return [
        STDLIB + str(path)
        for path in found
        if not NOT_STDLIB.intersection(path.parts) and (root / path).is_file()
    ]


def _path_uris(pattern: str) -> list[str]:
    plain = unquote(pattern.removeprefix(FILE)) if pattern.startswith(FILE) else pattern
    if ":" in plain.split("/")[0]:
        raise DataError(f"{pattern}: unknown kind of source; use a path, file://, s3:// or stdlib:**/*.py")
    path = Path(plain).expanduser().absolute()
    if path.is_dir():
        raise DataError(f"{pattern}: is a directory; name the files in it, e.g. {plain.rstrip('/')}/**/*.txt")
    # A file whose name happens to hold [ or * means itself.
    found = [path] if path.is_file() else map(Path, _glob(str(path)))
    return [match.as_uri() for match in found if match.is_file()]


def _glob(pattern: str, root: Path | None = None) -> list[str]:
    # Unlike Path.glob: leaves hidden files out and means the same in every Python version.
    return glob(pattern, root_dir=root, recursive=True)  # noqa: PTH207


def _path_of(uri: str) -> Path:
    if uri.startswith(STDLIB):
        return _stdlib_root() / uri.removeprefix(STDLIB)
    if uri.startswith(FILE):
        return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix(FILE))))  # names need not be UTF-8
    raise DataError(f"{uri}: not a local file; only file:// and stdlib: are read here")


def _fingerprint(uri: str) -> SourceFile:
    read_bytes: list[int] = []
    try:
        digest = file_digest(_path_of(uri), read_bytes.append)
    except OSError as error:
        raise _unreadable(uri, error) from None
    return SourceFile(uri, sum(read_bytes), digest)


def _unreadable(uri: str, error: OSError) -> DataError:
    return DataError(
        f"{uri}: cannot be read ({error.strerror or error}); make it readable or take it out of data.sources"
    )
