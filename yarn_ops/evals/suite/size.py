"""How much a suite asks, and how many tokens that sends through a model.

`tiny`: seconds on two cores for a model of some million parameters, for trying out; wide intervals.
`quick`: minutes; needle grids, context, perplexity.
`full`: 200 samples a depth, every task, RULER.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from yarn_ops.evals.suite import ruler
from yarn_ops.recipe import SuiteName

SLIDING_STRIDE_TOKENS = 256

BLOCK_TOKENS = 1 << 20
"""through the model in one block of a grid: a minute of an 8B shape at 32k on an H100"""
WHOLE = ("context", "perplexity", "sliding", "long-perplexity")
"""tasks that are measured in one block"""
DEEP = ("needle/code", "needle/prose", "passkey", "copy")
"""tasks that read a text once for its control, and from every depth on"""


@dataclass(frozen=True)
class Size:
    """How much a suite asks."""

    parts: int
    """equal parts of a text: the resolution in depth"""
    texts: int
    """of each needle grid; four needles a part in each"""
    windows: int
    """of perplexity and of growing context"""
    ruler_samples: int
    tasks: tuple[str, ...]


SIZES: dict[SuiteName, Size] = {
    "tiny": Size(4, 2, 4, 0, ("context", "needle/code")),
    "quick": Size(8, 8, 16, 0, ("context", "perplexity", "needle/code", "needle/prose", "multi-key")),
    "full": Size(
        8, 50, 32, 30,
        ("context", "perplexity", "sliding", "long-perplexity", "needle/code", "needle/prose", "passkey",
         "key-value", "multi-key", "copy", "mqar", "ruler"),
    ),
}  # fmt: skip


def sliding_documents(size: Size) -> int:
    return max(4, size.windows // 8)


def needed_tokens(size: Size, longest: int) -> int:
    """Documents' tokens that a suite can make use of."""
    return 2 * (size.windows + size.texts) * (longest + 1)


def tokens_through(task: str, size: Size, length: int, lengths: Sequence[int]) -> int:
    """About how many tokens a task at a length sends through the model; `lengths`: all that are measured."""
    longest = lengths[-1]
    if task == "context":
        return 2 * size.windows * (sum(lengths) + longest)
    if task == "perplexity":
        return size.windows * (longest // length) * length
    if task == "sliding":
        strides = math.ceil(2 * SLIDING_STRIDE_TOKENS / min(SLIDING_STRIDE_TOKENS, length)) + 1
        return sliding_documents(size) * strides * length
    if task == "long-perplexity":
        return size.windows * length
    if task == "ruler":
        return size.ruler_samples * length * len(ruler.TASKS)
    return round(size.texts * length * (1 + size.parts / 2 if task in DEEP else 1))


def blocks_of(task: str, size: Size, length: int, lengths: Sequence[int]) -> int:
    """In how many blocks a task at a length is measured: grids in some of whole texts, RULER by its tasks."""
    if task in WHOLE:
        return 1
    if task == "ruler":
        return len(ruler.TASKS)
    return min(size.texts, math.ceil(tokens_through(task, size, length, lengths) / BLOCK_TOKENS))
