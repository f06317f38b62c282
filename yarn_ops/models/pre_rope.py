"""Pre-RoPE keys: a cache keeps keys unrotated and rotates them when they are read, at any position.

A rotary embedding enters attention through differences of positions, and a cache of rotated keys has fixed
these. Here the model hands out queries and keys unrotated (its rotary module is replaced by one that rotates
by 0, its attention by the memory's `attend`). A memory keeps them, selects what a query sees, and rotates
that as if it were the whole text. No class of the model is changed, and outside of `run` the model is
unchanged.

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
    """A memory that computes attention."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention of the next Q tokens [H, Q, D], from their unrotated queries [H, Q, D], keys and values
        [G, Q, D]; `scaling`: of the logits."""


class Rotation:
    """A model's own rotary embedding, at any position."""

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
        """x [..., n, D] rotated to integer positions [n]."""
        cos, sin = (part[0] for part in self._rotary(x, positions[None]))
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin


def run(model: PreTrainedModel, memory: Attending, ids: Tensor, last: int) -> Tensor:
    """Logits (float32 [last, V]) after the last tokens of `ids` [Q], with attention computed by `memory`."""
    with torch.inference_mode(), _unturned(model):
        logits = model(input_ids=ids[None], use_cache=False, logits_to_keep=last, memory=memory).logits
    return logits[0].float()


class _NoRotation(nn.Module):
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos 1 and sin 0, [1, 1, 1]."""
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
    """transformers' attention function: queries [1, H, Q, D] to outputs [1, Q, H, D]."""
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
