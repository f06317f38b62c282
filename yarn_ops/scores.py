"""What evaluations measured of models, and what was decided by it: scores, a gate's verdict, comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from yarn_ops.records import Frozen, Record


class Score(Frozen):
    """One cell of an evaluation."""

    task: str
    """perplexity/single-pass, perplexity/sliding, loss-by-position, recall/code, recall/prose, …"""
    context_tokens: int
    depth: float | None = None
    """where the answer lies, 0 = farthest from the question, 1 = nearest; None: over all depths"""
    value: float
    low: float | None = None
    high: float | None = None  # 95 % interval
    samples: int
    seed: int
    items: tuple[float, ...] = ()
    """what `value` sums up, in an order that is the same for every model: the mean loss of each window in
    nats, or 1 and 0 for each pair found or not; empty where only the sum was kept"""
    error: float = 0.05
    """how often the interval may miss; less where what was asked was looked at several times"""
    stopped: str = ""
    """why fewer samples were asked than might have been; empty: all were"""

    @classmethod
    def of(
        cls, task: str, context_tokens: int, value: float, interval: tuple[float, float] | None,
        samples: int, seed: int, *, depth: float | None = None, items: Sequence[float] = (),
        error: float = 0.05, stopped: str = "",
    ) -> Score:  # fmt: skip
        """With the bounds of its interval, or none."""
        low, high = interval or (None, None)
        return cls(
            task=task, context_tokens=context_tokens, depth=depth, value=value, low=low, high=high,
            samples=samples, seed=seed, items=tuple(items), error=error, stopped=stopped,
        )  # fmt: skip

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval; where there is none, the value twice."""
        return self.interval or (self.value, self.value)


@dataclass(frozen=True)
class CellKey:
    """One cell of an evaluation, or a block of one: the same key is the same figures."""

    checkpoint_digest: str
    protocol: str
    """digest of everything else that moves the figures: documents, precision, how much is asked"""
    cell: str
    context_tokens: int
    seed: int


class SameCell(NamedTuple):
    """What a score was asked, whichever model answered: scores of the same one are comparable."""

    protocol: str
    """digest of everything but what follows that moves the figure (`CellKey.protocol`)"""
    task: str
    context_tokens: int
    depth: float | None
    seed: int


class Scorecard(Record):
    model_digest: str
    original_context_tokens: int
    scores: tuple[Score, ...]

    def score(self, task: str, context_tokens: int, depth: float | None = None) -> Score | None:
        """Of a task at a length, over all depths or at one; None when it was not measured."""
        wanted = (task, context_tokens, depth)
        return next((s for s in self.scores if (s.task, s.context_tokens, s.depth) == wanted), None)

    def value(self, task: str, context_tokens: int) -> float | None:
        """What `score` says over all depths."""
        score = self.score(task, context_tokens)
        return None if score is None else score.value

    def by_length(self, task: str) -> list[Score]:
        """Over all depths, the shortest length first."""
        found = [score for score in self.scores if score.task == task and score.depth is None]
        return sorted(found, key=lambda score: score.context_tokens)

    def by_depth(self, task: str, context_tokens: int) -> list[Score]:
        """At a length, the farthest from the question first."""
        wanted = (task, context_tokens)
        found = [s for s in self.scores if (s.task, s.context_tokens) == wanted and s.depth is not None]
        return sorted(found, key=lambda score: score.depth or 0.0)


Each = TypeVar("Each")


class BeforeAfter(NamedTuple, Generic[Each]):
    """The same of a base, before, and of what was made of it, after."""

    before: Each
    after: Each


class Check(Frozen):
    """One condition of the gate, as decided."""

    name: str
    measured: float | None
    threshold: float
    passed: bool
    reason: str


class Share(Record):
    """How much of an evaluation one helper has measured; the scores are the evaluation's."""

    blocks: int


class Verdict(Record):
    passed: bool
    checks: tuple[Check, ...]

    @property
    def reasons(self) -> str:
        """The failed checks' reasons in one line; the passed ones' when all passed."""
        return "; ".join(check.reason for check in self.checks if check.passed == self.passed)


class Contender(Frozen):
    """One arm of a comparison: a method, zero-shot or trained."""

    method: str
    arm: str
    trained_parameters: int
    scores: Scorecard
    verdict: Verdict

    @property
    def name(self) -> str:
        return f"{self.method}, {self.arm}"


class Comparison(Record):
    """Methods side by side; the tree holds table, picture and rows."""

    original_context_tokens: int
    target_context_tokens: int
    contenders: tuple[Contender, ...]
    winner: str | None
    """name of the contender; None when none passed the gate"""
    pictures: tuple[str, ...]


class Fit(Record):
    """Parameters of a RoPE method searched on held-out text; gains are of loss, in nats a token."""

    rope: dict[str, Any]
    """values of a recipe's rope section: what was found, or the method's defaults"""
    adopted: bool
    """whether `rope` is what was found: its gain on fresh text is above 0 with its whole interval"""
    found: dict[str, Any]
    search_gain_nats: float
    """on the text it was chosen by: too good to be true"""
    gain_nats: float
    """of `found` against the defaults, on documents the search has not seen"""
    low_nats: float
    high_nats: float  # 95 % interval of `gain_nats`, over windows
    short_gain_nats: float  # the part of it within the original context
    default_loss_nats: float
    windows: int
    target_context_tokens: int
    unservable: dict[str, str]
    """engines that cannot serve `rope`, with their reasons"""
    evaluations: int
    tokens: int
    seconds: float
