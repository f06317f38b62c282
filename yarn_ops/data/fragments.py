"""The result of a unit: a directory with its tokens, and a row for every document or part of one.

    tokens.bin       token ids of its documents, without those that are left out here already
    fragments.bin    a row (`FRAGMENT`) a document, or a part of one where it is long
    signatures.bin   uint32 [fragments, PLACES]: see near_duplicates.py; when near duplicates are looked for
    passages.bin     uint64, `passages` of each fragment: see contamination.py; when passages are looked for

Depends on the unit and its options alone, never on the rest of the corpus: whatever needs that (equal
documents in two units, the side a document is on) is decided when units are composed.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, closing
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yarn_ops.data.contamination import passages
from yarn_ops.data.documents import Fragment, read_fragments
from yarn_ops.data.files import Files, ReadAhead, SourceFile
from yarn_ops.data.formats import NotText
from yarn_ops.data.layout import TokenWriter
from yarn_ops.data.near_duplicates import signature
from yarn_ops.data.tokenizer import Tokenizer, pieces
from yarn_ops.data.units import Unit, UnitOptions
from yarn_ops.data.words import NO_WORDS, Hashes, words

TOKENS = "tokens.bin"
FRAGMENTS = "fragments.bin"
SIGNATURES = "signatures.bin"
PASSAGES = "passages.bin"
LANGUAGE_CHARS = 4096
"""from the middle of a text: what its language is detected from"""


class Fate(IntEnum):
    """Whether a document is kept, or why it is left out: the first reason that holds, in this order."""

    KEPT = 0
    NO_DOCUMENT = 1
    """a blank line between rows"""
    EMPTY = 2
    """nothing but white space"""
    NO_TEXT = 3
    """a row that lacks the text field, or has null there"""
    NOT_TEXT = 4
    """a file that is not UTF-8 text"""
    LANGUAGE = 5
    """in none of the languages asked for"""
    LENGTH = 6
    """shorter or longer than asked for"""
    DUPLICATE = 7
    """equal to one before it"""
    NEAR_DUPLICATE = 8
    CONTAMINATED = 9
    """has a passage in common with one that is measured with"""


FRAGMENT = np.dtype(
    [
        ("file", "<u4"),
        ("first", "?"),
        ("row", "?"),
        ("fate", "u1"),
        ("tokens", "<u8"),
        ("passages", "<u4"),
        ("digest", "V32"),
    ]
)
"""number of the file among the unit's; whether the document begins here, and is one of the file's rows; its
fate as far as it is known here; what it has in tokens.bin and in passages.bin; sha256 of its text. Equal
documents of a unit: only the first is in tokens.bin."""
Fragments = NDArray[np.void]


def make_unit(unit: Unit, options: UnitOptions, tokenizer: Tokenizer, files: Files, out: Path) -> None:
    """Read, tokenise and describe a unit's documents into the new directory `out`.

    Memory is bounded by the longest row, or by a fragment of a text (see text.py). DataError when a source is
    damaged.
    """
    out.mkdir()
    with _Maker(unit, options, tokenizer, out) as maker, closing(ReadAhead(files, unit.sources)) as ahead:
        for number, source in enumerate(unit.sources):
            maker.read(number, source, ahead)


class _Maker:
    """Writes the files of a unit's directory."""

    def __init__(self, unit: Unit, options: UnitOptions, tokenizer: Tokenizer, out: Path) -> None:
        self._unit, self._options, self._tokenizer = unit, options, tokenizer
        self._fates: dict[bytes, Fate] = {}
        """of whole documents, by their digests"""
        self._fate = Fate.KEPT
        with ExitStack() as stack:
            self._tokens = stack.enter_context(TokenWriter(out / TOKENS, tokenizer.dtype))
            self._rows = stack.enter_context((out / FRAGMENTS).open("wb"))
            if options.signatures:
                self._signatures = stack.enter_context((out / SIGNATURES).open("wb"))
            if options.shared_words is not None:
                self._passages = stack.enter_context((out / PASSAGES).open("wb"))
            self._open = stack.pop_all()

    def __enter__(self) -> _Maker:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def read(self, number: int, source: SourceFile, files: Files) -> None:
        """Add the documents of the unit's source of that number."""
        begun = self._unit.start > 0
        try:
            options, render = self._options, self._tokenizer.render
            for fragment in read_fragments(self._unit, source, files, options.text_field, render):
                self._add(number, fragment)
                begun = True
        except NotText:
            # Of a long text other parts may be in tokens.bin: they are left out with this one.
            self._write(number, not begun, False, Fate.NOT_TEXT)

    def _add(self, number: int, fragment: Fragment) -> None:
        text = fragment.text
        if text is None:
            fate = Fate.NO_TEXT if fragment.kind == "no text" else Fate.NO_DOCUMENT
            self._write(number, True, True, fate)
            return
        whole, blank = fragment.first and fragment.last, not text or text.isspace()
        digest = hashlib.sha256(text.encode()).digest()
        if fragment.first:
            self._fate = Fate.KEPT if blank else self._fate_of(text, digest, whole)
        if self._fate is not Fate.KEPT:
            self._write(number, fragment.first, fragment.row, self._fate, digest)
        elif blank and whole:
            self._write(number, True, fragment.row, Fate.EMPTY, digest)
        else:
            tokens = self._tokenise(text, fragment)
            found = words(text) if self._options.signatures or self._options.shared_words else NO_WORDS
            fate = Fate.EMPTY if blank else Fate.KEPT
            self._write(number, fragment.first, fragment.row, fate, digest, tokens, found)

    def _fate_of(self, text: str, digest: bytes, whole: bool) -> Fate:
        """A document's fate, decided by its first fragment."""
        if whole and digest in self._fates:
            return self._fates[digest] or Fate.DUPLICATE
        wanted = self._options.languages
        fate = Fate.LANGUAGE if wanted and language_of(text) not in wanted else Fate.KEPT
        if whole:
            self._fates[digest] = fate
        return fate

    def _tokenise(self, text: str, fragment: Fragment) -> int:
        before, tokenizer, chat = self._tokens.tokens, self._tokenizer, fragment.kind == "chat"
        if fragment.first and not (chat and tokenizer.begins(text)):
            self._tokens.append(tokenizer.prefix)
        for start, stop in pieces(text):
            piece = text[start:stop]
            self._tokens.append(tokenizer.encode_chat(piece) if chat else tokenizer.encode([piece])[0])
        if fragment.last and not (chat and tokenizer.ends(text)):
            self._tokens.append(tokenizer.suffix)
        return self._tokens.tokens - before

    def _write(
        self,
        number: int,
        first: bool,
        row: bool,
        fate: Fate,
        digest: bytes = bytes(32),
        tokens: int = 0,
        found: Hashes = NO_WORDS,
    ) -> None:
        kept = NO_WORDS
        if self._options.signatures:
            # A text without words is like nothing but its equal.
            self._signatures.write(signature(found if len(found) else np.frombuffer(digest, "<u8")).tobytes())
        if self._options.shared_words is not None:
            kept = passages(found, self._options.shared_words)
            self._passages.write(kept.tobytes())
        self._rows.write(np.array((number, first, row, fate, tokens, len(kept), digest), FRAGMENT).tobytes())


def language_of(text: str) -> str:
    """ISO 639-1 code of the most likely of 97 languages, by the text's middle."""
    from py3langid import classify  # its model is read on import: a second

    start = max(0, len(text) - LANGUAGE_CHARS) // 2
    code: str = classify(text[start : start + LANGUAGE_CHARS])[0]
    return code
