"""The local disk: files and directories that appear whole, durable renames, errors in one line."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yarn_ops.errors import StoreError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EACCES, errno.EPERM}
NOT_A_PLACE = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


@contextmanager
def atomic_write(
    path: Path, *, durable: bool = False, replacing: bool = False, draft: Path | None = None
) -> Iterator[Path]:
    """Where to write a file or a directory that becomes `path` when the block ends, and is gone if it fails.

    durable: contents and name survive a power cut. replacing: also take the place of a directory that has
    files (a file is always replaced); without it that is an OSError. draft: where to write, on the same
    file system; else a hidden sibling, which one writer at a time may use.
    """
    draft = path.with_name(f".{path.name}.partial") if draft is None else draft
    _remove(draft)
    draft.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield draft
        path.parent.mkdir(parents=True, exist_ok=True)
        if durable:
            _sync(draft)
        if replacing:
            _remove(path)
        draft.replace(path)
        if durable:
            sync_directory(path.parent)
    finally:
        _remove(draft)


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(where: object) -> Iterator[None]:
    """Turns an OSError within the block into a StoreError that names `where`, cause and remedy."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{where}: {_explain(error)}") from error


@contextmanager
def room_in(where: object) -> Iterator[None]:
    """Turns only a full disk, met within the block, into a StoreError that names `where`."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StoreError(f"{where}: {_explain(error)}") from error


def write_durably(path: Path, data: bytes) -> None:
    """Write a file that survives a power cut."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def put_away(folder: Path) -> None:
    """Remove a directory: its name is free at once; a process that has its files open keeps them."""
    away = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    with disk_errors(folder):
        folder.rename(away)
    shutil.rmtree(away, ignore_errors=True)


def is_still(handle: int, path: Path) -> bool:
    """Whether the open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _sync(path: Path) -> None:
    if path.is_dir():
        for below in path.iterdir():
            _sync(below)
        sync_directory(path)
    else:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _explain(error: OSError) -> str:
    if error.errno in FULL:
        return "no space left on the disk; free some and run again"
    if error.errno in FORBIDDEN:
        return "permission denied; check owner and mode, or choose another place"
    if error.errno == errno.EROFS:
        return "the file system is read-only; mount it to write, or choose another place"
    if error.errno == errno.ENOENT:
        return "no such file"
    if error.errno in NOT_A_PLACE:
        return "a file stands where a directory is needed, or the reverse; choose another place"
    return error.strerror or str(error)
