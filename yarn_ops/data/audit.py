"""Statistics of a prepared corpus: how long its documents are, how many were left out and why."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from yarn_ops.data.fragments import Fate
from yarn_ops.records import Dropped, LengthShare
from yarn_ops.shown import counted

CONTEXT_MULTIPLES = (0.5, 1, 2, 4)
REASONS = {
    "duplicates": (Fate.DUPLICATE, "duplicate", ""),
    "near_duplicates": (Fate.NEAR_DUPLICATE, "near duplicate", ""),
    "contaminated": (Fate.CONTAMINATED, "", "with passages of measured documents"),
    "language": (Fate.LANGUAGE, "", "in other languages"),
    "length": (Fate.LENGTH, "", "too short or long"),
    "empty": (Fate.EMPTY, "", "empty"),
    "no_text": (Fate.NO_TEXT, "row", "without text"),
    "not_text": (Fate.NOT_TEXT, "file", "not UTF-8 text"),
}
"""why documents are left out: field of Dropped, fate, what is counted, what it is"""


def length_shares(tokens: NDArray[np.int64], context_tokens: int) -> tuple[LengthShare, ...]:
    """For ½, 1, 2 and 4 contexts: how many documents are longer, and their share of all tokens.

    `tokens`: of each document.
    """
    found = []
    for multiple in CONTEXT_MULTIPLES:
        threshold = int(multiple * context_tokens)
        longer = tokens[tokens > threshold]
        found.append(
            LengthShare(
                longer_than_tokens=threshold,
                documents=len(longer),
                token_share=int(longer.sum()) / max(1, int(tokens.sum())),
            )
        )
    return tuple(found)


def dropped(fates: NDArray[np.uint8]) -> Dropped:
    """How many documents were left out, by reason; `fates`: a Fate of each."""
    counts = np.bincount(fates, minlength=len(Fate)).tolist()
    return Dropped(**{field: counts[fate] for field, (fate, *_) in REASONS.items()})


def in_words(counts: Dropped) -> str:
    """Such as `3 duplicates, 1 empty`: the reasons that occurred; "nothing" where none did."""
    told = []
    for field, (_, noun, what) in REASONS.items():
        if count := getattr(counts, field):
            told.append(f"{counted(count, noun) if noun else f'{count:,}'} {what}".rstrip())
    return ", ".join(told) or "nothing"
