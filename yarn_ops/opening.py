"""Opening files that strangers had a hand in: regular ones only, and only below the places asked for."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

MOST_JSON_ITEMS = 6_000_000
"""of which each may take 80 bytes or more"""
LARGE_BYTES = 64 << 20
MOST_EXPANSION = 1000
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
    facts = os.fstat(handle)
    fault = None
    if not stat.S_ISREG(facts.st_mode):
        fault = "not a regular file"
    elif facts.st_size > LARGE_BYTES and facts.st_size > MOST_EXPANSION * 512 * facts.st_blocks:
        fault = f"{facts.st_size:,} bytes of which hardly any are stored"
    if fault is not None:
        os.close(handle)
        raise OSError(errno.EINVAL, fault, str(place))
    return os.fdopen(handle, "rb")


def read_json(data: bytes) -> Any:
    """A JSON value; ValueError where it is none, or so many small parts that it would fill memory."""
    if _items(data) > MOST_JSON_ITEMS and _items(_without_strings(data)) > MOST_JSON_ITEMS:
        raise ValueError(f"more than {MOST_JSON_ITEMS:,} values")
    try:
        return json.loads(data.decode(), parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except ValueError as error:  # Python reads 4,300 digits at most
        raise (ValueError("a number of thousands of digits") if "digits" in str(error) else error) from None


def _items(data: bytes) -> int:
    return data.count(b",") + data.count(b"{") + data.count(b"[")


def _without_strings(data: bytes) -> bytes:
    import numpy as np

    signs = np.frombuffer(data.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    inside = np.bitwise_xor.accumulate(signs == ord('"'))
    return signs[~inside].tobytes()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
