"""A model's capacity in one record: what was measured, how far it sees and uses, what a length costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from yarn_ops.atomic import atomic_write
from yarn_ops.evals.attention import Diagnosis
from yarn_ops.evals.reach import Length, Reach
from yarn_ops.models.costs import Dimensions, LengthCost
from yarn_ops.scores import Scorecard

FILE = "scores.json"


@dataclass(frozen=True)
class Capacity:
    """Of one model, as measured by one evaluation."""

    name: str
    card: Scorecard
    context_tokens: int
    """what the model says that it reads"""
    lengths: tuple[int, ...]
    skipped: dict[str, str]
    reach: Reach
    dimensions: Dimensions | None
    costs: tuple[LengthCost, ...]
    diagnosis: Diagnosis | None = None

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
    """Into `folder`, whole, for `read_capacity`."""
    with atomic_write(folder / FILE) as draft:
        draft.write_bytes(CAPACITY.dump_json(capacity, indent=1))


def read_capacity(folder: Path, name: str) -> Capacity:
    """As it was written there, under another name."""
    return replace(CAPACITY.validate_json((folder / FILE).read_bytes()), name=name)


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
