"""The forward of a model of Llama's shape without its modules: the same products, a third of the calls.

A small model's forward on a GPU waits for Python: transformers calls some fifty kernels a layer through
twenty modules. Here a layer is twenty calls, attention is that of `suffix`, and keys and values lie in the
cache that transformers has. It stands in for the base model's own forward, which is still asked for
attentions. Weights are read where they are; nothing is copied and nothing learns.

Axes: B texts, T tokens, H query heads, G key heads, K head width, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from yarn_ops.models.device import unsupported
from yarn_ops.models.suffix import Kernel, suffix_attention


def served(model: PreTrainedModel) -> bool:
    """Whether `LeanForward` computes what this model does, at all lengths."""
    limit = getattr(model.config, "max_position_embeddings", None) or 0
    return unsupported(model, max(limit, 1 << 20)) is None and not model.training


def install(model: PreTrainedModel, kernel: Kernel) -> None:
    """Run the base model by `LeanForward` until `remove`."""
    remove(model)
    base: Any = model.base_model
    base.forward = LeanForward(base, kernel)


def remove(model: PreTrainedModel) -> None:
    """The base model's own forward again."""
    vars(model.base_model).pop("forward", None)


@contextmanager
def own_forward(model: PreTrainedModel) -> Iterator[None]:
    """While it lasts, the base model runs by its own forward, whatever is installed."""
    base: Any = model.base_model
    installed = vars(base).pop("forward", None)
    try:
        yield
    finally:
        if installed is not None:
            base.forward = installed


def installed(model: PreTrainedModel) -> bool:
    return isinstance(vars(model.base_model).get("forward"), LeanForward)


class LeanForward:
    """Token ids to hidden states after the last norm."""

    def __init__(self, base: Any, kernel: Kernel) -> None:
        """base: embedding, layers, last norm and rotary embedding, as transformers names them."""
        self._base, self._kernel, self._own = base, kernel, base.forward

    def __call__(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **options: Any,
    ) -> Any:
        """input_ids: int64 [B, T]; position_ids: the same, None: behind what the cache holds; attention_mask:
        bool [1, 1, T, keys], None: each token sees those up to itself."""
        if options.get("output_attentions"):
            return self._own(
                input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask,
                past_key_values=past_key_values, use_cache=use_cache, **options,
            )  # fmt: skip
        base, cache = self._base, past_key_values if use_cache else None
        if position_ids is None:
            start = 0 if cache is None else cache.get_seq_length()
            position_ids = torch.arange(start, start + input_ids.shape[1], device=input_ids.device)[None]
        x = base.embed_tokens(input_ids)
        cos, sin = base.rotary_emb(x, position_ids)
        half = sin.shape[-1] // 2
        signed = torch.cat((-sin[..., :half], sin[..., half:]), -1)
        rotation = cos[:, :, None], signed[:, :, None]
        for place, layer in enumerate(base.layers):
            x = self._attended(x, layer, place, rotation, cache, attention_mask)
            normal, mlp = _normed(x, layer.post_attention_layernorm), layer.mlp
            hidden = F.silu(_product(normal, mlp.gate_proj)).mul_(_product(normal, mlp.up_proj))
            x = _added(x, hidden, mlp.down_proj)
        return BaseModelOutputWithPast(last_hidden_state=_normed(x, base.norm), past_key_values=cache)

    def _attended(
        self, x_BTD: Tensor, layer: Any, place: int, rotation: tuple[Tensor, Tensor], cache: Any,
        seen: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """x and what attention adds to it."""
        attention, normal = layer.self_attn, _normed(x_BTD, layer.input_layernorm)
        by_head = (*x_BTD.shape[:2], -1, attention.head_dim)
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        q, k, v = (_product(normal, linear).view(by_head) for linear in projections)
        if hasattr(attention, "q_norm"):
            q, k = _normed(q, attention.q_norm), _normed(k, attention.k_norm)
        turned = _rotated(torch.cat((q, k), 2), rotation)
        q, k = (heads.transpose(1, 2) for heads in turned.split([q.shape[2], k.shape[2]], 2))
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.update(k, v, place)
        output = suffix_attention(self._kernel, q, k, v, seen, float(attention.scaling))
        return _added(x_BTD, output.transpose(1, 2).reshape(*x_BTD.shape[:2], -1), attention.o_proj)


def _normed(x: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def _rotated(heads_BTHK: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Each pair of dimensions (i, i + K/2) turned; the sines' first half is negated."""
    cos, signed_sin = rotation
    first, second = heads_BTHK.chunk(2, -1)
    return (heads_BTHK * cos).addcmul_(torch.cat((second, first), -1), signed_sin)


def _product(x: Tensor, linear: Any) -> Tensor:
    return F.linear(x, linear.weight, linear.bias)


def _added(x_BTD: Tensor, y: Tensor, linear: Any) -> Tensor:
    """x + linear(y)."""
    if linear.bias is not None:
        return _product(y, linear).add_(x_BTD)
    return torch.addmm(x_BTD.flatten(0, 1), y.flatten(0, 1), linear.weight.t()).view(x_BTD.shape)
