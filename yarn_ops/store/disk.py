"""The local disk, as object storage needs it: one-line errors, whole files, durable renames."""

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
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
NOT_A_PLACE = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


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


def _explain(error: OSError) -> str:
    if error.errno in FULL:
        return "no space left on the disk; free some and run again"
    if error.errno in FORBIDDEN:
        return "permission denied; check owner and mode, or choose another place"
    if error.errno == errno.ENOENT:
        return "no such file"
    if error.errno in NOT_A_PLACE:
        return "a file stands where a directory is needed, or the reverse; choose another place"
    return error.strerror or str(error)
