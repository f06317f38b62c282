"""Files and directories that appear whole: written beside their final name, then renamed to it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
