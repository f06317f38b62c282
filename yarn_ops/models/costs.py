"""What a length costs: keys and values in memory, arithmetic of reading it, for each sharing of KV heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BYTES = 2
"""of a cached number: bfloat16"""


@dataclass(frozen=True)
class Dimensions:
    """Of a decoder, as far as it costs."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    parameters: int

    @property
    def sharing(self) -> str:
        """MHA, GQA or MQA."""
        if self.kv_heads == self.heads:
            return "MHA"
        return "MQA" if self.kv_heads == 1 else "GQA"


@dataclass(frozen=True)
class LengthCost:
    """Of one text of `context_tokens` tokens."""

    context_tokens: int
    kv_bytes: int
    """as the model is"""
    kv_bytes_mha: int
    """had every head keys of its own"""
    kv_bytes_mqa: int
    """did all heads share one"""
    prefill_flops: float
    attention_share: float
    """of `prefill_flops`, 0..1"""


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
