"""Opening files that strangers had a hand in: regular ones only, and only below the places asked for."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

FOLDER = os.O_DIRECTORY | getattr(os, "O_PATH", os.O_RDONLY)


def place_below(path: Path, roots: Iterable[Path]) -> Path:
    """Where a path's links end. LinkLeaves where that is below none of `roots`, which hold no links; OSError.

    A hard link is the file itself and cannot be told from it.
    """
    place = Path(os.path.realpath(path, strict=True))
    if not any(place.is_relative_to(root) for root in roots):
        raise LinkLeaves(path, place)
    return place


class LinkLeaves(Exception):
    """A path whose links end outside of the places asked for."""

    def __init__(self, path: Path, place: Path) -> None:
        super().__init__(f"{path}: a link to {place}")
        self.path, self.place = path, place


def open_regular(place: Path) -> BinaryIO:
    """A regular file, none of whose folders is a link: what `place_below` found, even if changed meanwhile.

    OSError where it is anything else; a FIFO or a device is never waited for.
    """
    folder = os.open("/", FOLDER)
    try:
        for part in place.parts[1:-1]:
            inner = os.open(part, FOLDER | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        handle = os.open(place.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(place))
    return os.fdopen(handle, "rb")
