"""Dynamic YaRN as a model runs it: frequencies that change with the length, over a cache that does not.

A rotation grows stale in the cache as soon as the scale moves on, so keys are cached unturned and turned
when they are read. That alone does not make a cache exact: the keys and values of a layer come from what
the layers below attended to, at the scale of that moment. If one scale held for the whole sequence, every
token would have to be computed anew whenever it grew. Here the scale belongs to the *query*: the token at
position p attends with s = max(1, (p + 1) / L), whoever follows it. This is what decoding token by token
computes, and it makes any split into chunks, with or without a cache, the same function.

The price: beyond L every query turns all keys before it by frequencies of its own, where static YaRN turns
them once. For short generations and for measuring; train and serve static YaRN.

How it is wired: the model's rotary module hands out no rotation (cos 1, sin 0), so that queries and keys
come unturned into the cache and out of it, and `attend` turns them. No class of the model is changed.

Axes: B batch, H query heads, G key heads, R = H/G, Q queries, K keys, P queries of a block, D head width,
I = D/2 pairs; b = B, or 1 where all rows agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from yarn_ops.errors import RopeError
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.rope.fields import rope_type
from yarn_ops.rope.methods import YARN_TEMPERATURE_SLOPE, Array, inverse_frequencies, ramp

DYNAMIC_YARN = "dynamic-yarn"
"""rope_type in a config.json, and the name of the attention function"""
BLOCK_ELEMENTS = 1 << 23
"""turned keys alive at a time: 32 MiB in float32, about a processor's cache"""


def is_dynamic(config: Mapping[str, Any]) -> bool:
    return rope_type(config) == DYNAMIC_YARN


