"""What of a directory is not as its manifest says, on this machine or in a store: every byte is read."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from yarn_ops.atomic import disk_errors
from yarn_ops.digests import file_digest, tree_files
from yarn_ops.errors import Damaged
from yarn_ops.store import Store
from yarn_ops.store.keys import join
from yarn_ops.store.local import LocalStore
from yarn_ops.store.manifest import MANIFEST, FileEntry, Manifest
from yarn_ops.store.transfer import Transfer

PART_BYTES = 16 << 20
PARTS_AHEAD = 4
"""of one object that are read while one is hashed: with `transfer.THREADS` objects at once 256 MiB at most"""
SHOWN_DIGITS = 12


@dataclass(frozen=True)
class Fault:
    """One file that differs; `expected`, `found`: a sha256, a number of bytes, or that there is none."""

    name: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.name} ({self.expected} expected, {self.found} found)"


def faults_here(folder: Path, manifest: Manifest, transfer: Transfer, *, alone: bool = True) -> list[Fault]:
    """Files below `folder` that are missing or other; if `alone`, also those that the manifest lacks."""

    def check(item: tuple[str, FileEntry]) -> Fault | None:
        name, entry = item
        path = folder / name
        if not path.is_file():
            return _unlike(name, entry, None, "")
        size_bytes = path.stat().st_size
        same_size = size_bytes == entry.size_bytes
        return _unlike(name, entry, size_bytes, file_digest(path, transfer.advance) if same_size else "")

    with disk_errors(folder):
        found = list(filter(None, transfer.run(check, by_size(manifest))))
        return found + (_unlisted(manifest, tree_files(folder)) if alone else [])


def faults_stored(
    store: Store, prefix: str, manifest: Manifest, transfer: Transfer, *, alone: bool = True
) -> list[Fault]:
    """The same of objects below `prefix`, several parts of each read at once."""
    if isinstance(store, LocalStore):
        return faults_here(store.root / prefix, manifest, transfer, alone=alone)
    sizes = stored_sizes(store, prefix)

    def check(item: tuple[str, FileEntry]) -> Fault | None:
        name, entry = item
        sha256 = ""
        if sizes.get(name) == entry.size_bytes:
            sha256 = _stored_digest(store, join(prefix, name), entry.size_bytes, transfer, pool)
        return _unlike(name, entry, sizes.get(name), sha256)

    with ThreadPoolExecutor(PARTS_AHEAD) as pool:
        found = list(filter(None, transfer.run(check, by_size(manifest))))
    return found + (_unlisted(manifest, sizes) if alone else [])


def stored_sizes(store: Store, prefix: str) -> Mapping[str, int]:
    """{name: bytes} of every object below `prefix`."""
    below = f"{prefix}/" if prefix else ""
    return {info.key.removeprefix(below): info.size_bytes for info in store.list(below)}


def by_size(manifest: Manifest) -> list[tuple[str, FileEntry]]:
    """Largest first, so that no large file is left for the end."""
    return sorted(manifest.files.items(), key=lambda item: -item[1].size_bytes)


def refusal(where: object, faults: Iterable[Fault], remedy: str, set_aside: str | None = None) -> Damaged:
    """The error that names every fault."""
    told = ", ".join(str(fault) for fault in sorted(faults, key=lambda fault: fault.name))
    return Damaged(f"{where}: damaged: {told}; {remedy}", set_aside)


def _unlike(name: str, entry: FileEntry, size_bytes: int | None, sha256: str) -> Fault | None:
    if size_bytes is None:
        return Fault(name, f"{entry.size_bytes} bytes", "none")
    if size_bytes != entry.size_bytes:
        return Fault(name, f"{entry.size_bytes} bytes", str(size_bytes))
    if sha256 != entry.sha256:
        return Fault(name, f"sha256 {entry.sha256[:SHOWN_DIGITS]}", sha256[:SHOWN_DIGITS])
    return None


def _unlisted(manifest: Manifest, names: Iterable[str]) -> list[Fault]:
    extra = sorted(set(names) - set(manifest.files) - {MANIFEST})
    return [Fault(name, "no such file", "one") for name in extra]


def _stored_digest(store: Store, key: str, size_bytes: int, transfer: Transfer, pool: Executor) -> str:
    """sha256 of an object's bytes, its parts read in `pool`, a few ahead of what is hashed."""

    def read(start: int) -> bytes:
        transfer.advance(0)
        return b"".join(store.read_range(key, start, min(start + PART_BYTES, size_bytes)))

    sha256, parts = hashlib.sha256(), deque[Future[bytes]]()
    starts = iter(range(0, size_bytes, PART_BYTES))
    while True:
        parts.extend(pool.submit(read, start) for start in islice(starts, PARTS_AHEAD - len(parts)))
        if not parts:
            return sha256.hexdigest()
        data = parts.popleft().result()
        sha256.update(data)
        transfer.advance(len(data))
