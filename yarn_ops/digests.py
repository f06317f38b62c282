"""Digests: of JSON values in a canonical form, of files, of directory trees."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

CHUNK_BYTES = 1 << 20


def canonical_json(value: Any) -> str:
    """One text for one JSON value: keys sorted, no spaces, NaN and infinity refused (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest_of(value: Any) -> str:
    """sha256 (64 hex digits) of a JSON value's canonical text."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """sha256 of a file's bytes, in constant memory; `on_bytes` hears of every chunk's length."""
    with path.open("rb") as file:
        return stream_digest(file, on_bytes)


def stream_digest(file: BinaryIO, on_bytes: Callable[[int], None] | None = None) -> str:
    """The same of what is left of an open file."""
    sha = hashlib.sha256()
    while chunk := file.read(CHUNK_BYTES):
        sha.update(chunk)
        if on_bytes is not None:
            on_bytes(len(chunk))
    return sha.hexdigest()


def tree_files(root: Path) -> dict[str, Path]:
    """Every regular file below `root` by its POSIX path relative to it, sorted. Links are followed."""
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return dict(sorted(found.items()))


def tree_digest(files: Mapping[str, str]) -> str:
    """Digest of a tree from {relative path: sha256 of the file}: names and contents, nothing else."""
    return digest_of(dict(files))


def digest_tree(root: Path, threads: int = 4) -> dict[str, str]:
    """{relative path: sha256} of every file below `root`."""
    files = tree_files(root)
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(files, pool.map(file_digest, files.values()), strict=True))
