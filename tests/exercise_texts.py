"""Texts that exercises are put into."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from yarn_ops.data.tokenizer import Tokenizer
from yarn_ops.data.windows import Window

ENGLISH_TEXT = (
    "The captain looked at the harbour, where nothing moved; then he went below and wrote a letter. "
)
CHINESE_TEXT = "船长望着港口，那里什么也没有动；随后他走下甲板，写了一封信。"


@dataclass
class Texts:
    """A plain sampler over one running text with a number in every sentence, so that no two are alike."""

    tokenizer: Tokenizer
    sentence: str
    window_tokens: int
    documents: int = 1
    prefix: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def window(self, index: int) -> Window:
        needed = self.window_tokens + 1
        text = "".join(f"{index}.{number} {self.sentence}" for number in range(needed))
        ids = self.tokenizer.encode([text])[0][:needed].astype(np.int64)
        segments: NDArray[np.int32] = np.arange(needed, dtype=np.int32) * self.documents // needed
        names = tuple(f"d{number}" for number in range(self.documents))
        return Window(ids, names, segments.astype(np.int32))
