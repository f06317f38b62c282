"""A model's capacity in one record: what was measured, how far it sees and uses, what it costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from yarn_ops.evals.capacity.cost import Cost, Shape
from yarn_ops.evals.capacity.heads import Diagnosis
from yarn_ops.evals.capacity.reach import Length, Reach, reach_of
from yarn_ops.evals.perplexity import LAST_QUARTER
from yarn_ops.records import Score, Scorecard

FILE = "capacity.json"


@dataclass(frozen=True)
class Capacity:
    """Of one model, as measured by one suite."""

    name: str
    digest: str
    context_tokens: int
    """what the model says that it reads"""
    original_context_tokens: int
    lengths: tuple[int, ...]
    scores: tuple[Score, ...]
    skipped: dict[str, str]
    reach: Reach
    shape: Shape | None
    costs: tuple[Cost, ...]
    diagnosis: Diagnosis | None = None

    def score(self, task: str, context_tokens: int) -> Score | None:
        """Over all depths; None when it was not measured."""
        wanted = (task, context_tokens, None)
        return next((s for s in self.scores if (s.task, s.context_tokens, s.depth) == wanted), None)

    def parts(self, task: str, context_tokens: int) -> list[Score]:
        """By depth, farthest from the question first."""
        found = [
            score
            for score in self.scores
            if (score.task, score.context_tokens) == (task, context_tokens) and score.depth is not None
        ]
        return sorted(found, key=lambda score: score.depth or 0.0)

    @property
    def verdict(self) -> str:
        """One sentence for a person in a hurry."""
        sees, uses = self.reach.sees, self.reach.uses
        if sees is None and uses is None:
            return "neither seeing nor using was measured"
        if uses is None:
            return f"sees {tokens(sees)}; what it uses was not measured"
        if uses.tokens == 0:
            return f"sees {tokens(sees)}, finds nothing even in short texts"
        about = "uses all of it" if sees and uses.tokens >= sees.tokens else f"uses about {tokens(uses)}"
        return f"sees {tokens(sees)}, {about}" if sees else about


CAPACITY = TypeAdapter(Capacity)


def write_capacity(capacity: Capacity, folder: Path) -> None:
    """Into `folder`, for `read_capacity`."""
    (folder / FILE).write_bytes(CAPACITY.dump_json(capacity, indent=1))


def read_capacity(folder: Path, name: str) -> Capacity:
    """As it was written there, under another name."""
    return replace(CAPACITY.validate_json((folder / FILE).read_bytes()), name=name)


def capacity_of(card: Scorecard, name: str, context_tokens: int) -> Capacity:
    """As far as an extension's own evaluation tells: recall by depth and perplexity by length."""
    measured = {score.context_tokens for score in card.scores if score.task == LAST_QUARTER}
    return Capacity(
        name=name,
        digest=card.model_digest,
        context_tokens=context_tokens,
        original_context_tokens=card.original_context_tokens,
        lengths=tuple(sorted(measured)),
        scores=card.scores,
        skipped={},
        reach=reach_of(card.scores),
        shape=None,
        costs=(),
    )


def tokens(length: Length | int | None) -> str:
    """32k, 24k, 512."""
    if length is None:
        return "?"
    count = length if isinstance(length, int) else length.tokens
    if count >= 1024 and count % 1024 == 0:
        return f"{count // 1024}k"
    return f"{count / 1024:.1f}k" if count >= 10_000 else f"{count:,}"


def interval(length: Length | None) -> str:
    """ "[20k, 28k]", or nothing where both ends are the length itself."""
    if length is None or length.low == length.high:
        return ""
    return f"[{tokens(length.low)}, {tokens(length.high)}]"
