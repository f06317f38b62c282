"""The values in a JSON text, one after the other, each as its bytes: of any number, in bounded memory."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 1 << 20
BLANK = b" \t\r\n"


class TooLong(ValueError):
    """A value of more bytes than are read."""


def json_values(file: BinaryIO, most_bytes: int) -> Iterator[bytes]:
    """The items of the array that the text is, or the objects and arrays that follow each other in it.

    What is between their ends is not parsed here. ValueError where the text ends within a value, where
    something follows the array, or an item is missing; TooLong where a value has more than `most_bytes`.
    """
    splitter = _Splitter()
    while chunk := file.read(CHUNK_BYTES):
        while chunk.endswith(b"\\") and (more := file.read(1)):  # a sign and its backslash stay together
            chunk += more
        yield from splitter.split(chunk)
        if len(splitter.pending) > most_bytes:
            raise TooLong
    splitter.finish()


class _Splitter:
    def __init__(self) -> None:
        self.pending = b""
        """of the value that goes on"""
        self._begun = self._array = self._ended = self._inside = False
        self._depth = self._items = 0

    def split(self, chunk: bytes) -> Iterator[bytes]:
        """The values that end in what comes next of the text."""
        if not self._begun:
            chunk = chunk.removeprefix(BOM_UTF8).lstrip(BLANK)
            if not chunk:
                return
            self._begun, self._array = True, chunk.startswith(b"[")
            if self._array:
                chunk, self._depth = chunk[1:], 1
        start = 0
        for end in self._ends(chunk).tolist():
            value = (self.pending + chunk[start : end + (not self._array)]).strip(BLANK)
            self.pending, start = b"", end + 1
            closes = self._array and chunk[end] == ord("]")
            if self._ended:
                raise ValueError("something follows the array")
            self._ended = closes
            if value:
                self._items += 1
                yield value
            elif not closes or self._items:
                raise ValueError("an item is missing between two commas")
        self.pending += chunk[start:]
        if self._ended and self.pending.strip(BLANK):
            raise ValueError("something follows the array")

    def _ends(self, chunk: bytes) -> NDArray[np.int64]:
        """Where values end: behind their last sign in an array, else at it."""
        signs = np.frombuffer(chunk.replace(b"\\\\", b"__").replace(b'\\"', b"__"), np.uint8)
        inside = np.bitwise_xor.accumulate(signs == ord('"')) ^ self._inside
        opens = ((signs == ord("{")) | (signs == ord("["))) & ~inside
        closes = ((signs == ord("}")) | (signs == ord("]"))) & ~inside
        depths = self._depth + np.cumsum(opens.astype(np.int64) - closes)
        ends = closes & (depths == 0)
        if self._array:
            ends |= (signs == ord(",")) & ~inside & (depths == 1)
        if len(signs):
            self._inside, self._depth = bool(inside[-1]), int(depths[-1])
        return np.flatnonzero(ends)

    def finish(self) -> None:
        """ValueError where the text may not end here."""
        if (self._array and not self._ended) or self.pending.strip(BLANK):
            raise ValueError("the file ends within a value")
