"""What context is worth: the same target tokens, read with more and more of what precedes them.

- `loss/same-targets`: nats a token of the last tokens of each window, given k tokens of context.
- `loss/gain`: loss with the shortest context less that with k, paired by window. Above 0: used.
- `loss/rise`: loss with k less the lowest loss with fewer, paired. Above ln 1.1: the model does not see k.
- `loss/far-text`: what is lost when everything but the nearest context is another window's text, paired.
  About 0: the far text was read but not used. That text's keys and values are those of its own reading.
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
from yarn_ops.evals.intervals import ERROR, exponential, mean_interval
from yarn_ops.evals.names import FAR_TEXT, FOREIGN, GAIN, LONG_PERPLEXITY, RISE, SAME_TARGETS
from yarn_ops.evals.scoring import mean_score
from yarn_ops.evals.sequential import WindowLooks
from yarn_ops.evals.tasks.perplexity import PerplexityCell, foreign_reads, same_targets
from yarn_ops.scores import Score

KEY_RUN = 3
"""tokens of a run whose last one is a key"""
KEY_FAR = 0.25
"""of the window: a run seen nearer than that makes no key"""

Losses = NDArray[np.float64]


def cell(
    haystack: Haystack, size: Size, length: int, lengths: Sequence[int], seed: int,
    read: Mapping[int, PerplexityCell] = MappingProxyType({}),
) -> Cell:  # fmt: skip
    """Growing context: one cell, at the longest length, holds all.

    read: what perplexity reads, by length. The cell takes the losses of those windows from there, and reads
    what perplexity does not: other lengths, and more windows where these are too few, at lengths at which
    perplexity was asked to the end. Windows that are too short, or lengths that begin before perplexity's
    targets do, leave all to the cell.
    """
    some, of = next(iter(read.values()), None), (haystack.digest,)
    if some is None or some.shortest > lengths[0] or some.windows.shape[1] <= length:
        shortest, read = lengths[0], {}
        own = windows = haystack.windows(2 * size.windows, length + 1, seed)
    else:
        shortest, of = some.shortest, (*of, *some.asks)
        read = {k: read[k] for k in lengths if k in read and (k < length or read[k].near)}
        more = _more(size, len(some.windows))
        own = haystack.windows(2 * more, length + 1, seed)[1::2] if more else some.windows[:0, -length - 1 :]
        windows = np.concatenate([some.windows[:, -length - 1 :], own])
    runs = {k: (own if k in read else windows)[:, -k - 1 :] for k in lengths}
    near = {length: read[length].near if length in read else lengths[0]} if lengths[0] < length else {}
    prefix = np.asarray(haystack.prefix, dtype=np.int64)

    def measure(k: int, under_test: ModelUnderTest) -> tuple[Score, ...]:
        run = begun(runs[k].copy(), prefix)
        return window_losses(under_test, run, same_targets(shortest), near.get(k, 0), seed)

    blocks = tuple(
        Block("context", k, len(run) * (k + near.get(k, 0)), partial(measure, k))
        for k, run in runs.items() if len(run)
    )  # fmt: skip
    follows = {
        block: read[block.context_tokens].blocks[-1] for block in blocks if block.context_tokens in read
    }
    others = tuple(block for one in read.values() for block in one.blocks)
    return Cell(
        "context", length, (*of, len(windows), list(lengths), list(read)), blocks,
        partial(growing, seed, len(windows), {k: one.window_looks for k, one in read.items()}),
        others=others, needs=(*others, *blocks), follows=follows,
    )  # fmt: skip


def _more(size: Size, windows: int) -> int:
    """Windows that are read beside those of perplexity; never one alone: no text would be foreign to it."""
    more = max(0, 2 * size.windows - windows)
    return 2 if more == 1 else more


def load(size: Size, lengths: Sequence[int], read: Mapping[int, int] = MappingProxyType({})) -> Load:
    """What the cell takes. read: at which lengths perplexity reads how many windows."""
    longest, near = lengths[-1], lengths[0] * (lengths[0] < lengths[-1])
    whole = max(read.values(), default=0)
    whole += _more(size, whole)
    found = [
        Reads.once(count * k, k, count * same_targets(lengths[0]))
        for k in lengths if (count := whole - read.get(k, 0))
    ]  # fmt: skip
    if own := whole - read.get(longest, 0):
        found.append(foreign_reads(own, near, longest, same_targets(lengths[0])))
    tokens, pairs, forwards, scored = (sum(one[place] for one in found) for place in range(4))
    return Load("context", longest, round(tokens), Reads(tokens, pairs, forwards, scored))


def key_cell(haystack: Haystack, size: Size, length: int, lengths: Sequence[int], seed: int) -> Cell:
    """Perplexity of the key tokens at one length."""
    windows = haystack.windows(size.windows, length + 1, seed)

    def measure(under_test: ModelUnderTest) -> tuple[Score, ...]:
        return long_perplexity(under_test.token_losses, windows, seed)

    asks = (haystack.digest, len(windows))
    return Cell.whole(LONG_PERPLEXITY, length, asks, size.windows * length, measure)


def window_losses(
    under_test: ModelUnderTest, runs: Ids, targets: int, near: int, seed: int
) -> tuple[Score, ...]:
    """Losses of the last `targets` tokens of each run, an item a run; and of the same tokens where all but
    the last `near` are foreign (0: left out). runs: int64 [W, context + 1]."""
    tokens = runs.shape[1] - 1
    if not near:
        found = {SAME_TARGETS: under_test.token_losses(runs, targets)}
    else:
        own, foreign = under_test.losses_and_foreign(runs, targets, near, targets)
        found = {SAME_TARGETS: own, FOREIGN: foreign}
    return tuple(
        mean_score(task, tokens, losses.mean(axis=1).tolist(), seed) for task, losses in found.items()
    )


def growing(
    seed: int, windows: int, looks: Mapping[int, WindowLooks], found: Sequence[tuple[Score, ...]]
) -> tuple[Score, ...]:
    """What losses of one set of targets say of growing context: those of several blocks, whose windows follow
    each other. A length at which perplexity was stopped has the first of them.

    windows: of a length that is asked to the end; looks: at perplexity, by length. Differences are of the
    windows that both lengths were asked.
    """
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
        error, stopped = ERROR, ""
        if len(some) < windows:
            error = looks[k].error(len(some))
            stopped = f"after {len(some)} of {windows} windows, with perplexity"
        told = partial(mean_score, seed=seed, error=error, stopped=stopped)
        scores.append(told(SAME_TARGETS, k, some.tolist()))
        scores.append(told(GAIN, k, _less(shortest, some), keep=False))
        if k > min(same):
            scores.append(told(RISE, k, _less(some, best), keep=False))
            if not stopped:
                best = min(best, some, key=lambda some: float(some.mean()))
        if (FOREIGN, k) in losses:
            scores.append(told(FAR_TEXT, k, _less(losses[FOREIGN, k], some), keep=False))
    return tuple(scores)


def _less(losses: Losses, others: Losses) -> list[float]:
    """Differences, window by window, of the windows of both."""
    both = min(len(losses), len(others))
    return (losses[:both] - others[:both]).tolist()


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
