"""Attention of a text's last rows over all of it, without a mask in memory, for CUDA.

PyTorch's kernels know this shape as `causal_lower_right`; transformers would build a mask of rows × keys,
which the quick kernels refuse.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

NAME = "yarn-ops-suffix"


def register_attention() -> str:
    """Make `attend` known to transformers; the name to set a model to."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, _no_mask)
    return NAME


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """query [B, heads, rows, D], key and value [B, KV heads, keys, D] -> [B, rows, heads, D].

    Without a mask, row r of R sees keys up to keys - R + r.
    """
    rows, keys = query.shape[2], key.shape[2]
    if attention_mask is not None or rows == keys or rows == 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    groups = query.shape[1] // key.shape[1]
    attended = F.scaled_dot_product_attention(
        query,
        repeat_kv(key, groups),
        repeat_kv(value, groups),
        attn_mask=causal_lower_right(rows, keys),
        scale=scaling,
    )
    return attended.transpose(1, 2).contiguous(), None


def _no_mask(*sizes: Any, **options: Any) -> None:
    """Nothing is padded, so causality is all that a mask would say; packed questions bring their own."""
