"""Where source files come from: a pattern becomes fingerprinted files, a URI becomes bytes."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from glob import escape, glob, has_magic
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol
from urllib.parse import unquote, unquote_to_bytes

from yarn_ops.digests import stream_digest
from yarn_ops.errors import DataError
from yarn_ops.opening import LinkLeaves, open_regular, place_below

HASHING_THREADS = 8
WHOLE_BYTES = 1 << 20
"""files up to here are read in one request and held"""
AHEAD_FILES = 8
MOST_FOLDERS = 4096
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
    link: str = ""
    """the name of the link that it was found by, when that is another than its own"""

    @property
    def name(self) -> str:
        """Tells the file from all others of a corpus without naming a place on this machine."""
        if not self.uri.startswith(FILE):
            return self.uri
        return f"{self.link or PurePosixPath(unquote(self.uri)).name}@{self.fingerprint[:12]}"


class Files(Protocol):
    """A place that source files come from."""

    def expand(self, pattern: str, *, follow_links: bool = False) -> Iterator[SourceFile]:
        """The regular files that `pattern` names, in any order, none when nothing matches.

        DataError when a file cannot be read, when a link leaves the folder that the pattern begins with and
        is not to be followed, or when the pattern is of a kind not known here.
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

    def expand(self, pattern: str, *, follow_links: bool = False) -> Iterator[SourceFile]:
        found = _stdlib_uris(pattern) if pattern.startswith(STDLIB) else _path_uris(pattern, follow_links)
        with ThreadPoolExecutor(HASHING_THREADS) as pool:
            yield from pool.map(_fingerprint, found.keys(), found.values())

    def open(self, uri: str, until: int = 0) -> BinaryIO:
        try:
            return _open(uri)
        except OSError as error:
            raise _unreadable(uri, error) from None

    def read(self, uri: str) -> bytes:
        with self.open(uri) as file:
            try:
                return file.read()
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

    def expand(self, pattern: str, *, follow_links: bool = False) -> Iterator[SourceFile]:
        return self._files.expand(pattern, follow_links=follow_links)

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


def _stdlib_uris(pattern: str) -> dict[str, str]:
    relative = pattern.removeprefix(STDLIB)
    if not relative or relative.startswith("/") or ".." in PurePosixPath(relative).parts:
        raise DataError(
            f"{pattern}: write stdlib: and a path or glob below the standard library, e.g. stdlib:**/*.py"
        )
    root = _stdlib_root()
    glob = _Glob(pattern, root, follow_links=True, left_out=NOT_STDLIB)
    found = [path.relative_to(root) for path in glob.find(relative)]
    return {STDLIB + path.as_posix(): "" for path in found if not NOT_STDLIB.intersection(path.parts)}


def _path_uris(pattern: str, follow_links: bool) -> dict[str, str]:
    """The link that a file was found by, by the URI of where it lies."""
    plain = unquote(pattern.removeprefix(FILE)) if pattern.startswith(FILE) else pattern
    if ":" in plain.split("/")[0]:
        raise DataError(f"{pattern}: unknown kind of source; use a path, file://, s3:// or stdlib:**/*.py")
    path = Path(plain).expanduser().absolute()
    if path.is_dir():
        raise DataError(f"{pattern}: is a directory; name the files in it, e.g. {plain.rstrip('/')}/**/*.txt")
    # A file whose name happens to hold [ or * means itself.
    fixed = len(path.parts) - 1
    if not path.is_file():
        fixed = next((at for at, part in enumerate(path.parts) if has_magic(part)), fixed)
    glob = _Glob(pattern, Path(*path.parts[:fixed]), follow_links)
    named = str(Path(*path.parts[fixed:]))
    found: dict[str, str] = {}
    for match in sorted(glob.find(escape(named) if path.is_file() else named)):
        place = glob.place_of(match)
        found.setdefault(place.as_uri(), "" if place.name == match.name else match.name)
    return found


class _Glob:
    """What a pattern names below its root, the folders before its first sign; every folder is read once.

    left_out: names of folders that `**` does not go into.

    Unlike Path.glob it leaves hidden files out and means the same in every Python version.
    """

    def __init__(
        self, pattern: str, root: Path, follow_links: bool, left_out: frozenset[str] = frozenset()
    ) -> None:
        self._pattern, self._root, self._follow_links = pattern, root, follow_links
        self._left_out = left_out
        self._roots = [Path(os.path.realpath("/" if follow_links else root))]
        self._place_of_folder = lru_cache(MOST_FOLDERS)(self._place_below)

    def find(self, relative: str) -> Iterator[Path]:
        """The files, as they are named."""
        return (path for path in self._matches(self._root, PurePosixPath(relative).parts) if path.is_file())

    def place_of(self, path: Path) -> Path:
        """Where a file lies, its links followed; DataError where that is outside of the root."""
        return (
            self._place_below(path) if path.is_symlink() else self._place_of_folder(path.parent) / path.name
        )

    def _matches(self, folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
        level = parts.index("**") if "**" in parts else len(parts)
        found = [folder]
        if level:
            # glob's own `**` goes into every link, and on without end where one leads back.
            found = [folder / name for name in glob(str(Path(*parts[:level])), root_dir=folder)]  # noqa: PTH207
        if level == len(parts):
            yield from found
            return
        for inner in self._folders_below(found):
            yield from self._matches(inner, parts[level + 1 :] or ("*",))

    def _folders_below(self, starts: list[Path]) -> Iterator[Path]:
        """These and all that they hold, each once, whatever links lead there."""
        seen: set[tuple[int, int]] = set()
        ahead = sorted(starts, reverse=True)
        while ahead:
            folder = ahead.pop()
            try:
                facts = folder.stat()
                inner = [Path(entry) for entry in os.scandir(folder) if self._goes_on(entry)]
            except OSError:  # no folder, or one that is not ours to read: as glob has it
                continue
            if (facts.st_dev, facts.st_ino) not in seen:
                seen.add((facts.st_dev, facts.st_ino))
                yield folder
                ahead += sorted(inner, reverse=True)

    def _goes_on(self, entry: os.DirEntry[str]) -> bool:
        if entry.name.startswith(".") or entry.name in self._left_out or not entry.is_dir():
            return False
        if entry.is_symlink() and not self._follow_links:
            self._place_below(Path(entry))
            return False  # where it leads is below the root, and is met there
        return True

    def _place_below(self, path: Path) -> Path:
        try:
            return place_below(path, self._roots)
        except LinkLeaves as link:
            raise DataError(
                f"{self._pattern}: {link}, outside of {self._root}; take it out, name what it leads to, "
                "or set data.follow_links"
            ) from None
        except OSError as error:
            raise _unreadable(path.as_uri(), error) from None


def _open(uri: str) -> BinaryIO:
    if uri.startswith(STDLIB):
        return (_stdlib_root() / uri.removeprefix(STDLIB)).open("rb")
    if uri.startswith(FILE):
        # names need not be UTF-8
        return open_regular(Path(os.fsdecode(unquote_to_bytes(uri.removeprefix(FILE)))))
    raise DataError(f"{uri}: not a local file; only file:// and stdlib: are read here")


def _fingerprint(uri: str, link: str) -> SourceFile:
    read_bytes: list[int] = []
    try:
        with _open(uri) as file:
            digest = stream_digest(file, read_bytes.append)
    except OSError as error:
        raise _unreadable(uri, error) from None
    return SourceFile(uri, sum(read_bytes), digest, link)


def _unreadable(uri: str, error: OSError) -> DataError:
    return DataError(
        f"{uri}: cannot be read ({error.strerror or error}); make it readable or take it out of data.sources"
    )
