"""Use of the documents themselves: to label a passage as many others are, to find one among those most like
it, to predict what stands far back.

- `many-shot`: runs of four documents, each labelled with its document's number; new runs are to be labelled
  (as in Bertsch et al., In-Context Learning with Long-Context Models, 2024).
- `hard-negative`: a passage among those of all documents that BM25 finds most like it, each with a reference;
  its own is asked for by its beginning.
- `far-passage`: what the removal of one passage, far back, costs the tokens that repeat it. Which passage is
  decided by the text alone: the one that most of the keys of `long-perplexity` go back to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from yarn_ops.data.haystack import Haystack, Ids
from yarn_ops.errors import DataError
from yarn_ops.evals.bm25 import Bm25
from yarn_ops.evals.cells import Cell, ModelUnderTest, Size
from yarn_ops.evals.examples import Example, Needle, Tokens, require_room
from yarn_ops.evals.names import FAR_PASSAGE
from yarn_ops.evals.scoring import mean_score
from yarn_ops.evals.tasks.context import last_occurrences
from yarn_ops.evals.tasks.needles import value_of
from yarn_ops.evals.tasks.pairs import asked_where
from yarn_ops.scores import Score

LABELS = 4
"""documents that are told apart, so guessing is right in a quarter of the cases"""
RUN_TOKENS = 16
"""of a labelled run"""
LEAST_DOCUMENT = 16 * RUN_TOKENS
LABEL = "\n^ group {label}\n"
PASSAGE_TOKENS, BEGINNING_TOKENS = 48, 12
REFERENCE = "\n(on file as {v})\n"
REFERENCE_ASKED = ("\nOn file: «", "…» as")
NEIGHBOURS = 4
"""alike passages that are asked for in one text"""
REMOVED_TOKENS = 64
TARGETS = 0.25
"""of the window, at its end: tokens there may repeat what stands in its first half"""


def many_shot(haystack: Haystack, context_tokens: int, parts: int, texts: int, seed: int) -> list[Example]:
    """DataError without four documents that are long enough."""
    rng = default_rng([seed, context_tokens, *b"many-shot"])
    long = [number for number, ids in enumerate(haystack.documents) if len(ids) >= LEAST_DOCUMENT]
    if len(long) < LABELS:
        raise DataError(
            f"many-shot: {len(long)} documents of {LEAST_DOCUMENT} tokens, and it tells {LABELS} apart; "
            "give more documents"
        )
    return [_many_shot(haystack, rng.choice(long, LABELS, False), context_tokens, rng) for _ in range(texts)]


def _many_shot(haystack: Haystack, chosen: NDArray[np.int64], context_tokens: int, rng: Generator) -> Example:
    """The last eighth of a document is kept for the questions."""
    before, after = LABEL.split("{label}")
    prompt, close = tuple(haystack.encode(before.rstrip())), tuple(haystack.encode(after))
    labels = [tuple(haystack.encode(f" {label}")) for label in rng.permutation(np.arange(1, 1 + LABELS))]

    def labelled(number: int, first: float, last: float) -> Needle:
        ids = haystack.documents[chosen[number]]
        start = int(rng.integers(int(first * len(ids)), int(last * len(ids)) - RUN_TOKENS + 1))
        run = (*ids[start : start + RUN_TOKENS].tolist(), *prompt)
        return Needle((*run, *labels[number], *close), run, labels[number])

    asked = [labelled(number, 7 / 8, 1) for number in range(LABELS) for _ in range(2)]
    room = context_tokens - max(needle.asking for needle in asked) - len(haystack.prefix)
    shots: list[Tokens] = []
    taken = 0
    while taken + len(shot := labelled(len(shots) % LABELS, 0, 7 / 8).plant) <= room:
        shots.append(shot)
        taken += len(shot)
    require_room("many-shot", len(shots), 4 * LABELS, context_tokens)
    mixed = [token for at in rng.permutation(len(shots)).tolist() for token in shots[at]]
    context = np.asarray([*haystack.prefix, *mixed], dtype=np.int64)
    return Example(
        context,
        tuple(
            needle.question(None, choices=tuple(label for label in labels if label != needle.answer))
            for needle in asked
        ),
    )


def hard_negatives(
    haystack: Haystack, context_tokens: int, parts: int, texts: int, seed: int
) -> list[Example]:
    """Passages whose beginnings differ, the most like first chosen, in any order."""
    rng = default_rng([seed, context_tokens, *b"hard-negative"])
    passages, index = _indexed(haystack)
    return [_alike(haystack, passages, index, context_tokens, parts, rng) for _ in range(texts)]


def _alike(
    haystack: Haystack, passages: Sequence[Tokens], index: Bm25, context_tokens: int, parts: int,
    rng: Generator,
) -> Example:  # fmt: skip
    encode, gold = haystack.encode, int(rng.integers(len(passages)))
    likeness = index.scores(passages[gold])
    likeness[gold] = np.inf
    head, tail = (tuple(encode(text)) for text in REFERENCE_ASKED)
    before, after = REFERENCE.split("{v}")
    most = context_tokens // PASSAGE_TOKENS
    alike = [passages[at] for at in np.argsort(-likeness, kind="stable")[:most].tolist()]
    values = [tuple(encode(f" {value_of(rng)}")) for _ in alike]
    needles = [
        Needle(
            (*passage, *encode(before.rstrip()), *value, *encode(after)),
            (*head, *passage[:BEGINNING_TOKENS], *tail),
            value,
        )
        for passage, value in zip(alike, values, strict=True)
    ]
    room = context_tokens - max(needle.asking for needle in needles[:NEIGHBOURS]) - len(haystack.prefix)
    fit = int(np.searchsorted(np.cumsum([len(needle.plant) for needle in needles]), room, side="right"))
    require_room("hard-negative", fit, 2 * NEIGHBOURS, context_tokens)
    room -= sum(len(needle.plant) for needle in needles[:fit])
    filler = haystack.run(rng, len(haystack.prefix) + room)
    order = rng.permutation(fit).tolist()
    starts = dict(
        zip(order, np.cumsum([len(filler), *(len(needles[at].plant) for at in order)]).tolist(), strict=False)
    )
    context = np.concatenate([filler, *(np.asarray(needles[at].plant, dtype=np.int64) for at in order)])
    asked = needles[:NEIGHBOURS]
    where = [starts[at] for at in range(NEIGHBOURS)]
    return Example(context, asked_where(asked, where, len(context), parts))


@lru_cache(maxsize=1)
def _indexed(haystack: Haystack) -> tuple[list[Tokens], Bm25]:
    """Passages of the documents with different beginnings, and their index."""
    ids = haystack.ids
    found: dict[Tokens, Tokens] = {}
    for start in range(0, len(ids) - PASSAGE_TOKENS + 1, PASSAGE_TOKENS):
        passage = tuple(ids[start : start + PASSAGE_TOKENS].tolist())
        found.setdefault(passage[:BEGINNING_TOKENS], passage)
    passages = list(found.values())
    if len(passages) < 2 * NEIGHBOURS:
        raise DataError(f"hard-negative: documents of {len(passages)} passages; give more documents")
    return passages, Bm25(passages)


def far_cell(haystack: Haystack, size: Size, length: int, lengths: Sequence[int], seed: int) -> Cell:
    """What far passages are worth at one length."""
    windows = haystack.windows(size.windows, length + 1, seed)

    def measure(under_test: ModelUnderTest) -> tuple[Score, ...]:
        passages = [far_passage(window[1:]) for window in windows]
        rows = [row for row, passage in enumerate(passages) if passage]
        if not rows:
            return ()
        scored, cut = round(TARGETS * length), windows.copy()
        for row, (start, _) in enumerate(filter(None, passages)):
            removed = slice(1 + start, 1 + start + REMOVED_TOKENS)
            cut[rows[row], removed] = windows[(rows[row] + 1) % len(windows), removed]
        whole, without = (under_test.token_losses(some[rows], scored) for some in (windows, cut))
        keys = [passage[1][-scored:] for passage in passages if passage]
        worth = [float(row[mask].mean()) for row, mask in zip(without - whole, keys, strict=True)]
        return (mean_score(FAR_PASSAGE, length, worth, seed),)

    asks = (haystack.digest, len(windows))
    return Cell.whole("far-passage", length, asks, 2 * size.windows * length, measure)


def far_passage(ids: Ids) -> tuple[int, NDArray[np.bool_]] | None:
    """Where the passage starts in the first half that most tokens of the last quarter go back to, and which
    these are: ends of runs of three whose last occurrence lies in it. None where no token does."""
    tokens, source = len(ids), last_occurrences(ids)
    first_target = tokens - round(TARGETS * tokens)
    source[:first_target] = -1
    source[source >= tokens // 2 - REMOVED_TOKENS] = -1
    counted = Counter((source[source >= 0] // REMOVED_TOKENS).tolist())
    if not counted:
        return None
    block = max(counted, key=lambda one: (counted[one], -one))
    return block * REMOVED_TOKENS, (source >= 0) & (source // REMOVED_TOKENS == block)
