"""Layouts: how the processes of a run share a step by data, context and sharding.

    data     groups, each with its own share of the step's windows
    context  processes of a group, each with an equal part of every window's tokens
    sharded  each process keeps one part of every frozen layer; a layer is gathered while it is used
    optimizer_sharded  each process keeps and updates one part of every parameter that learns
    streamed frozen layers that lie in host memory (mapped: in their files) and are copied a layer ahead

Nothing here loads torch: the launcher asks, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from yarn_ops.models.device import LLAMAS
from yarn_ops.recipe import Train


class Layout(NamedTuple):
    """One layout."""

    data: int = 1
    context: int = 1
    sharded: bool = False
    optimizer_sharded: bool = False
    streamed: int = 0
    """layers; of one process"""
    mapped: bool = False

    @property
    def processes(self) -> int:
        return self.data * self.context

    def describe(self) -> str:
        """Such as `data × 2, context × 2, base sharded`, or `32 layers streamed`."""
        counts = (("data", self.data), ("context", self.context))
        parts = [f"{name} × {count}" for name, count in counts if count > 1]
        parts += ["base sharded"] * self.sharded + ["optimizer sharded"] * self.optimizer_sharded
        if self.streamed:
            parts.append(f"{self.streamed} layers streamed{' from files' * self.mapped}")
        return ", ".join(parts)


@dataclass(frozen=True)
class StepShape:
    """The sizes of a step that decide how it can be shared."""

    windows: int
    """of an optimizer step: the global batch size"""
    batch_windows: int
    """of a micro-batch, at most"""
    tokens: int
    """of a window"""
    heads: int
    kv_heads: int
    ours: bool
    """our own layers (`decoder`) serve the model"""

    @classmethod
    def of(cls, train: Train, tokens: int, config: Mapping[str, Any]) -> StepShape:
        """From a recipe and a model's config.json."""
        heads = int(config.get("num_attention_heads") or 1)
        return cls(
            windows=train.batch_windows * train.gradient_accumulation_steps,
            batch_windows=train.batch_windows,
            tokens=tokens,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            ours=(config.get("architectures") or [""])[0] in LLAMAS,
        )

    def shares(self, processes: int) -> Iterator[tuple[int, int]]:
        """Every possible (data, context) whose product is `processes`, largest `data` first."""
        for context in range(1, processes + 1):
            data = processes // context
            if data * context == processes and self.windows % data == 0 and self._cuts(context):
                yield data, context

    def _cuts(self, context: int) -> bool:
        """Whether so many processes can share a window: equal parts of tokens, a whole number of heads
        each."""
        if context == 1:
            return True
        fewer, more = sorted((self.kv_heads, context))
        return self.ours and self.tokens % context == 0 and self.heads % context == 0 and more % fewer == 0


def usable_processes(available: int, step: StepShape) -> int:
    """The largest number of processes, of those available, that can share a step: windows are shared whole,
    and each of a window's processes has a head at least."""
    most = min(available, step.windows * step.heads)
    return next(count for count in range(most, 0, -1) if any(step.shares(count)))
