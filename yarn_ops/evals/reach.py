"""Two lengths from many scores: how far a model sees, and how far it uses.

*Sees to*: the longest measured length at which, and below which, the loss of the same target tokens is not
more than ln 1.1 above the best with less context.

*Uses to*: how far back a needle may lie. At each length the needles' parts are walked from the question
outwards while recall stays at .85 of the model's own score at its shortest length; the farthest part that
is reached at any length counts, and never beyond what is seen. Recall is that of the form of needle that
the model knows best when the text is short; of the scorecard's, where no grid was measured.

Intervals are 95 % ones: of the losses, Student's over windows; of the reach, by drawing every share of
recall, the short one too, from its posterior (Jeffreys) and walking again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yarn_ops.evals import names
from yarn_ops.evals.conditions import compared
from yarn_ops.scores import Score, Scorecard

BLOW_UP = math.log(1.1)
"""nats: a tenth more perplexity; the gate's `max_long_growth` has the same default"""
KEPT = 0.85
"""of the model's own short score, as NoLiMa (Modarressi et al. 2025) defines effective length"""
LEAST_SHORT = 0.1
"""recall at the shortest length below which a model cannot be said to use any"""
DRAWS = 4000

Shares = Callable[[Score], NDArray[np.float64]]
Walk = Callable[[Shares, NDArray[np.float64]], NDArray[np.int64]]
"""(what was recalled of a score, what has to be) -> how far it goes; both of one draw or of many"""


@dataclass(frozen=True)
class Length:
    """A length in tokens with its 95 % interval."""

    tokens: int
    low: int
    high: int


@dataclass(frozen=True)
class Reach:
    sees: Length | None
    """None: growing context was not measured"""
    uses: Length | None
    """None: no needle grid was measured; 0 tokens: needles are not even found in short texts"""
    task: str | None
    """the form of needle that `uses` is about"""
    short_score: float | None
    threshold: float | None
    """recall that a part has to keep"""
    by_length: Length | None
    """the longest length such that recall over all depths keeps the share at every length up to it"""


def capacity_scores(card: Scorecard) -> tuple[Score, ...]:
    """`capacity/sees` and `capacity/uses` in tokens, at the longest length of the needles that they are
    about, and `capacity/uses-trained`; none unmeasured."""
    reach = reach_of(card)
    longest = max(
        (score.context_tokens for score in card.scores if reach.task in (None, score.task)), default=0
    )
    found = (
        (names.SEES, reach.sees),
        (names.USES, reach.uses),
        (names.USES_TRAINED, reach_of(card, task=names.TRAINED).uses),
    )
    return tuple(
        Score.of(task, longest, length.tokens, (length.low, length.high), len(card.scores), 0)
        for task, length in found
        if length is not None
    )


def reach_of(card: Scorecard, seed: int = 0, task: str | None = None) -> Reach:
    """What the scores say of `task`, or of the form that the model knows best; parts that were not measured
    end a walk."""
    sees = _sees(card)
    task = task or _best_task(card)
    overall = {} if task is None else {score.context_tokens: score for score in card.by_length(task)}
    if task is None or not overall:
        return Reach(sees, None, None, None, None, None)
    short = next(iter(overall.values()))
    if short.value < LEAST_SHORT:
        nothing = Length(0, 0, 0)
        return Reach(sees, nothing, task, short.value, None, nothing)
    parts = {length: card.by_depth(task, length)[::-1] for length in overall}  # nearest to the question first
    uses = _uses(parts, short, sees, seed)
    by_length = _whole_lengths(overall, short, seed)
    return Reach(sees, uses, task, short.value, KEPT * short.value, by_length)


def _sees(card: Scorecard) -> Length | None:
    same, rises = card.by_length(names.SAME_TARGETS), card.by_length(names.RISE)
    shortest = same[0].context_tokens if same else 0
    if not rises:
        shortest, rises = _perplexity_rises(card)
    if not rises:
        return None

    def farthest(bound: Callable[[Score], float]) -> int:
        reached = shortest
        for score in rises:
            if not bound(score) <= BLOW_UP:
                break
            reached = score.context_tokens
        return reached

    return Length(
        farthest(lambda score: score.value),
        farthest(lambda score: score.bounds[1]),
        farthest(lambda score: score.bounds[0]),
    )


def _perplexity_rises(card: Scorecard) -> tuple[int, list[Score]]:
    """From perplexities of the same last quarters, where nothing paired was measured; wider intervals."""
    found = [score for score in card.by_length(names.LAST_QUARTER) if math.isfinite(score.value)]
    rises = []
    for count, score in enumerate(found[1:], start=1):
        best = min(found[:count], key=lambda other: other.value)
        value, bounds = compared(score, best, "ratio")
        interval = None if bounds is None else (math.log(bounds[0]), math.log(bounds[1]))
        rises.append(
            Score.of(names.RISE, score.context_tokens, math.log(value), interval, score.samples, score.seed)
        )
    return (found[0].context_tokens if found else 0), rises


def _best_task(card: Scorecard) -> str | None:
    """The form with the best recall at its shortest length: of the grids, or else of the scorecard."""
    deep = {score.task for score in card.scores if score.depth is not None}
    for forms in (names.NEEDLES, names.RECALL):
        found = {task: whole[0].value for task in forms if task in deep and (whole := card.by_length(task))}
        if found:
            return max(found, key=found.__getitem__)
    return None


def _uses(parts: dict[int, list[Score]], short: Score, sees: Length | None, seed: int) -> Length:
    limit = sees.tokens if sees is not None else max(parts)
    ends = {length: _ends(length, some) for length, some in parts.items() if some and length <= limit}
    if not ends:
        nearest = min(length for length, some in parts.items() if some)
        ends = {nearest: _ends(nearest, parts[nearest])}

    def walk(share: Shares, needed: NDArray[np.float64]) -> NDArray[np.int64]:
        best = np.zeros(needed.shape, dtype=np.int64)
        for length, edges in ends.items():
            kept = np.cumprod([share(part) >= needed for part in parts[length]], axis=0)
            best = np.maximum(best, np.asarray([0, *edges])[kept.sum(axis=0)])
        return best

    return _walked(walk, short, np.random.default_rng(seed))


def _whole_lengths(overall: dict[int, Score], short: Score, seed: int) -> Length:
    lengths = sorted(overall)

    def walk(share: Shares, needed: NDArray[np.float64]) -> NDArray[np.int64]:
        kept = np.cumprod([share(overall[length]) >= needed for length in lengths], axis=0)
        return np.asarray([0, *lengths])[kept.sum(axis=0)]

    return _walked(walk, short, np.random.default_rng([seed, 1]))


def _walked(walk: Walk, short: Score, generator: np.random.Generator) -> Length:
    """The length that a walk reaches, and the interval that the scores leave."""
    point = int(walk(lambda score: np.array([score.value]), np.array([KEPT * short.value]))[0])
    drawn = walk(lambda score: _posterior(score, generator), KEPT * _posterior(short, generator))
    low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
    return Length(point, int(min(low, point)), int(max(high, point)))


def _ends(length: int, parts: Sequence[Score]) -> list[int]:
    """Distance from the question at which each part ends, nearest first."""
    return [round(length * (number + 1) / len(parts)) for number in range(len(parts))]


def _posterior(score: Score, generator: np.random.Generator) -> NDArray[np.float64]:
    """Shares that the hits leave likely: Jeffreys' prior, float64 [DRAWS]."""
    hits = round(score.value * score.samples)
    return generator.beta(hits + 0.5, score.samples - hits + 0.5, DRAWS)
