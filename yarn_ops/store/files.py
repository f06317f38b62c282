"""Files by their sha256: each fetched once, in parts at once, and hashed while it arrives.

<sha256>            a whole file, as it was verified
.<sha256>.partial   one that is arriving; who holds its lock fills it
.<sha256>.parts     how many bytes of each of its parts are there: little-endian uint32, one a part
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import struct
from collections.abc import Iterator
from concurrent.futures import Executor, Future, wait
from contextlib import contextmanager
from pathlib import Path

from yarn_ops.atomic import disk_errors, is_still, sync_directory
from yarn_ops.digests import CHUNK_BYTES, file_digest
from yarn_ops.errors import StoreError
from yarn_ops.store import Store
from yarn_ops.store.manifest import FileEntry
from yarn_ops.store.transfer import Transfer

PART_BYTES = 32 << 20
"""as uploads are cut: a part is then one object of the server's"""
COPIED_BYTES = 1 << 20
"""files up to here are copied, never linked: a config.json is edited in place, weights are not"""


class FileCache:
    """A directory of verified files that any number of pulls, threads and processes may share."""

    def __init__(self, root: Path, *, shared: bool = True) -> None:
        self._root = root
        self._mode = 0o444 if shared else 0o644
        with disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)

    def bring(self, store: Store, key: str, entry: FileEntry, transfer: Transfer, pool: Executor) -> bool:
        """Have the entry's file here, its parts fetched in `pool`; False when the object is not that file.

        What an earlier attempt brought is kept and only the rest fetched. Raises StoreError.
        """
        path = self._root / entry.sha256
        partial, parts = (self._root / f".{entry.sha256}.{kind}" for kind in ("partial", "parts"))
        with disk_errors(f"{self._root}: {key}"), _held(partial) as handle:
            if not self._has(path, entry, transfer):
                with _held(parts) as account:
                    if not _fetch(
                        _Arrival(handle, account, entry.size_bytes), store, key, entry, transfer, pool
                    ):
                        partial.unlink()
                        parts.unlink()
                        return False
                os.fchmod(handle, self._mode)
                os.fsync(handle)
                partial.rename(path)
                sync_directory(self._root)
            partial.unlink(missing_ok=True)
            parts.unlink(missing_ok=True)
            return True

    def _has(self, path: Path, entry: FileEntry, transfer: Transfer) -> bool:
        """Whether the file is here; one that was changed since is removed."""
        if not path.exists():
            return False
        if file_digest(path, transfer.advance) == entry.sha256:
            return True
        path.unlink()
        return False

    def place(self, entry: FileEntry, path: Path) -> None:
        """Give the entry's file the name `path`: a hard link, or a copy where that cannot be."""
        source = self._root / entry.sha256
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if entry.size_bytes > COPIED_BYTES:
                try:
                    os.link(source, path)
                    return
                except FileNotFoundError:
                    raise
                except OSError:  # another file system, or one without (more) links
                    pass
            shutil.copyfile(source, path)
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _fetch(
    arrival: _Arrival, store: Store, key: str, entry: FileEntry, transfer: Transfer, pool: Executor
) -> bool:
    """Whether what arrived is the entry's file; only one fetched whole tells of damage."""
    while True:
        kept = arrival.kept_bytes > 0
        if arrival.fetch(store, key, transfer, pool) == entry.sha256:
            return True
        if not kept:
            return False
        arrival.forget()


class _Arrival:
    """A file being filled in parts, in any order, and hashed in order; `account` is its .parts."""

    def __init__(self, handle: int, account: int, size_bytes: int) -> None:
        self._handle, self._account, self._size_bytes = handle, account, size_bytes
        self._starts = range(0, size_bytes, PART_BYTES)
        account_bytes = 4 * len(self._starts)
        kept = os.pread(account, account_bytes + 1, 0)
        if len(kept) == account_bytes and os.fstat(handle).st_size == size_bytes:
            self._arrived = list(struct.unpack(f"<{len(self._starts)}I", kept))
        else:
            self.forget()

    @property
    def kept_bytes(self) -> int:
        return sum(self._arrived)

    def forget(self) -> None:
        """Begin with nothing."""
        self._arrived = [0] * len(self._starts)
        for handle, size_bytes in ((self._account, 4 * len(self._starts)), (self._handle, self._size_bytes)):
            os.ftruncate(handle, 0)
            os.ftruncate(handle, size_bytes)

    def fetch(self, store: Store, key: str, transfer: Transfer, pool: Executor) -> str:
        """The sha256 of the whole file, read back from the disk behind the parts that arrive."""
        transfer.advance(self.kept_bytes)
        futures: list[Future[None]] = [
            pool.submit(self._fetch_part, number, store, key, transfer) for number in range(len(self._starts))
        ]
        sha256, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES))
        try:
            for future, start in zip(futures, self._starts, strict=True):
                future.result()
                stop = min(start + PART_BYTES, self._size_bytes)
                while count := os.preadv(self._handle, [buffer[: stop - start]], start):
                    sha256.update(buffer[:count])
                    start += count
        finally:
            for future in futures:
                future.cancel()
            wait(futures)  # they write to a handle that is closed next
        return sha256.hexdigest()

    def _fetch_part(self, number: int, store: Store, key: str, transfer: Transfer) -> None:
        transfer.advance(0)
        first = self._starts[number]
        stop = min(first + PART_BYTES, self._size_bytes)
        at = first + self._arrived[number]
        if at == stop:
            return
        for chunk in store.read_range(key, at, stop):
            _write(self._handle, chunk, at)
            at += len(chunk)
            self._arrived[number] = at - first
            os.pwrite(self._account, struct.pack("<I", at - first), 4 * number)
            transfer.advance(len(chunk))
        if at != stop:
            raise StoreError(f"{store.uri_of(key)}: {at} bytes long, not {self._size_bytes}; upload it again")


@contextmanager
def _held(path: Path) -> Iterator[int]:
    """The file, open and locked against other threads and processes; made when missing."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if is_still(handle, path):  # else its last holder finished or removed it in this moment
                yield handle
                return
        finally:
            os.close(handle)


def _write(handle: int, data: bytes, at: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(handle, rest, at)
        rest, at = rest[written:], at + written
