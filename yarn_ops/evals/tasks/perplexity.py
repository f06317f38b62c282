"""Perplexity by context length, in protocols that are named, and loss by position.

- `perplexity/last-quarter`: the same target tokens at every length (the last quarter of each long window),
  each with between 3/4 and all of the length as context. Text cancels out of any ratio of two lengths or
  two models, so this is the figure the gate reads.
- `perplexity/single-pass`: the same forwards, mean over all their tokens, short context included; what most
  published tables hold.
- `perplexity/sliding`: a window of the length moved over long documents by a fixed stride; every token is
  scored once, by the first window that reaches it.
- `loss-by-position`: mean loss in nats within equal parts of the longest window, from one forward.

Intervals are over windows (Student, on the loss), since tokens of one window are not independent. Windows are
asked in groups, and no more once perplexity has surely exploded beside a shorter length's (`sequential`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from yarn_ops.data.haystack import Ids
from yarn_ops.data.windows import NO_PREFIX, begun
from yarn_ops.evals.cells import Block, Cell, LossesOf, ModelUnderTest, Reads
from yarn_ops.evals.forward import whole_forwards
from yarn_ops.evals.intervals import ERROR, exponential, mean_interval
from yarn_ops.evals.names import (
    BY_POSITION,
    FOREIGN,
    LAST_QUARTER,
    SAME_TARGETS,
    SINGLE_PASS,
    SLIDING,
)  # fmt: skip
from yarn_ops.evals.scoring import mean_score
from yarn_ops.evals.sequential import WindowLooks
from yarn_ops.scores import Score

POSITION_PARTS = 16


@dataclass(frozen=True, eq=False)
class PerplexityCell(Cell):
    """Both perplexities at a length. The scores of its blocks hold, beside these, what growing context is
    made of: the loss of the tokens that all lengths have in common, and of the same after foreign text."""

    windows: Ids = field(kw_only=True)
    """int64 [W, longest + 1]"""
    shortest: int = field(kw_only=True)
    """of growing context: shorter lengths are no part of it"""
    near: int = field(kw_only=True)
    """tokens that foreign far text is put before; 0: it is not read here"""
    window_looks: WindowLooks = field(kw_only=True)


def cell(
    windows: Ids, length: int, seed: int, text: str, prefix: Ids = NO_PREFIX, *, shortest: int,
    beside: PerplexityCell | None = None, foreign: bool = False,
) -> PerplexityCell:  # fmt: skip
    """windows: int64 [W, longest + 1]; text: digest of what they are from; prefix: what every text begins
    with; shortest: of growing context; beside: of a shorter length, whose loss tells whether this one's has
    exploded; foreign: whether foreign text is read, too, at the longest length."""
    count, longest = len(windows), windows.shape[1] - 1
    targets = same_targets(shortest) if length >= shortest else 0
    near = shortest if foreign and shortest < length == longest and count > 1 else 0
    looks = WindowLooks((count,)) if beside is None else looks_of(count, length, longest)

    def measure(some: range, under_test: ModelUnderTest) -> tuple[Score, ...]:
        mine = windows[some.start : some.stop]
        return window_scores(under_test, mine, length, seed, prefix, targets, near)

    name, asks = "perplexity", (text, *windows.shape, targets, looks.windows)
    groups = [range(*edge) for edge in pairwise((0, *looks.windows))]
    named = f"{name} beside foreign text" if near else name
    blocks = tuple(
        Block(named if number == 1 else f"{named} {number}/{len(groups)}", length,
              tokens_read(len(some), length, longest) + near * len(some), partial(measure, some))
        for number, some in enumerate(groups, start=1)
    )  # fmt: skip
    return PerplexityCell(
        name, length, asks, blocks, partial(joined, looks, length, tokens_read(1, length, longest)),
        tuple(range(1, len(groups))), partial(exploded, looks, length),
        others=beside.blocks if beside and len(groups) > 1 else (), needs=blocks,
        windows=windows, shortest=shortest, near=near, window_looks=looks,
    )  # fmt: skip


def looks_of(windows: int, length: int, longest: int) -> WindowLooks:
    """Groups are of whole forwards, so that losses are the same to the last bit as of all windows at once."""
    runs, forwards = quarter(longest) // quarter(length), whole_forwards(length)
    return WindowLooks.at(windows, forwards // math.gcd(forwards, runs))


def cells_by_length(cells: Iterable[Cell]) -> dict[int, PerplexityCell]:
    """Cells of perplexity as far as growing context can be made of them."""
    found = (cell for cell in cells if isinstance(cell, PerplexityCell))
    return {cell.context_tokens: cell for cell in found if cell.context_tokens >= cell.shortest}


def same_targets(shortest: int) -> int:
    """Tokens at a window's end whose loss is compared at all lengths, of which this is the shortest."""
    return max(1, 3 * shortest // 4)


def foreign_reads(windows: int, near: int, length: int, targets: int, until_look: float = 1.0) -> Reads:
    """Of the last `near` tokens of windows behind foreign far text, whose keys and values are there."""
    return Reads(windows * near, windows * near * (length - near / 2), windows, windows * targets, until_look)


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
    under_test: ModelUnderTest, windows: Ids, context_tokens: int, seed: int, prefix: Ids = NO_PREFIX,
    targets: int = 0, near: int = 0,
) -> tuple[Score, ...]:  # fmt: skip
    """Last-quarter and single-pass perplexity at one length, the loss of the last `targets` tokens of each
    window, the same after foreign far text (all but the last `near` tokens), and loss by position when it is
    the longest length. Each score keeps its windows.

    windows: int64 [W, N+1], the longest length N and one token to predict; `context_tokens` at most N.
    """
    chunks = begun(last_quarter_chunks(windows, context_tokens), prefix)
    runs = chunks.reshape(-1, context_tokens + 1)
    foreign = None
    if near:
        losses, foreign = under_test.losses_and_foreign(runs, context_tokens, near, targets)
    else:
        losses = under_test.token_losses(runs, context_tokens)
    losses = losses.reshape(*chunks.shape[:2], context_tokens)
    ends = losses[:, :, -quarter(context_tokens) :].reshape(len(windows), -1)
    whole = losses.reshape(len(windows), -1)
    scores = [
        _perplexity(task, context_tokens, [some.shape[1]] * len(some), _means(some), seed)
        for task, some in ((LAST_QUARTER, ends), (SINGLE_PASS, whole))
    ]
    if targets:
        means = losses[:, -1, -targets:].mean(axis=1)
        scores.append(mean_score(SAME_TARGETS, context_tokens, means.tolist(), seed))
    if foreign is not None:
        scores.append(mean_score(FOREIGN, context_tokens, foreign.mean(axis=1).tolist(), seed))
    if context_tokens == windows.shape[1] - 1:
        scores += loss_by_position(losses[:, -1], seed)
    return tuple(scores)


