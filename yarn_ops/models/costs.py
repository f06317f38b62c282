"""What a context length costs: bytes of the KV cache for MHA, GQA and MQA, and FLOP of the prefill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BYTES = 2
"""of an element of the KV cache: bfloat16"""


@dataclass(frozen=True)
class Dimensions:
    """The sizes of a decoder that these costs depend on."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    parameters: int

    @property
    def sharing(self) -> str:
        """How query heads share key-value heads: MHA, GQA or MQA."""
        if self.kv_heads == self.heads:
            return "MHA"
        return "MQA" if self.kv_heads == 1 else "GQA"


@dataclass(frozen=True)
class LengthCost:
    """The costs of one text of `context_tokens` tokens."""

    context_tokens: int
    kv_bytes: int
    """of the KV cache, with the model's key-value heads"""
    kv_bytes_mha: int
    """if every query head had a key-value head of its own"""
    kv_bytes_mqa: int
    """if all query heads shared one key-value head"""
    prefill_flops: float
    attention_share: float
    """attention's part of `prefill_flops`, 0..1"""


def dimensions_of(config: Mapping[str, Any], parameters: int) -> Dimensions | None:
    """The dimensions that a config states in the usual names; None when it has others."""
    try:
        heads = int(config["num_attention_heads"])
        width = int(config["hidden_size"])
        return Dimensions(
            layers=int(config["num_hidden_layers"]),
            width=width,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or width // heads),
            parameters=parameters,
        )
    except (KeyError, TypeError, ValueError):
        return None


def costs(model: Dimensions, lengths: Sequence[int]) -> tuple[LengthCost, ...]:
    """One forward over each length; a multiply-add is two operations, causal attention half a square."""
    return tuple(_cost(model, length) for length in lengths)


def _cost(model: Dimensions, length: int) -> LengthCost:
    head_bytes = 2 * model.layers * model.head_dim * BYTES * length
    attention = 2.0 * model.layers * model.heads * model.head_dim * length**2
    flops = 2.0 * model.parameters * length + attention
    return LengthCost(
        length, head_bytes * model.kv_heads, head_bytes * model.heads, head_bytes, flops, attention / flops
    )
