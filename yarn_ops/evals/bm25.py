"""BM25: how like passages are to a query (Robertson and Zaragoza, "BM25 and Beyond", 2009).

Written here because the package bm25s imports JAX where it is installed, and JAX then reserves three quarters
of a GPU's memory.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

K1, B = 1.5, 0.75
"""how soon a term's repetition counts no more, and how far a passage's length counts (section 3.4 there)"""


class Bm25:
    """Passages, each a sequence of terms: words, or token ids. One term at least."""

    def __init__(self, passages: Sequence[Sequence[Hashable]]) -> None:
        self._number = {term: number for number, term in enumerate(dict.fromkeys(_all(passages)))}
        lengths = np.array([len(passage) for passage in passages])
        rows = np.repeat(np.arange(len(passages)), lengths)
        terms = np.array([self._number[term] for term in _all(passages)])
        (self._rows, self._terms), counts = np.unique([rows, terms], axis=1, return_counts=True)
        holding = np.bincount(self._terms)  # passages that have each term
        rarity = np.log1p((len(passages) - holding + 0.5) / (holding + 0.5))
        saturation = K1 * (1 - B + B * lengths / lengths.mean())
        self._weights = rarity[self._terms] * counts / (counts + saturation[self._rows])
        self._passages = len(passages)

    def scores(self, query: Sequence[Hashable]) -> NDArray[np.float64]:
        """One of each passage, ≥ 0; terms that no passage has count nothing."""
        known = [self._number[term] for term in query if term in self._number]
        asked = np.bincount(known, minlength=len(self._number))
        weights = self._weights * asked[self._terms]
        return np.bincount(self._rows, weights, self._passages).astype(np.float64)

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes + self._terms.nbytes + self._weights.nbytes


def _all(passages: Sequence[Sequence[Hashable]]) -> list[Hashable]:
    return [term for passage in passages for term in passage]