def joined(
    looks: WindowLooks, length: int, window_tokens: int, found: Sequence[tuple[Score, ...]]
) -> tuple[Score, ...]:
    """The scores of the cell at a length from those of its blocks, in order; without what other cells are
    made of. Before these there may be a shorter length's. window_tokens: read of each window."""
    items = _items(found)
    asked, seed = len(items[LAST_QUARTER, length]), found[0][0].seed
    error, stopped = looks.error(asked), looks.why_enough(_rises(items, length))
    scores = []
    for (task, tokens), some in items.items():
        if task in (LAST_QUARTER, SINGLE_PASS) and tokens == length:
            scored = window_tokens if task == SINGLE_PASS else window_tokens // length * quarter(length)
            scores.append(_perplexity(task, tokens, [scored] * asked, some, seed, error, stopped))
        elif task == BY_POSITION:
            scores.append(mean_score(task, tokens, some, seed, keep=False, error=error, stopped=stopped))
    return tuple(scores)


def exploded(looks: WindowLooks, length: int, found: Sequence[tuple[Score, ...]]) -> bool:
    """Whether what blocks found, as for `joined`, leaves nothing to ask."""
    return bool(looks.why_enough(_rises(_items(found), length)))


def _items(found: Sequence[tuple[Score, ...]]) -> dict[tuple[str, int], list[float]]:
    """Of each task at a length, window by window, over all blocks."""
    items: dict[tuple[str, int], list[float]] = {}
    for score in (score for block in found for score in block):
        items.setdefault((score.task, score.context_tokens), []).extend(score.items)
    return items


def _rises(items: dict[tuple[str, int], list[float]], length: int) -> list[float]:
    """What the length costs beside the shorter one, window by window; empty where that is not known."""
    shorter = [some for (task, tokens), some in items.items() if task == LAST_QUARTER and tokens < length]
    if not shorter:
        return []
    return [new - old for new, old in zip(items[LAST_QUARTER, length], shorter[0], strict=False)]


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
    scored = [*map(len, losses)]
    return (_perplexity(SLIDING, context_tokens, scored, _means(losses), seed, keep=False),)


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
    return tuple(mean_score(BY_POSITION, end, means.tolist(), seed) for end, means in parts)


def _means(losses: Iterable[NDArray[np.float32]]) -> list[float]:
    """Of the token losses of each window or document."""
    return [float(some.mean(dtype=np.float64)) for some in losses]


def _perplexity(
    task: str, context_tokens: int, tokens: Sequence[int], means: Sequence[float], seed: int,
    error: float = ERROR, stopped: str = "", *, keep: bool = True,
) -> Score:  # fmt: skip
    """exp of the mean loss over all tokens. tokens, means: how many of each window or document, and their
    mean; keep: these as the score's items; error, stopped: as in `Score`."""
    return Score.of(
        task, context_tokens, math.exp(np.average(means, weights=tokens)),
        exponential(mean_interval(means, error)), len(means), seed, items=means if keep else (), error=error,
        stopped=stopped,
    )  # fmt: skip
