"""Asking in groups until it is decided: when a cell's outcomes are looked at, and what each look may err.

Needles are asked text by text. After some of the texts their outcomes are looked at, and where fewer than a
tenth are surely found, the rest is not asked: so little is no use of a length, by the gate and by the report.
A base far beyond its context ends there; a model that finds its needles is asked them all.

Whoever looks several times errs more often than at each. So the looks share the 5 % that a 95 % interval may
miss: each has its part of it, whatever was seen before (Bonferroni), and an interval covers at every look and
at the one that was the last. Early ones are Clopper and Pearson's, which cover for every share and count.

Perplexity is asked window by window, and no more once it has surely exploded beside that of the same tokens
after less context. Its early looks have a thousandth together, beside the 5 % of the last, whose interval is
that of windows asked all at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from yarn_ops.evals.intervals import ERROR, Interval, mean_interval
from yarn_ops.evals.names import CHOICE, LAST_QUARTER, NATS, NO_NEEDLE
from yarn_ops.evals.reach import LEAST_SHORT
from yarn_ops.scores import Score

EARLY_ERROR = 0.01
"""of the early looks together; the last has the rest of the 5 %"""
WORTH = 1.5
"""times what was asked is all that may be asked, at least, or a look is not worth its error"""
EXPLODED = math.log(2)
"""nats that more context costs the same tokens: far more than at a length that is seen (`BLOW_UP`)"""
EXPLODED_ERROR = 0.001
"""of the early looks at a perplexity together, beside the 5 % of the last"""
FIRST_WINDOWS = 8
"""of the first look at a perplexity: Student's interval of fewer is too wide to decide"""


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


@dataclass(frozen=True)
class WindowLooks:
    """After how many windows a perplexity is looked at."""

    windows: tuple[int, ...]
    """ascending; the last is all that may be asked"""

    @classmethod
    def at(cls, windows: int, group: int) -> WindowLooks:
        """From the first number that can decide, doubling, in multiples of `group`."""
        early, some = [], math.ceil(FIRST_WINDOWS / group) * group
        while some * WORTH <= windows:
            early.append(some)
            some *= 2
        return cls((*early, windows))

    @property
    def least(self) -> float:
        """Share of the windows that is asked of an exploded perplexity."""
        return self.windows[0] / self.windows[-1]

    def error(self, windows: int) -> float:
        """What an interval may miss that is made after so many windows."""
        return ERROR if windows == self.windows[-1] else EXPLODED_ERROR / (len(self.windows) - 1)

    def why_enough(self, rises: Sequence[float]) -> str:
        """Why no more is asked after these windows, of each what more context costs the same tokens in nats;
        empty: it goes on."""
        if len(rises) not in self.windows[:-1]:
            return ""
        low, high = mean_interval(rises, self.error(len(rises))) or (-math.inf, math.inf)
        if low <= EXPLODED:
            return ""
        asked = f"{len(rises)} of {self.windows[-1]} windows"
        return f"[{low:.1f}, {high:.1f}] nats above less context, after {asked}: it has exploded"


@cache
def exact_interval(successes: int, trials: int, error: float) -> Interval:
    """Clopper and Pearson's interval of a share: misses it with probability `error` at most."""
    from scipy.special import betaincinv  # a tenth of a second, which `runs show` may not need

    failures = trials - successes
    low = float(betaincinv(successes, failures + 1, error / 2)) if successes else 0.0
    high = float(betaincinv(successes + 1, failures, 1 - error / 2)) if failures else 1.0
    return low, high


def stopped_early(scores: Iterable[Score]) -> list[str]:
    """The tasks that were not asked all they might have been: where, what was found, and why. Of scores that
    stop with another one, that one alone."""
    return [
        f"{score.task} at {score.context_tokens:,} tokens {score.stopped}"
        for score in scores
        if score.stopped and score.depth is None and not _stops_with_another(score.task)
    ]


def _stops_with_another(task: str) -> bool:
    with_perplexity = task.startswith(("perplexity/", "loss")) and not task.startswith(LAST_QUARTER)
    return with_perplexity or task.endswith((NO_NEEDLE, CHOICE, NATS))
