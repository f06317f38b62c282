"""What to do with an extended model, read off the measurements before and after.

Two questions. Does the model use the whole target? If recall or perplexity breaks before it, a shorter one is
sufficient, and static scaling costs short texts less the shorter it is. And does it cost short texts so much
that the base should go on serving them?
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from yarn_ops.evals.intervals import asked_of_both, change_interval, figure, loss_change_interval
from yarn_ops.evals.names import LAST_QUARTER, RECALL, template_of
from yarn_ops.scores import BeforeAfter, Score, Scorecard

HELD_RECALL = 0.9
"""share of its own recall at the original context that a length has to keep to count as used"""
HELD_PERPLEXITY = 1.1
"""most growth of perplexity over that at the original context; the shipped gates' max_long_growth"""
SHORT_LOSS = 0.02
"""growth of perplexity within the original context from which on two models are worth their memory"""
SHORT_RECALL_LOSS = 0.05


@dataclass(frozen=True)
class Advice:
    """`uses_tokens` None: not measured beyond the original context."""

    uses_tokens: int | None
    """the longest length up to which the model holds at every one that was measured"""
    side_by_side: bool
    """whether texts within the original context should go on to the base"""
    reasons: tuple[str, ...]
    """one sentence on the target, one on serving; what was not measured is left out"""


@dataclass(frozen=True)
class _Change:
    """After against before: of log perplexity, or of recall."""

    task: str
    context_tokens: int
    value: float
    interval: tuple[float, float] | None
    """95 %, of the differences window by window or pair by pair: both were asked the same"""

    @property
    def of_perplexity(self) -> bool:
        return self.task == LAST_QUARTER

    @property
    def harm(self) -> float:
        """How much worse it became."""
        return self.value if self.of_perplexity else -self.value

    @property
    def tolerated(self) -> float:
        return math.log(1 + SHORT_LOSS) if self.of_perplexity else SHORT_RECALL_LOSS


def advise(scores: BeforeAfter[Scorecard], target_context_tokens: int) -> Advice:
    """Advice on a promoted model, from the same measurements of a base and of its extension."""
    before, after = scores
    original = after.original_context_tokens
    uses_tokens, on_target = _used(after, original, target_context_tokens)
    short = list(_short_changes(before, after, original))
    of_kinds = ([one for one in short if one.of_perplexity], [one for one in short if not one.of_perplexity])
    changes = [max(some, key=lambda change: change.harm) for some in of_kinds if some]
    too_much = [change for change in changes if change.harm > change.tolerated]
    reasons = [*on_target]
    if too_much:
        reasons.append(
            "serve base and extended side by side (yarn-ops router), "
            f"texts up to {original:,} tokens by the base: {' and '.join(map(_told, too_much))}"
        )
    elif changes:
        reasons.append(f"serve the extended model alone: at worst, {' and '.join(map(_told, changes))}")
    return Advice(uses_tokens=uses_tokens, side_by_side=bool(too_much), reasons=tuple(reasons))


def _used(after: Scorecard, original: int, target: int) -> tuple[int | None, list[str]]:
    lengths = {score.context_tokens for score in _scores(after)}
    longer = sorted(length for length in lengths if original < length <= target)
    if not longer:
        return None, []
    used = original
    for length in longer:
        if fault := next(_faults(after, original, length), None):
            rest = "ask for no more" if used > original else "nothing is gained beyond it"
            return used, [f"{fault}; the model uses {used:,} tokens, {rest}"]
        used = length
    return used, [f"the model uses {used:,} tokens, the longest measured up to its target"]


def _faults(after: Scorecard, original: int, length: int) -> Iterator[str]:
    """Why a length does not count as used; a recall whose interval reaches what is asked holds."""
    for short in _scores(after):
        long = after.score(short.task, length)
        if short.context_tokens != original or long is None:
            continue
        if short.task == LAST_QUARTER:
            short, long = asked_of_both(short, long)
            broken, what = long.value > HELD_PERPLEXITY * short.value, "perplexity"
            figures = f"{long.value:.1f} against {short.value:.1f}"
        else:
            broken, what = long.bounds[1] < HELD_RECALL * short.value, f"{template_of(short.task)} recall"
            figures = f"{figure(long)} against {short.value:.2f}"
        if broken:
            yield f"at {length:,} tokens {what} is {figures} at {original:,}"


def _short_changes(before: Scorecard, after: Scorecard, original: int) -> Iterator[_Change]:
    """Of perplexity and of recall, at every length up to the original context."""
    for old in _scores(before):
        new = after.score(old.task, old.context_tokens)
        if new is None or old.context_tokens > original:
            continue
        old, new = asked_of_both(old, new)
        value, interval = new.value - old.value, change_interval(old, new, "difference")
        if old.task == LAST_QUARTER:
            value, interval = math.log(new.value / old.value), loss_change_interval(old, new)
        yield _Change(old.task, old.context_tokens, value, interval)


def _told(change: _Change) -> str:
    told, name = (
        (_percent, "perplexity") if change.of_perplexity else (_signed, f"{template_of(change.task)} recall")
    )
    low_high = "" if change.interval is None else f" [{', '.join(map(told, change.interval))}]"
    return f"{name} at {change.context_tokens:,} tokens changes by {told(change.value)}{low_high}"


def _signed(change: float) -> str:
    return f"{round(change, 2) + 0.0:+.2f}"  # + 0.0: not -0.00


def _percent(log_ratio: float) -> str:
    return f"{100 * math.expm1(log_ratio):+.1f} %"


def _scores(card: Scorecard) -> Iterator[Score]:
    """Over all depths: perplexity of the last quarter and recall in each template."""
    return (score for score in card.scores if score.depth is None and score.task in (LAST_QUARTER, *RECALL))
