"""Contamination: passages that training documents share with documents of an evaluation.

Every run of 13 words has a hash, and of all hashes in every stretch as long as the passages looked for the
least one is kept (winnowing: Schleimer, Wilkerson and Aiken, 2003). So two documents that have such a
passage in common have a kept hash in common, ones that have no 13 words in common have none, and what is
kept is 2 of (passage - 11) runs.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from yarn_ops.data.words import Hashes, runs

RUN_WORDS = 13  # Brown et al. 2020 (GPT-3), appendix C
COMMON_DOCUMENTS = 10
"""a run in more documents than that is a licence, a heading or a phrase and does not count (GPT-3, ibid.)"""


def passages(hashes: Hashes, shared_words: int) -> Hashes:
    """The kept hashes (sorted, distinct) of a document, from its words' hashes in order. `shared_words`:
    length of the passages looked for."""
    found = runs(hashes, RUN_WORDS)
    least = found
    width = min(shared_words - RUN_WORDS + 1, len(found))
    done = 1
    while done < width:  # the least of 1, 2, 4, … in a row, up to `width`
        step = min(done, width - done)
        least = np.minimum(least[:-step], least[step:])
        done += step
    return np.unique(least)


def measured_hashes(measured: Iterable[Hashes]) -> Hashes:
    """The kept hashes (sorted) of the documents of evaluations, without those that many of them share."""
    hashes, documents = np.unique(np.concatenate([np.empty(0, np.uint64), *measured]), return_counts=True)
    return hashes[documents <= COMMON_DOCUMENTS]


def shares_passage(found: Hashes, measured: Hashes) -> bool:
    """Whether a document's hashes and those of `measured_hashes` have one in common."""
    if not len(measured):
        return False
    places = np.searchsorted(measured, found)
    places[places == len(measured)] = 0
    return bool((measured[places] == found).any())
