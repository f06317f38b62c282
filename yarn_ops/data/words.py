"""The words of a text as 64-bit numbers, and runs of them: without a loop over words or letters.

A word is a run of letters, digits and underscores, in lower case; of scripts without blanks (Chinese,
Japanese, Korean) it is one character. White space and punctuation do not count, so that a text that was
only wrapped or quoted otherwise has the same words. Equal on all machines.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from yarn_ops.data.tokenizer import pieces

Hashes = NDArray[np.uint64]

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # as in windows.py: odd, and far from any pattern
LONGEST_WORD_BYTES = 64
"""of longer words, letters so far apart count alike"""
NO_WORDS: Hashes = np.empty(0, np.uint64)

_LETTERS: Hashes = np.frombuffer(hashlib.shake_128(b"letters").digest(2048), "<u8")
_POWERS: Hashes = np.cumprod(np.full(LONGEST_WORD_BYTES, MULTIPLIER, np.uint64), dtype=np.uint64)
# ASCII letters, digits, underscore; whatever is not ASCII is taken for letters.
_IN_WORD = np.array([byte >= 0x80 or chr(byte).isalnum() or byte == ord("_") for byte in range(256)])
# First bytes of U+3000 to U+DFFF in UTF-8: kana, Han and Hangul.
_ALONE = np.array([0xE3 <= byte <= 0xED for byte in range(256)])


def words(text: str) -> Hashes:
    """A hash of each word of a text, in order: uint64 [words]."""
    # In pieces, which end between words: the arrays below take fifty bytes a letter.
    return np.concatenate([_words(text[start:stop]) for start, stop in pieces(text)])


def _words(text: str) -> Hashes:
    content = np.frombuffer(text.lower().encode(), np.uint8)
    places = np.flatnonzero(_IN_WORD[content])
    if not len(places):
        return NO_WORDS
    letters = content[places]
    begins = _ALONE[letters]
    begins[0] = True
    begins[1:] |= np.diff(places) > 1
    starts = np.flatnonzero(begins)
    within = np.arange(len(places)) - np.repeat(starts, np.diff(starts, append=len(places)))
    return _mixed(np.add.reduceat(_LETTERS[letters] * _POWERS[within % LONGEST_WORD_BYTES], starts))


def runs(hashes: Hashes, length: int) -> Hashes:
    """A hash of each run of `length` words: uint64 [words − length + 1], empty for fewer words."""
    count = len(hashes) - length + 1
    if count < 1:
        return NO_WORDS
    total = np.zeros(count, np.uint64)
    for offset in range(length):
        total = total * MULTIPLIER + hashes[offset : offset + count]
    return _mixed(total)


def _mixed(hashes: Hashes) -> Hashes:
    """The hashes with their bits mixed, so that their order is as good as random."""
    hashes = (hashes ^ (hashes >> np.uint64(32))) * MULTIPLIER
    return hashes ^ (hashes >> np.uint64(29))