def unscaled(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the same model without scaling: what transformers can build before `install`."""
    plain = {key: value for key, value in config.items() if key != "rope_scaling"}
    plain["rope_parameters"] = {"rope_type": "default", "rope_theta": rope_spec_of(config).theta}
    return plain


def register_attention() -> str:
    """Make `attend` known to transformers; the name to build a model with."""
    AttentionInterface.register(DYNAMIC_YARN, attend)
    AttentionMaskInterface.register(DYNAMIC_YARN, sdpa_mask)
    return DYNAMIC_YARN


def install(model: Any, config: Mapping[str, Any]) -> None:
    """Put the rotary module of `config` into a model built from `unscaled(config)` with our attention."""
    model.config.rope_parameters = dict(config["rope_parameters"])
    backbone = model.base_model
    backbone.rotary_emb = DynamicRotary(model.config)
    for layer in backbone.layers:
        layer.self_attn.rotary_emb = backbone.rotary_emb
    backbone.register_forward_pre_hook(_require_growing_cache, with_kwargs=True)


class DynamicRotary(nn.Module):
    """Hands out no rotation; knows the rotation of every length."""

    inv_freq: Tensor
    ramp: Tensor
    rope_type = DYNAMIC_YARN
    attention_scaling = 1.0

    def __init__(self, config: Any) -> None:
        """config: a transformers config whose rope_parameters are dynamic-yarn's."""
        super().__init__()
        self.config = config
        spec = rope_spec_of(config.to_dict())
        self.original_context_tokens = spec.original_context_tokens
        self.register_buffer("inv_freq", _float32(inverse_frequencies(spec)), persistent=False)
        self.register_buffer("ramp", _float32(ramp(spec)), persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin that leave queries and keys as they are, [1, 1, D]."""
        if self.config._attn_implementation != DYNAMIC_YARN:
            raise RopeError(
                f"attention: {self.config._attn_implementation} would read unturned keys; "
                "leave a dynamic-yarn model the attention that load_proven gave it"
            )
        one = x.new_ones(1, 1, 2 * len(self.inv_freq))
        return one, torch.zeros_like(one)

    def frequencies(self, length_tokens: Tensor) -> Tensor:
        """float32 [..., I] for lengths [...]."""
        scale = (length_tokens / self.original_context_tokens).clamp(min=1)[..., None]
        return self.inv_freq * (1 - self.ramp) + self.inv_freq / scale * self.ramp

    def logit_scale(self, length_tokens: Tensor) -> Tensor:
        """Square of the attention factor, float32 [...] for lengths [...]."""
        scale = (length_tokens / self.original_context_tokens).clamp(min=1)
        return (YARN_TEMPERATURE_SLOPE * scale.log() + 1) ** 2


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    position_ids: Tensor,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: unturned queries [B, H, Q, D] and keys [B, G, K, D], the last Q of
    which are the queries' own, to [B, Q, H, D].

    `position_ids` [1 or B, Q] say how long the text before a query is, the key buffer how far apart tokens
    are: padding in front does not lengthen a text, nor does the document packed before it.
    """
    rotary = cast(DynamicRotary, module.rotary_emb)
    places_K = torch.arange(key.shape[2], device=key.device)
    places_Q = places_K[-query.shape[2] :]

    def within(query: Tensor, places: Tensor, mask: Tensor | None) -> Tensor:
        turned = (
            _turn(query, rotary.inv_freq * places[:, None]),
            _turn(key, rotary.inv_freq * places_K[:, None]),
        )
        return sdpa_attention_forward(module, *turned, value, mask, dropout=dropout, scaling=scaling)[0]

    if len(places_K) <= rotary.original_context_tokens:
        return within(query, places_Q, attention_mask), None
    if attention_mask is None:
        attention_mask = (places_K <= places_Q[:, None])[None, None]
    is_beyond_Q = (position_ids >= rotary.original_context_tokens).any(0)
    output_BQHD = torch.empty_like(query.transpose(1, 2), dtype=value.dtype)
    if len(near := (~is_beyond_Q).nonzero()[:, 0]):
        output_BQHD[:, near] = within(query[:, :, near], places_Q[near], attention_mask[:, :, near])
    block = max(1, BLOCK_ELEMENTS // key.numel())
    for far in is_beyond_Q.nonzero()[:, 0].split(block):
        output_BQHD[:, far] = checkpoint(
            _beyond, rotary, query[:, :, far], key, value, attention_mask[:, :, far], scaling, dropout,
            places_Q[far], position_ids[:, far] + 1, use_reentrant=False,
        )  # fmt: skip
    return output_BQHD, None


def _beyond(
    rotary: DynamicRotary,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float,
    dropout: float,
    places_P: Tensor,
    lengths_bP: Tensor,
) -> Tensor:
    """Attention of a block of queries, each at the scale of its own length: [B, P, H, D]."""
    end = int(places_P[-1]) + 1  # later keys are masked anyway
    key, value, mask = key[:, :, :end], value[:, :, :end], mask[..., :end]
    places_K = torch.arange(end, device=key.device)
    frequencies_bPI = rotary.frequencies(lengths_bP)
    query = _turn(query, (frequencies_bPI * places_P[:, None])[:, None])
    turned_BPGKD = _turn(key[:, None], (frequencies_bPI[:, :, None] * places_K[:, None])[:, :, None])

    query_BGRPD = query.unflatten(1, (key.shape[1], -1))
    logits_BGRPK = torch.einsum("bgrpd,bpgkd->bgrpk", query_BGRPD, turned_BPGKD).float()
    logits_BGRPK *= scaling * rotary.logit_scale(lengths_bP)[:, None, None, :, None]
    if mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    weights_BGRPK = F.dropout((logits_BGRPK + mask[:, :, None]).softmax(-1), dropout).to(value.dtype)
    return torch.einsum("bgrpk,bgkd->bpgrd", weights_BGRPK, value).flatten(2, 3)


def _turn(x: Tensor, angles: Tensor) -> Tensor:
    """x [..., D], halves paired, turned by angles [..., I] in float32."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _require_growing_cache(module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    cache = named.get("past_key_values")
    if cache is not None and not isinstance(cache, DynamicCache):
        raise RopeError(
            "past_key_values: dynamic-yarn counts the keys of a growing cache, not of a "
            f"{type(cache).__name__}; use DynamicCache"
        )


def _float32(values: Array) -> Tensor:
    return torch.from_numpy(values).float()
