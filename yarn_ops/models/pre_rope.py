"""Keys that are turned when they are read, so that a memory may lay them out at new positions.

A rotary embedding enters attention through the difference of two positions alone, and a cache that holds
turned keys has fixed those positions for good. Here the model hands out queries and keys unturned (its
rotary module is exchanged for one that turns by nothing, its attention for `attend`), and a memory keeps
them so, chooses what a query sees, and lays that out as if it were all there is. No class of the model is
changed, and outside a forward of ours the model is what it was.

Axes: H query heads, G key heads, R = H/G, Q queries, K keys, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from yarn_ops.errors import EvaluationError
from yarn_ops.rope.proof import rotary_modules

ATTENTION = "yarn-ops-pre-rope"
LENGTH_DEPENDENT_TYPES = ("dynamic", "dynamic-yarn", "longrope")
"""rope_type of modules whose frequencies change with the length: a packed layout has no length to go by"""


class Attending(Protocol):
    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Unturned query [H, Q, D], key and value [G, Q, D] of the tokens that come next -> [H, Q, D]."""


class Rotation:
    """The model's own rotation at any position."""

    def __init__(self, model: PreTrainedModel) -> None:
        """EvaluationError where the frequencies depend on the length or a layer has a window of its own."""
        name = type(model).__name__
        found = [module for _, module in rotary_modules(model)]
        if len({id(module) for module in found}) != 1 or not hasattr(model.base_model, "rotary_emb"):
            raise EvaluationError(
                f"{name}: not one rotary embedding for all layers; its keys cannot be kept unturned"
            )
        self._rotary: nn.Module = found[0]
        kind = getattr(self._rotary, "rope_type", "default")
        if kind in LENGTH_DEPENDENT_TYPES:
            raise EvaluationError(
                f"{name}: rope_type {kind} depends on the length; keys are laid out anew by static ones only"
            )
        if getattr(model.config, "sliding_window", None):
            raise EvaluationError(
                f"{name}: its layers have a sliding window; only full attention can be remade"
            )

    def turn(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [..., n, D] at integer positions [n]."""
        cos, sin = (part[0] for part in self._rotary(x, positions[None]))
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin


def run(model: PreTrainedModel, memory: Attending, ids: Tensor, last: int) -> Tensor:
    """Logits float32 [last, V] of a forward over `ids` [Q] whose attention is the memory's."""
    with torch.inference_mode(), _unturned(model):
        logits = model(input_ids=ids[None], use_cache=False, logits_to_keep=last, memory=memory).logits
    return logits[0].float()


class _NoRotation(nn.Module):
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin that leave queries and keys as they are, [1, 1, 1]."""
        one = x.new_ones(1, 1, 1)
        return one, torch.zeros_like(one)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    memory: Attending,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: [1, H, Q, D] to [1, Q, H, D]."""
    layer: Any = module.layer_idx
    return memory.attend(layer, query[0], key[0], value[0], scaling).transpose(0, 1)[None], None


@contextmanager
def _unturned(model: PreTrainedModel) -> Iterator[None]:
    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)
    backbone, config = model.base_model, model.config
    rotary, attention = backbone.rotary_emb, config._attn_implementation
    backbone.rotary_emb, config._attn_implementation = _NoRotation(), ATTENTION
    try:
        yield
    finally:
        backbone.rotary_emb, config._attn_implementation = rotary, attention
