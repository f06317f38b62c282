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
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from yarn_ops.data.haystack import Haystack, Ids
from yarn_ops.data.windows import begun
from yarn_ops.evals.cells import Block, Cell, Load, LossesOf, ModelUnderTest, Reads, Size
from yarn_ops.evals.intervals import exponential, mean_interval
from yarn_ops.evals.names import FAR_TEXT, FOREIGN, GAIN, LONG_PERPLEXITY, RISE, SAME_TARGETS
from yarn_ops.evals.scoring import mean_score
from yarn_ops.evals.tasks.perplexity import PerplexityBlock, same_targets
from yarn_ops.scores import Score

KEY_RUN = 3
"""tokens of a run whose last one is a key"""
KEY_FAR = 0.25
"""of the window: a run seen nearer than that makes no key"""

Losses = NDArray[np.float64]


def cell(
    haystack: Haystack, size: Size, length: int, lengths: Sequence[int], seed: int,
    read: Mapping[int, PerplexityBlock] = MappingProxyType({}),
) -> Cell:  # fmt: skip
    """Growing context: one cell, at the longest length, holds all.

    read: what perplexity reads, by length. The cell takes the losses of those windows from there, and reads
    what perplexity does not: other lengths, foreign text, and more windows where these are too few. Windows
    that are too short, or lengths that begin before perplexity's targets do, leave all to the cell.
    """
    some, of = next(iter(read.values()), None), (haystack.digest,)
    if some is None or some.shortest > lengths[0] or some.windows.shape[1] <= length:
        shortest, read = lengths[0], {}
        own = windows = haystack.windows(2 * size.windows, length + 1, seed)
    else:
        shortest, read, of = some.shortest, {k: read[k] for k in lengths if k in read}, (*of, *some.asks)
        more = max(0, 2 * size.windows - len(some.windows))
        own = haystack.windows(2 * more, length + 1, seed)[1::2] if more else some.windows[:0, -length - 1 :]
        windows = np.concatenate([some.windows[:, -length - 1 :], own])
    runs = {k: (own if k in read else windows)[:, -k - 1 :] for k in lengths}

    def measure(under_test: ModelUnderTest) -> tuple[Score, ...]:
        targets, prefix = same_targets(shortest), haystack.prefix
        return window_losses(under_test.token_losses, windows, runs, targets, seed, prefix)

    tokens = load(size, lengths, {k: len(block.windows) for k, block in read.items()}).tokens
    block = Block("context", length, tokens, measure)
    asks = (*of, len(windows), list(lengths), list(read))
    return Cell(block.name, length, asks, (block,), partial(growing, seed), others=tuple(read.values()))


def load(size: Size, lengths: Sequence[int], read: Mapping[int, int] = MappingProxyType({})) -> Load:
    """What the cell takes. read: at which lengths perplexity reads how many windows."""
    whole = max(2 * size.windows, *read.values(), 0)
    windows = [*((k, whole - read.get(k, 0)) for k in lengths), (lengths[-1], whole)]
    found = [Reads.once(count * k, k, count * same_targets(lengths[0])) for k, count in windows]
    tokens, pairs, forwards, scored, _ = (sum(figures) for figures in zip(*found, strict=True))
    return Load("context", lengths[-1], round(tokens), Reads(tokens, pairs, forwards, scored))


def key_cell(haystack: Haystack, size: Size, length: int, lengths: Sequence[int], seed: int) -> Cell:
    """Perplexity of the key tokens at one length."""
    windows = haystack.windows(size.windows, length + 1, seed)

    def measure(under_test: ModelUnderTest) -> tuple[Score, ...]:
        return long_perplexity(under_test.token_losses, windows, seed)

    asks = (haystack.digest, len(windows))
    return Cell.whole(LONG_PERPLEXITY, length, asks, size.windows * length, measure)


def window_losses(
    losses_of: LossesOf, windows: Ids, runs: Mapping[int, Ids], targets: int, seed: int,
    prefix: Sequence[int] = (),
) -> tuple[Score, ...]:  # fmt: skip
    """Losses of the last `targets` tokens, an item a window: with so many tokens of context, and with the
    longest of these behind another window's far text.

    windows: int64 [W, longest + 1]; runs: by length, ascending, int64 [any, length + 1].
    """
    shortest, longest = min(runs), max(runs)

    def score(task: str, length: int, texts: Ids) -> Score:
        return mean_score(task, length, losses_of(texts, targets).mean(axis=1).tolist(), seed)

    before = np.asarray(prefix, dtype=np.int64)
    found = [score(SAME_TARGETS, k, begun(run.copy(), before)) for k, run in runs.items() if len(run)]
    if longest > shortest:
        foreign = windows.copy()
        foreign[:, : longest - shortest] = np.roll(windows, 1, axis=0)[:, : longest - shortest]
        found.append(score(FOREIGN, longest, begun(foreign, before)))
    return tuple(found)


def growing(seed: int, found: Sequence[tuple[Score, ...]]) -> tuple[Score, ...]:
    """What losses of one set of targets say of growing context: those of several blocks, whose windows follow
    each other."""
    losses: dict[tuple[str, int], Losses] = {}
    for score in (score for block in found for score in block if score.task in (SAME_TARGETS, FOREIGN)):
        key = score.task, score.context_tokens
        losses[key] = np.concatenate([losses.get(key, np.empty(0)), score.items])
    same = {k: losses[SAME_TARGETS, k] for task, k in sorted(losses) if task == SAME_TARGETS}
    if not same:
        return ()
    scores: list[Score] = []
    best = shortest = same[min(same)]
    for k, some in same.items():
        scores.append(_mean(SAME_TARGETS, k, some, seed))
        scores.append(_mean(GAIN, k, shortest - some, seed))
        if k > min(same):
            scores.append(_mean(RISE, k, some - best, seed))
            best = min(best, some, key=lambda some: float(some.mean()))
    longest = max(same)
    if (FOREIGN, longest) in losses:
        scores.append(_mean(FAR_TEXT, longest, losses[FOREIGN, longest] - same[longest], seed))
    return tuple(scores)


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
    return mean_score(task, context_tokens, values.tolist(), seed, keep=task == SAME_TARGETS)
