"""What a corpus is made of: how long its documents are, how many are there twice, how many are no text."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field

from yarn_ops.records import LengthShare

CONTEXT_MULTIPLES = (0.5, 1, 2, 4)
SEEN_CACHE_KIB = 32 * 1024


@dataclass
class Audit:
    """Counts over all documents of a corpus, in constant memory."""

    context_tokens: int
    """the base's, in whose multiples lengths are told"""
    documents: int = 0
    tokens: int = 0
    longest_tokens: int = 0
    duplicates: int = 0
    """documents dropped because an equal one came before"""
    empty: int = 0
    """documents dropped because they hold nothing but white space"""
    not_text: int = 0
    """files dropped because they are not UTF-8 text"""
    _longer: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._longer = {int(multiple * self.context_tokens): [0, 0] for multiple in CONTEXT_MULTIPLES}

    def add(self, tokens: int) -> None:
        """Count a document that is kept."""
        self.documents += 1
        self.tokens += tokens
        self.longest_tokens = max(self.longest_tokens, tokens)
        for threshold, counts in self._longer.items():
            if tokens > threshold:
                counts[0] += 1
                counts[1] += tokens

    def lengths(self) -> tuple[LengthShare, ...]:
        """Documents longer than ½, 1, 2 and 4 contexts, and their share of all tokens."""
        return tuple(
            LengthShare(
                longer_than_tokens=threshold, documents=documents, token_share=tokens / max(1, self.tokens)
            )
            for threshold, (documents, tokens) in self._longer.items()
        )


class SeenDigests:
    """A set of digests that spills to a temporary file, so that memory does not grow with the corpus."""

    def __init__(self) -> None:
        self._database = sqlite3.connect(
            ""
        )  # SQLite's private temporary database: in memory until it is large
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute(f"PRAGMA cache_size = -{SEEN_CACHE_KIB}")
        self._database.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, digest: bytes) -> bool:
        """Whether `digest` is new; from now on it is not."""
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1

    def close(self) -> None:
        self._database.close()
