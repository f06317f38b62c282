"""Long texts in fragments that several processes can read apart: the cuts depend on the text alone.

A text of more than FRAGMENT_BYTES is cut near every multiple of them, in front of the first blank or line
break between letters or digits: there no tokenizer in use joins what is on both sides.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import BinaryIO

FRAGMENT_BYTES = 8 << 20
CUT_CHARS = 4096
CUT_BYTES = 4 * CUT_CHARS
# No pre-tokenizer in use (GPT-2's, Llama 3's, Qwen's, GPT-4o's) joins a letter or digit to the single blank
# or line break after it, so to cut in front of one leaves the tokens of the whole text as they were.
CUT = re.compile(r"(?<=[^\W_])[ \n](?=[^\W_])")


def fragments(file: BinaryIO, size_bytes: int, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The fragments of a UTF-8 text of `size_bytes` whose nominal place is in [start, stop), in order.

    `start` and `stop` are multiples of FRAGMENT_BYTES, or the text's end. Each call yields at least one.
    """
    file.seek(start)
    ahead = file.read(CUT_BYTES)
    if start:
        ahead = ahead[_cut(ahead) :]
    for _ in range(start, min(size_bytes, stop or size_bytes), FRAGMENT_BYTES):
        body = ahead + file.read(FRAGMENT_BYTES - CUT_BYTES)
        ahead = file.read(CUT_BYTES)
        cut = _cut(ahead)
        yield body + ahead[:cut]
        ahead = ahead[cut:]


def fragments_of(text: bytes) -> list[bytes]:
    """The fragments of a text in memory."""
    return list(fragments(BytesIO(text), len(text))) if len(text) > FRAGMENT_BYTES else [text]


def text_digest(fragment_digests: Sequence[bytes]) -> bytes:
    """Digest of a text from its fragments' sha256: that of the only one, else sha256 over all of them."""
    first, *more = fragment_digests
    return hashlib.sha256(b"".join(fragment_digests)).digest() if more else first


def _cut(window: bytes) -> int:
    """Where the text is cut in the bytes from a nominal place on; at a letter's first byte in any case."""
    letter = next((at for at, byte in enumerate(window[:4]) if byte & 0xC0 != 0x80), 0)
    text = window[letter:].decode("utf-8", "ignore")
    place = CUT.search(text)
    return letter + len(text[: place.start()].encode()) if place else letter
