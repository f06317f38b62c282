"""What context is worth: the same target tokens, read with more and more of what precedes them.

- `loss/same-targets`: nats a token of the last tokens of each window, given k tokens of context.
- `loss/gain`: loss with the shortest context less that with k, paired by window. Above 0: used.
- `loss/rise`: loss with k less the lowest loss with fewer, paired. Above ln 1.1: the model does not see k.
- `loss/far-text`: what is lost when everything but the nearest context is another window's text, paired.
  About 0: the far text was read but not used.
- `long-perplexity`: perplexity of key tokens alone (as LongPPL, Fang et al. 2024, but with keys fixed by a
  rule of the text): tokens that complete a run of three which the window holds before, and only far away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from yarn_ops.data.haystack import Haystack, Ids
from yarn_ops.data.windows import begun
from yarn_ops.errors import EvaluationError
from yarn_ops.evals.cells import Cell, LossesOf, ModelUnderTest, Reads, Size
from yarn_ops.evals.intervals import exponential, mean_interval
from yarn_ops.evals.names import FAR_TEXT, GAIN, LONG_PERPLEXITY, RISE, SAME_TARGETS
from yarn_ops.evals.scoring import mean_score
from yarn_ops.scores import Score

KEY_RUN = 3
"""tokens of a run whose last one is a key"""
KEY_FAR = 0.25
"""of the window: a run seen nearer than that makes no key"""

Losses = NDArray[np.float32]


def cell(haystack: Haystack, size: Size, length: int, lengths: Sequence[int], seed: int) -> Cell:
    """Growing context: one cell, at the longest length, holds all."""
    windows = haystack.windows(2 * size.windows, lengths[-1] + 1, seed)

    def measure(under_test: ModelUnderTest) -> tuple[Score, ...]:
        return growing(under_test.token_losses, windows, lengths, seed, haystack.prefix)

    asks = (haystack.digest, len(windows), list(lengths))
    return Cell.whole("context", length, asks, tokens_read(size, length, lengths), measure)


def tokens_read(size: Size, length: int, lengths: Sequence[int]) -> int:
    """About how many go through a model."""
    return 2 * size.windows * (sum(lengths) + lengths[-1])


def reads(size: Size, length: int, lengths: Sequence[int]) -> Reads:
    windows, each = 2 * size.windows, (*lengths, lengths[-1])
    found = [Reads.once(windows * tokens, tokens, windows * _targets(lengths[0])) for tokens in each]
    tokens, pairs, forwards, scored, _ = (sum(figures) for figures in zip(*found, strict=True))
    return Reads(tokens, pairs, forwards, scored)


def key_cell(haystack: Haystack, size: Size, length: int, lengths: Sequence[int], seed: int) -> Cell:
    """Perplexity of the key tokens at one length."""
    windows = haystack.windows(size.windows, length + 1, seed)

    def measure(under_test: ModelUnderTest) -> tuple[Score, ...]:
        return long_perplexity(under_test.token_losses, windows, seed)

    asks = (haystack.digest, len(windows))
    return Cell.whole(LONG_PERPLEXITY, length, asks, size.windows * length, measure)


def growing(
    losses_of: LossesOf, windows: Ids, lengths: Sequence[int], seed: int, prefix: Sequence[int] = ()
) -> tuple[Score, ...]:
    """Losses of one set of targets at every length, ascending. windows: int64 [W, longest + 1]."""
    shortest, longest = lengths[0], lengths[-1]
    targets = _targets(shortest)
    before = np.asarray(prefix, dtype=np.int64)
    losses = {
        k: losses_of(begun(windows[:, -(k + 1) :].copy(), before), targets).mean(axis=1) for k in lengths
    }
    scores: list[Score] = []
    best = losses[shortest]
    for k in lengths:
        scores.append(_mean(SAME_TARGETS, k, losses[k], seed))
        scores.append(_mean(GAIN, k, losses[shortest] - losses[k], seed))
        if k > shortest:
            scores.append(_mean(RISE, k, losses[k] - best, seed))
            best = min(best, losses[k], key=lambda some: float(some.mean()))
    if longest > shortest:
        foreign = windows.copy()
        foreign[:, : longest - shortest] = np.roll(windows, 1, axis=0)[:, : longest - shortest]
        lost = losses_of(foreign, targets).mean(axis=1) - losses[longest]
        scores.append(_mean(FAR_TEXT, longest, lost, seed))
    return tuple(scores)


def _targets(shortest: int) -> int:
    return max(1, 3 * shortest // 4)


def long_perplexity(losses_of: LossesOf, windows: Ids, seed: int) -> tuple[Score, ...]:
    """Perplexity of the key tokens in the second half of each window; nothing where a text has none."""
    tokens = windows.shape[1] - 1
    scored = tokens // 2
    keys = np.stack([key_tokens(window, math.ceil(KEY_FAR * tokens)) for window in windows])[:, -scored:]
    if not keys.any():
        return ()
    losses = losses_of(windows, scored)
    means = [float(row[mask].mean()) for row, mask in zip(losses, keys, strict=True) if mask.any()]
    value = math.exp(float(losses[keys].mean()))
    interval = exponential(mean_interval(means))
    return (Score.of(LONG_PERPLEXITY, tokens, value, interval, int(keys.sum()), seed),)


def key_tokens(window: Ids, far_tokens: int) -> NDArray[np.bool_]:
    """Which tokens end a run of three that occurred before, the last time at least `far_tokens` earlier."""
    before = last_occurrences(window)
    return (before >= 0) & (np.arange(len(window)) - before >= far_tokens)


def last_occurrences(ids: Ids) -> NDArray[np.int64]:
    """For each token the place where the run of three that it ends was last ended before; -1: it is new."""
    last: dict[tuple[int, ...], int] = {}
    before = np.full(len(ids), -1)
    for at in range(KEY_RUN - 1, len(ids)):
        run = tuple(ids[at - KEY_RUN + 1 : at + 1].tolist())
        before[at] = last.get(run, -1)
        last[run] = at
    return before


def _mean(task: str, context_tokens: int, values: Losses, seed: int) -> Score:
    numbers = values.astype(np.float64).tolist()
    if not np.isfinite(numbers).all():
        raise EvaluationError(f"{task} at {context_tokens} tokens is not finite")
    return mean_score(task, context_tokens, numbers, seed, keep=task == SAME_TARGETS)
