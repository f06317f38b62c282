"""What a corpus is made of: how long its documents are, and how many were left out, for which reasons."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from yarn_ops.data.fragments import Fate
from yarn_ops.records import Dropped, LengthShare

CONTEXT_MULTIPLES = (0.5, 1, 2, 4)


def length_shares(tokens: NDArray[np.int64], context_tokens: int) -> tuple[LengthShare, ...]:
    """Documents longer than ½, 1, 2 and 4 contexts, and their share of all tokens; `tokens`: of each."""
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
    """How many documents were left out, for each reason."""
    counts = np.bincount(fates, minlength=len(Fate)).tolist()
    return Dropped(
        empty=counts[Fate.EMPTY],
        not_text=counts[Fate.NOT_TEXT],
        language=counts[Fate.LANGUAGE],
        length=counts[Fate.LENGTH],
        duplicates=counts[Fate.DUPLICATE],
        near_duplicates=counts[Fate.NEAR_DUPLICATE],
        contaminated=counts[Fate.CONTAMINATED],
    )


def in_words(counts: Dropped) -> str:
    """What was left out, the reasons that did not occur aside; "nothing" for nothing."""
    named = {
        "duplicates": counts.duplicates,
        "near duplicates": counts.near_duplicates,
        "with passages of measured documents": counts.contaminated,
        "in other languages": counts.language,
        "too short or long": counts.length,
        "empty": counts.empty,
        "files not UTF-8 text": counts.not_text,
    }
    return ", ".join(f"{count:,} {name}" for name, count in named.items() if count) or "nothing"
