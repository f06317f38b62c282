"""What RULER's tasks take from the documents: running text, words, passages."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from numpy.random import Generator

from yarn_ops.data.haystack import Haystack
from yarn_ops.errors import DataError

SENTENCE = re.compile(r"(?<=[.!?;:])\s+")
WORD = re.compile(r"[A-Za-z]{3,10}")
PASSAGE_WORDS = (12, 90)
LEAST_WORDS, LEAST_PASSAGES = 60, 4


@dataclass(frozen=True)
class Prompt:
    """A whole prompt, answer prefix included, and what the answer has to contain."""

    text: str
    references: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Texts:
    """running: every word of the documents in order; words: distinct ones, most frequent first."""

    running: tuple[str, ...]
    words: tuple[str, ...]
    passages: tuple[str, ...]

    @staticmethod
    def of(haystack: Haystack) -> Texts:
        """DataError when the documents have too few different words or passages."""
        return _texts(haystack)

    def some_words(self, rng: Generator, count: int) -> list[str]:
        """Different words; pairs of them, hyphenated, where there are not enough."""
        if count <= len(self.words):
            return [self.words[index] for index in rng.choice(len(self.words), count, replace=False)]
        pairs: dict[str, None] = {}
        while len(pairs) < count:
            one, other = rng.choice(len(self.words), 2)
            pairs[f"{self.words[one]}-{self.words[other]}"] = None
        return list(pairs)

    def sentences(self, rng: Generator, words: int) -> list[str]:
        """`words` words of running text from a random place, repeated if the documents are short."""
        start = int(rng.integers(0, len(self.running)))
        some = [self.running[(start + step) % len(self.running)] for step in range(words)]
        return SENTENCE.split(" ".join(some))


@lru_cache(maxsize=2)
def _texts(haystack: Haystack) -> Texts:
    running = tuple(word for text in haystack.texts for word in text.split())
    counts = Counter(word.lower() for text in haystack.texts for word in WORD.findall(text))
    words = tuple(word for word, _ in counts.most_common())
    passages = tuple(
        dict.fromkeys(
            " ".join(passage.split())
            for text in haystack.texts
            for passage in re.split(r"\n\s*\n", text)
            if PASSAGE_WORDS[0] <= len(passage.split()) <= PASSAGE_WORDS[1]
            and len(WORD.findall(passage)) >= 8
        )
    )
    if len(words) < LEAST_WORDS:
        raise DataError(f"documents: only {len(words)} different words; give more documents")
    return Texts(running, words, passages)
