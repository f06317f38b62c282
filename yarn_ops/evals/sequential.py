"""Asking in groups until it is decided: when a cell's outcomes are looked at, and what each look may err.

Needles are asked text by text. After some of the texts their outcomes are looked at, and where fewer than a
tenth are surely found, the rest is not asked: so little is no use of a length, by the gate and by the report.
A base far beyond its context ends there; a model that finds its needles is asked them all.

Whoever looks several times errs more often than at each. So the looks share the 5 % that a 95 % interval may
miss: each has its part of it, whatever was seen before (Bonferroni), and an interval covers at every look and
at the one that was the last. Early ones are Clopper and Pearson's, which cover for every share and count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from yarn_ops.evals.intervals import ERROR, Interval
from yarn_ops.evals.names import CHOICE, NATS, NO_NEEDLE
from yarn_ops.evals.reach import LEAST_SHORT
from yarn_ops.scores import Score

EARLY_ERROR = 0.01
"""of the early looks together; the last has the rest of the 5 %"""
WORTH = 1.5
"""times as much must be left to ask as was asked, or a look is not worth its error"""


@dataclass(frozen=True)
class Looks:
    """At which numbers of texts a cell's outcomes are looked at."""

    texts: tuple[int, ...]
    """ascending; the last is all that may be asked"""
    each: int
    """outcomes of a text"""

    @classmethod
    def at(cls, texts: int, each: int) -> Looks:
        """From the first number of texts that can decide, doubling."""
        for first in range(1, texts):
            early = []
            while first * WORTH <= texts:
                early.append(first)
                first *= 2
            if early and exact_interval(0, early[0] * each, EARLY_ERROR / len(early))[1] < LEAST_SHORT:
                return cls((*early, texts), each)
        return cls((texts,), each)

    @property
    def most(self) -> int:
        """Outcomes, when all is asked."""
        return self.texts[-1] * self.each

    @property
    def least(self) -> float:
        """Share of the texts that is asked where nothing is found."""
        return self.texts[0] / self.texts[-1]

    def error(self, outcomes: int) -> float:
        """What an interval may miss that is made after so many outcomes."""
        if len(self.texts) == 1:
            return ERROR
        return ERROR - EARLY_ERROR if outcomes == self.most else EARLY_ERROR / (len(self.texts) - 1)

    def why_enough(self, values: Sequence[float]) -> str:
        """Why no more is asked after these outcomes, 0 or 1 each, of all depths; empty: it goes on."""
        if len(values) == self.most:
            return ""
        low, high = exact_interval(round(sum(values)), len(values), self.error(len(values)))
        if high >= LEAST_SHORT:
            return ""
        share = f"[{low:.2f}, {high:.2f}]"
        return f"{share} after {len(values)} of {self.most}: fewer than {LEAST_SHORT:g} are found"


@cache
def exact_interval(successes: int, trials: int, error: float) -> Interval:
    """Clopper and Pearson's interval of a share: misses it with probability `error` at most."""
    from scipy.special import betaincinv  # a tenth of a second, which `runs show` may not need

    failures = trials - successes
    low = float(betaincinv(successes, failures + 1, error / 2)) if successes else 0.0
    high = float(betaincinv(successes + 1, failures, 1 - error / 2)) if failures else 1.0
    return low, high


def stopped_early(scores: Iterable[Score]) -> list[str]:
    """The tasks that were not asked all they might have been: where, what was found, and why."""
    return [
        f"{score.task} at {score.context_tokens:,} tokens {score.stopped}"
        for score in scores
        if score.stopped and score.depth is None and not score.task.endswith((NO_NEEDLE, CHOICE, NATS))
    ]
