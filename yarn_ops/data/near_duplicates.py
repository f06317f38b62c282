"""Near duplicates: documents that share most of their runs of words (MinHash signatures, banded).

Two documents' similarity is the share of runs of five words that both have among those that either has
(Jaccard); the share of equal places in their signatures estimates it. Who is like whom is asked of documents
that agree on a whole band of their signatures (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets,
section 3.4): a pair of similarity s agrees on one of 32 bands of 4 with a chance of 1 - (1 - s^4)^32, which
is above 0.999 from 0.67 on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from yarn_ops.data.words import Hashes, runs

RUN_WORDS = 5
PLACES = 128
BANDS = 32
ROWS = PLACES // BANDS
SEED = 1
CHUNK_PAIRS = 1 << 15
Signatures = NDArray[np.uint32]


def signature(hashes: Hashes) -> Signatures:
    """[PLACES] of a document from its words; one of fewer than RUN_WORDS counts as a single run."""
    from rensa import RMinHash

    tokens = np.unique(runs(hashes, min(RUN_WORDS, max(1, len(hashes)))))
    rows = RMinHash.digest_matrix_from_flat_token_hashes(tokens, [0, len(tokens)], PLACES, SEED).to_rows()
    return np.array(rows[0], np.uint32)


def first_near_duplicates(signatures: Signatures, similarity: float) -> NDArray[np.int64]:
    """For each document the first of its group of near duplicates, itself where it has none: int64
    [documents]. Groups are connected components of pairs whose estimated similarity is at least `similarity`.

    signatures: [documents, PLACES], may be memory-mapped. Time is documents × log(documents), memory 24
    bytes a document besides the signatures.
    """
    first = np.arange(len(signatures))
    for band in range(BANDS):
        leaders, members = _candidate_pairs(signatures[:, band * ROWS : (band + 1) * ROWS])
        for start in range(0, len(leaders), CHUNK_PAIRS):
            pairs = leaders[start : start + CHUNK_PAIRS], members[start : start + CHUNK_PAIRS]
            alike = (signatures[pairs[0]] == signatures[pairs[1]]).mean(axis=1) >= similarity
            for one, other in zip(pairs[0][alike], pairs[1][alike], strict=True):
                roots = sorted((_root(first, int(one)), _root(first, int(other))))
                first[roots[1]] = roots[0]
    return np.array([_root(first, number) for number in range(len(first))], np.int64)


def _candidate_pairs(rows: Signatures) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Candidate pairs: of the documents that agree on a band, each with the first and with the one before
    it."""
    keys = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.dtype.itemsize * ROWS))).ravel()
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    leader = np.repeat(order[starts], np.diff(starts, append=len(order)))
    later = np.flatnonzero(same) + 1
    beyond = later[leader[later] != order[later - 1]]
    return (
        np.concatenate([leader[later], order[beyond - 1]]),
        np.concatenate([order[later], order[beyond]]),
    )


def _root(first: NDArray[np.int64], number: int) -> int:
    while first[number] != number:
        first[number] = first[first[number]]
        number = int(first[number])
    return number
