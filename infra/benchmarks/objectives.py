"""Objectives on text alone, to compare exercises with: what each token's loss weighs.

    python infra/benchmarks/objectives.py BASE DOCUMENTS_GLOB OUT text:objective=longce [ARM …] --batch 1

An ARM as in use.py, with the key objective: `longce` (Fang et al., What is Wrong with Perplexity for
Long-context Language Modeling?, 2024) or `position`. Where the objective is left out, use.py's own.

- `longce`: exp of what a token's loss falls by with the whole window before it instead of a short context, at
  most 5. Tokens without a whole short context before them weigh 1.
- `position`: in proportion to how far from the window's begin a token stands, 1 on average: the effective
  context that EXACT (2026) weighs by, where a window is one document.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import use
from torch import Tensor
from use import Bench, main

from yarn_ops.models.head import Head
from yarn_ops.train.batches import Batch
from yarn_ops.train.loop import Loop
from yarn_ops.train.loss import summed_loss

SHORT_TOKENS, STRIDE_TOKENS = 4096, 1024
"""a short context, and how many of its last tokens are judged by it"""
AT_ONCE = 8
"""short contexts of one forward"""
HEAVIEST = 5.0

Nats = Callable[[Tensor, Tensor], Tensor]
"""inputs and targets, int64 [B, T] -> each target's loss, float32 [B, T]"""


def weights_of(objective: str, inputs_BT: Tensor, targets_BT: Tensor, nats: Nats) -> Tensor:
    """What each target weighs, float32 [B, T]."""
    tokens = inputs_BT.shape[1]
    if objective == "position":
        rising = torch.arange(1, tokens + 1, device=inputs_BT.device, dtype=torch.float32)
        return (rising * 2 / (tokens + 1)).expand(inputs_BT.shape)
    weights_BT = torch.ones(inputs_BT.shape, device=inputs_BT.device)
    with_all = nats(inputs_BT, targets_BT)
    starts = list(range(0, tokens - SHORT_TOKENS + 1, STRIDE_TOKENS))
    for first in range(0, len(starts), AT_ONCE):
        runs = [slice(start, start + SHORT_TOKENS) for start in starts[first : first + AT_ONCE]]
        short = nats(*(torch.cat([ids[:, run] for run in runs]) for ids in (inputs_BT, targets_BT)))
        for run, with_short in zip(runs, short.split(len(inputs_BT)), strict=True):
            judged = slice(run.stop - STRIDE_TOKENS, run.stop)
            fallen = with_short[:, -STRIDE_TOKENS:] - with_all[:, judged]
            weights_BT[:, judged] = fallen.exp().clamp(max=HEAVIEST)
    return weights_BT


class WeighedLoop(Loop):
    """Trains on text whose tokens weigh by an objective."""

    objective = ""

    def _accumulate(self, batch: Batch, target_tokens: float) -> float:
        if self.objective:
            weights_BT = weights_of(self.objective, batch.inputs_BT, batch.targets_BT, self._nats)
            batch = replace(batch, weights_BT=weights_BT.contiguous())
        return super()._accumulate(batch, target_tokens)

    @torch.no_grad()
    def _nats(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        hidden_ND = self._backbone(inputs_BT, None).flatten(0, 1)
        every = torch.ones(targets_BT.numel(), device=targets_BT.device)
        head = Head.of(self._model, hidden_ND.dtype)
        return summed_loss(hidden_ND, targets_BT.flatten(), head, every)[1].view(targets_BT.shape).float()


class ObjectiveBench(Bench):
    """Trains by the objective that an arm names."""

    def train(self, name: str, keys: dict[str, str]) -> tuple[Any, list[dict[str, Any]]]:
        WeighedLoop.objective = keys.get("objective", "")
        return super().train(name, keys)


if __name__ == "__main__":
    use.Loop = WeighedLoop  # type: ignore[misc]
    main(ObjectiveBench, __doc__)
