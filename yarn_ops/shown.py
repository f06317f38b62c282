"""What may be shown: text without secrets and without what commands a terminal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from yarn_ops.secrecy import without_secrets

_DIRECTIONS = re.compile("[\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f]")
"""marks that turn the order of what is shown around, or end its line"""


def printable(text: str) -> str:
    """A text in which every sign that would command a terminal, or turn a line around, is �; lines stay."""
    if text.isprintable():
        return _DIRECTIONS.sub("�", text)
    return "".join(
        "�" if unicodedata.category(sign) == "Cc" and sign not in "\n\t" else sign
        for sign in _DIRECTIONS.sub("�", text)
    )


def one_line(text: str) -> str:
    """A text on one line, printable and without secrets."""
    return printable(" ".join(without_secrets(text).split()))


def markdown_table(rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Heads, then rows; what stands behind the first `words` columns is figures, to the right."""
    heads, *lines = rows
    rule = [*["---"] * words, *["---:"] * (len(heads) - words)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *lines))


def counted(count: int, noun: str) -> str:
    """1 file, 2,345 files, 3 processes: so many of what the noun says."""
    if count == 1:
        return f"1 {noun}"
    stem, ending = (noun[:-1], "ies") if noun.endswith("y") else (noun, "es" if noun.endswith("s") else "s")
    return f"{count:,} {stem}{ending}"


def size(count: int) -> str:
    """12.0 KiB, 3.5 MiB, 14.96 GiB."""
    if count < 2**20:
        return f"{count / 2**10:.1f} KiB"
    return f"{count / 2**20:.1f} MiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"


def duration(seconds: float) -> str:
    """61.5 s, 17.3 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
