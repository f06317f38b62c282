"""BM25 by its formula, term by term."""

from __future__ import annotations

import math

import pytest

from yarn_ops.evals.bm25 import K1, B, Bm25

PASSAGES = [["a", "b", "b", "c"], ["b", "d"], ["e", "e", "e", "e", "e", "a"]]


def by_hand(query: list[str], passage: list[str]) -> float:
    mean = sum(map(len, PASSAGES)) / len(PASSAGES)
    score = 0.0
    for term in query:
        holding = sum(term in other for other in PASSAGES)
        rarity = math.log(1 + (len(PASSAGES) - holding + 0.5) / (holding + 0.5))
        count = passage.count(term)
        score += rarity * count / (count + K1 * (1 - B + B * len(passage) / mean))
    return score


@pytest.mark.parametrize("query", [["a"], ["b", "e"], ["b", "b", "d"], ["unknown", "c"], ["unknown"], []])
def test_scores_are_the_formula_s(query: list[str]) -> None:
    found = Bm25(PASSAGES).scores(query)
    assert found.tolist() == pytest.approx([by_hand(query, passage) for passage in PASSAGES])
