"""Object storage in a local directory."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote

from yarn_ops.atomic import atomic_write, disk_errors
from yarn_ops.digests import CHUNK_BYTES
from yarn_ops.errors import StoreError
from yarn_ops.store import ObjectInfo, Traffic
from yarn_ops.store.keys import check_key, elsewhere

INCOMING = ".incoming"
"""Objects being written: below the root, so that a rename suffices; never listed."""


class LocalStore:
    """A `Store` whose keys are paths below `root`, which is made by the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.traffic = Traffic()

    @classmethod
    def at(cls, url: str) -> LocalStore:
        return cls(_path_of(url))

    @property
    def url(self) -> str:
        return self.root.as_uri()

    def uri_of(self, key: str) -> str:
        return f"{self.url}/{quote(check_key(key))}"

    def key_of(self, uri: str) -> str:
        """Also of an absolute path, which is how MLflow names a local artifact directory."""
        path = _path_of(uri).resolve()
        if path == self.root:
            return ""
        if not path.is_relative_to(self.root):
            raise elsewhere(uri, self.url)
        return check_key(path.relative_to(self.root).as_posix())

    def path_of(self, key: str) -> Path:
        """Where the object's bytes lie."""
        if check_key(key).split("/")[0] == INCOMING:
            raise StoreError(f"{key}: {INCOMING}/ is the store's own")
        return self.root / key

    def put_file(self, path: Path, key: str, on_bytes: Callable[[int], None] | None = None) -> None:
        with disk_errors(path):
            source = path.open("rb")
        with source, self._incoming(key) as target:
            while chunk := source.read(CHUNK_BYTES):
                target.write(chunk)
                self.traffic.sent(len(chunk))
                if on_bytes is not None:
                    on_bytes(len(chunk))

    def get_file(self, key: str, path: Path) -> None:
        with disk_errors(self.uri_of(key)):
            source = self.path_of(key).open("rb")
        with source, disk_errors(path), path.open("ab") as target:
            there = target.tell()
            source.seek(there)
            shutil.copyfileobj(source, target, CHUNK_BYTES)
            self.traffic.received(target.tell() - there)
            target.flush()
            os.fsync(target.fileno())

    def read_range(self, key: str, start: int, stop: int) -> Iterator[bytes]:
        with disk_errors(self.uri_of(key)):
            source = self.path_of(key).open("rb")
        with source:
            source.seek(start)
            while start < stop:
                with disk_errors(self.uri_of(key)):
                    chunk = source.read(min(CHUNK_BYTES, stop - start))
                if not chunk:
                    return
                start += len(chunk)
                self.traffic.received(len(chunk))
                yield chunk

    def read(self, key: str) -> bytes:
        with disk_errors(self.uri_of(key)):
            data = self.path_of(key).read_bytes()
        self.traffic.received(len(data))
        return data

    def find(self, key: str) -> bytes | None:
        return self.read(key) if self.path_of(key).is_file() else None

    def write(self, key: str, data: bytes) -> None:
        with self._incoming(key) as target:
            target.write(data)
        self.traffic.sent(len(data))

    def size(self, key: str) -> int | None:
        path = self.path_of(key)
        with disk_errors(self.uri_of(key)):
            try:
                return path.stat().st_size if path.is_file() else None
            except FileNotFoundError:
                return None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        folder = prefix.rpartition("/")[0]
        start = self.path_of(folder) if folder else self.root
        with disk_errors(start):
            files = (path for path in start.rglob("*") if path.is_file())
            found = sorted((path.relative_to(self.root).as_posix(), path) for path in files)
        for key, path in found:
            if not key.startswith(prefix) or key.startswith(f"{INCOMING}/"):
                continue
            try:
                facts = path.stat()
            except FileNotFoundError:  # deleted while we list
                continue
            modified = datetime.fromtimestamp(facts.st_mtime, UTC)
            yield ObjectInfo(key, facts.st_size, modified, version=f"{facts.st_ino}-{facts.st_mtime_ns}")

    def delete(self, key: str) -> None:
        with disk_errors(self.uri_of(key)):
            self.path_of(key).unlink(missing_ok=True)

    def copy(self, source_key: str, target_key: str, size_bytes: int | None = None) -> None:
        """A hard link; a copy where the filesystem has no (more) links."""
        source, target = self.path_of(source_key), self.path_of(target_key)
        with disk_errors(self.uri_of(source_key)):
            if target.exists() and source.samefile(target):
                return
        with self._arriving(target_key) as temporary, disk_errors(self.uri_of(source_key)):
            try:
                os.link(source, temporary)
            except FileNotFoundError:
                raise
            except OSError:
                shutil.copyfile(source, temporary)

    @contextmanager
    def _incoming(self, key: str) -> Iterator[BinaryIO]:
        """A file whose bytes become the object when the block ends well."""
        with self._arriving(key) as temporary, temporary.open("wb") as file:
            yield file

    @contextmanager
    def _arriving(self, key: str) -> Iterator[Path]:
        target = self.path_of(key)
        draft = self.root / INCOMING / uuid.uuid4().hex
        with disk_errors(self.uri_of(key)), atomic_write(target, durable=True, draft=draft):
            yield draft


def _path_of(uri: str) -> Path:
    path = unquote(uri.removeprefix("file://")) if uri.startswith("file:///") else uri
    if not path.startswith("/") or re.search("[\0\ud800-\udfff]", path):  # no file name holds these
        raise StoreError(f"{uri!r}: not a local directory; write file:///directory")
    return Path(path)
