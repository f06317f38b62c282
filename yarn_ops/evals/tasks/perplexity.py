"""Perplexity by context length, in protocols that are named, and loss by position.

- `perplexity/last-quarter`: the same target tokens at every length (the last quarter of each long window),
  each with between 3/4 and all of the length as context. Text cancels out of any ratio of two lengths or
  two models, so this is the figure the gate reads.
- `perplexity/single-pass`: the same forwards, mean over all their tokens, short context included; what most
  published tables hold.
- `perplexity/sliding`: a window of the length moved over long documents by a fixed stride; every token is
  scored once, by the first window that reaches it.
- `loss-by-position`: mean loss in nats within equal parts of the longest window, from one forward.

Intervals are over windows (Student, on the loss), since tokens of one window are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yarn_ops.data.haystack import Ids
from yarn_ops.data.windows import NO_PREFIX, begun
from yarn_ops.evals.cells import Block, Cell, LossesOf, ModelUnderTest, only
from yarn_ops.evals.intervals import exponential, mean_interval
from yarn_ops.evals.names import BY_POSITION, LAST_QUARTER, SAME_TARGETS, SINGLE_PASS, SLIDING
from yarn_ops.evals.scoring import mean_score
from yarn_ops.scores import Score

POSITION_PARTS = 16


@dataclass(frozen=True, eq=False)
class PerplexityBlock(Block):
    """What perplexity reads at a length. Its scores hold, beside perplexity, what growing context is made of:
    the loss of the tokens that all lengths have in common."""

    windows: Ids
    """int64 [W, longest + 1]"""
    shortest: int
    """of growing context: shorter lengths are no part of it"""
    asks: tuple[Any, ...]
    """as `Cell.asks`"""


def cell(windows: Ids, length: int, seed: int, text: str, prefix: Ids = NO_PREFIX, *, shortest: int) -> Cell:
    """Both perplexities at a length. windows: int64 [W, longest + 1]; text: digest of what they are from;
    prefix: what every text begins with; shortest: of growing context."""
    targets = same_targets(shortest) if length >= shortest else 0

    def measure(under_test: ModelUnderTest) -> tuple[Score, ...]:
        return window_scores(under_test.token_losses, windows, length, seed, prefix, targets)

    def join(found: Sequence[tuple[Score, ...]]) -> tuple[Score, ...]:
        return tuple(score for score in only(found) if score.task != SAME_TARGETS)

    tokens, asks = tokens_read(len(windows), length, windows.shape[1] - 1), (text, *windows.shape, targets)
    block = PerplexityBlock("perplexity", length, tokens, measure, windows, shortest, asks)
    return Cell(block.name, length, asks, (block,), join)


def blocks_of(cells: Iterable[Cell]) -> dict[int, PerplexityBlock]:
    """What perplexity reads, by length, as far as growing context can be made of it."""
    blocks = (block for cell in cells for block in cell.blocks if isinstance(block, PerplexityBlock))
    return {block.context_tokens: block for block in blocks if block.context_tokens >= block.shortest}


def same_targets(shortest: int) -> int:
    """Tokens at a window's end whose loss is compared at all lengths, of which this is the shortest."""
    return max(1, 3 * shortest // 4)


def tokens_read(windows: int, length: int, longest: int) -> int:
    return windows * (quarter(longest) // quarter(length)) * length


def sliding_cell(
    documents: Sequence[Ids], length: int, stride: int, seed: int, text: str, prefix: Ids = NO_PREFIX
) -> Cell:
    """Sliding perplexity at a length over documents, int64 each. text: digest of what they are from."""

    def measure(under_test: ModelUnderTest) -> tuple[Score, ...]:
        return sliding_scores(under_test.token_losses, documents, length, stride, seed, prefix)

    tokens = sliding_tokens_read(map(len, documents), length, stride)
    asks = (text, stride, [len(document) for document in documents])
    return Cell.whole("sliding", length, asks, tokens, measure)


def sliding_tokens_read(documents: Iterable[int], length: int, stride: int) -> int:
    """documents: their tokens."""
    return sum(1 + (tokens - 1 - length) // min(stride, length) for tokens in documents) * length


def window_scores(
    losses_of: LossesOf, windows: Ids, context_tokens: int, seed: int, prefix: Ids = NO_PREFIX,
    targets: int = 0,
) -> tuple[Score, ...]:  # fmt: skip
    """Last-quarter and single-pass perplexity at one length, the loss of the last `targets` tokens of each
    window, and loss by position when it is the longest.

    windows: int64 [W, N+1], the longest length N and one token to predict; `context_tokens` at most N.
    """
    chunks = begun(last_quarter_chunks(windows, context_tokens), prefix)
    losses = losses_of(chunks.reshape(-1, context_tokens + 1), context_tokens)
    losses = losses.reshape(*chunks.shape[:2], context_tokens)
    quarters = losses[:, :, -quarter(context_tokens) :].reshape(len(windows), -1)
    scores = [
        _perplexity(LAST_QUARTER, context_tokens, quarters, seed),
        _perplexity(SINGLE_PASS, context_tokens, losses.reshape(len(windows), -1), seed),
    ]
    if targets:
        means = losses[:, -1, -targets:].mean(axis=1)
        scores.append(mean_score(SAME_TARGETS, context_tokens, means.tolist(), seed))
    if context_tokens == windows.shape[1] - 1:
        scores += loss_by_position(losses[:, -1], seed)
    return tuple(scores)


def last_quarter_chunks(windows: Ids, context_tokens: int) -> Ids:
    """The runs of tokens whose last quarters, side by side, are the last quarter of each window.

    windows: int64 [W, N+1]; returns int64 [W, K, context_tokens+1] with K = N // context_tokens quarters,
    so a length that does not divide N leaves out the first of N's targets.
    """
    longest, step = windows.shape[1] - 1, quarter(context_tokens)
    ends = [longest - step * back for back in reversed(range(quarter(longest) // step))]
    return np.stack([windows[:, end - context_tokens : end + 1] for end in ends], axis=1)


def quarter(tokens: int) -> int:
    return max(1, tokens // 4)


def sliding_scores(
    losses_of: LossesOf,
    documents: Sequence[Ids],
    context_tokens: int,
    stride_tokens: int,
    seed: int,
    prefix: Ids = NO_PREFIX,
) -> tuple[Score, ...]:
    """Sliding-window perplexity over the documents' whole strides.

    Each document is int64 with more than `context_tokens` tokens. Windows start at 0, S, 2S, …; the first is
    scored whole, each later one only where it reaches further, so context is `context_tokens`-S at least.
    A stride above the length is taken as the length.
    """
    stride = min(stride_tokens, context_tokens)
    losses = [_sliding_losses(losses_of, document, context_tokens, stride, prefix) for document in documents]
    return (_perplexity(SLIDING, context_tokens, losses, seed),)


def _sliding_losses(
    losses_of: LossesOf, document: Ids, context_tokens: int, stride: int, prefix: Ids
) -> NDArray[np.float32]:
    runs = np.lib.stride_tricks.sliding_window_view(document, context_tokens + 1)[::stride]
    first = losses_of(runs[:1].copy(), context_tokens)
    if len(runs) == 1:
        return first.ravel()
    return np.concatenate([first.ravel(), losses_of(begun(runs[1:].copy(), prefix), stride).ravel()])


def loss_by_position(losses: NDArray[np.float32], seed: int) -> tuple[Score, ...]:
    """Mean loss in equal parts of the window. losses: [W, N]; a score's `context_tokens` ends its part."""
    edges = np.linspace(0, losses.shape[1], min(POSITION_PARTS, losses.shape[1]) + 1).astype(int)
    parts = (
        (end, losses[:, start:end].mean(axis=1, dtype=np.float64)) for start, end in pairwise(edges.tolist())
    )
    return tuple(mean_score(BY_POSITION, end, means.tolist(), seed, keep=False) for end, means in parts)


def _perplexity(task: str, context_tokens: int, losses: Iterable[NDArray[np.float32]], seed: int) -> Score:
    """exp of the mean loss over all tokens; `losses` holds one array of token losses a window or document."""
    tokens, means = zip(*((len(some), float(some.mean(dtype=np.float64))) for some in losses), strict=True)
    return Score.of(
        task, context_tokens, math.exp(np.average(means, weights=tokens)), exponential(mean_interval(means)),
        len(means), seed, items=means if task == LAST_QUARTER else (),
    )  # fmt: skip
