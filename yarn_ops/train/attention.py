"""Causal attention of packed documents, forward and backward, by a kernel that the caller names.

For query t and the keys j ≤ t of its document, head by head:

    s_tj     = q_t · k_j / √K                          lse_t = log Σ_j exp s_tj
    p_tj     = exp(s_tj − lse_t)                       output_t = Σ_j p_tj v_j

Given grad_t = ∂loss/∂output_t (Dao 2023, "FlashAttention-2", algorithm 2):

    grad_v_j = Σ_t p_tj grad_t
    ds_tj    = p_tj (grad_t · v_j − grad_t · output_t)
    grad_q_t = Σ_j ds_tj k_j / √K                      grad_k_j = Σ_t ds_tj q_t / √K

Where query heads share a key-value head, grad_k and grad_v are sums over them. The backward needs q, k, v,
output and lse; which of them are kept is the layer's choice. A kernel that is not there fails: none stands
in for another.

    fa4     GPU, bf16: FlashAttention-4, where its package is installed and the chip is Hopper or Blackwell
    cudnn   GPU, bf16, one document a window: the fastest that torch brings along for Hopper
    flash   GPU, bf16: FlashAttention-2
    cpu     torch's blocked kernel, document by document; float64, float32 or bf16

Axes in names: B windows, T tokens, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from yarn_ops.errors import TrainError
from yarn_ops.models.suffix import compiling_ahead, flash_attention_4

Kernel = Literal["fa4", "cudnn", "flash", "cpu"]
aten = torch.ops.aten
LARGEST_HEAD = 128  # cuDNN's and FlashAttention-4's, where a gradient is wanted
HOPPER_FORWARD = {
    64: {"tile_mn": (192, 128), "num_threads": 512},
    128: {"tile_mn": (192, 128), "num_threads": 512, "intra_wg_overlap": False, "pack_gqa": False},
}
"""FlashAttention-4's forward by head width: 192 queries × 128 keys at a time, by three warpgroups. The least
time of five choices for 64 (4.2 ms, its own 4.4), of seven for 128 where the chip's power limits it."""


@dataclass(frozen=True)
class Documents:
    """The bounds of a packed batch's documents, its windows laid one after another."""

    starts: Tensor
    """int32, documents + 1, on the device; the last is B·T"""
    bounds: tuple[int, ...]
    """the same numbers, on the host"""
    longest: int
    """tokens of the longest document"""

    @classmethod
    def of(cls, positions_BT: Tensor, device: str | torch.device) -> Documents:
        """From positions (int64, B × T, on the CPU) that restart at 0 with every document."""
        starts = (positions_BT.flatten() == 0).nonzero().flatten().tolist()
        bounds = (*starts, positions_BT.numel())
        longest = max(end - start for start, end in pairwise(bounds))
        return cls(torch.tensor(bounds, dtype=torch.int32, device=device), bounds, longest)


@dataclass(frozen=True)
class Attended:
    """An attention's output and what its derivative needs beside queries, keys and values."""

    output_BTHK: Tensor
    log_sum_exp: Tensor
    """of each query and head, in the kernel's own layout"""
    rng_state: tuple[Tensor, Tensor]
    """of dropout, which is never used; the kernels' backward asks for it"""


def choose_kernel(device: str, dtype: torch.dtype, head_width: int, documents: bool) -> Kernel:
    """The fastest kernel for a device type (cuda, cpu), dtype and head width, and packed `documents` or none.

    TrainError where none runs.
    """
    if device == "cpu":
        return "cpu"
    if dtype not in (torch.bfloat16, torch.float16):
        raise TrainError(f"training in {dtype} on a GPU: attention needs bf16; set train.precision to auto")
    if head_width > LARGEST_HEAD:
        return "flash"
    if head_width in (64, 128) and flash_attention_4() is not None:
        return "fa4"
    return "flash" if documents else "cudnn"


def attend(
    kernel: Kernel, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, documents: Documents | None
) -> Attended:
    """Output (B × T × H × K) and log-sum-exps of queries (B × T × H × K) over keys and values (B × T × G × K,
    G a divisor of H). `documents` None: each window is one."""
    if kernel == "fa4":
        tensors, bounds = _fa4_arguments(documents, q_BTHK, k_BTHK, v_BTHK)
        hopper = torch.cuda.get_device_capability()[0] == 9
        tile = HOPPER_FORWARD[q_BTHK.shape[-1]] if hopper else {}
        out, lse, *_ = flash_attention_4()[0](*tensors, causal=True, return_lse=True, **bounds, **tile)
        return Attended(out.view(q_BTHK.shape), lse, (lse, lse))
    if kernel == "cudnn":
        out, lse, *_, seed, offset, _ = aten._scaled_dot_product_cudnn_attention(
            *_heads_first(q_BTHK, k_BTHK, v_BTHK), None, True, 0.0, True
        )
        return Attended(out.transpose(1, 2), lse, (seed, offset))
    if kernel == "flash":
        starts, longest = _flash_bounds(q_BTHK, documents)
        out, lse, seed, offset, _ = aten._flash_attention_forward(
            *_packed(q_BTHK, k_BTHK, v_BTHK), starts, starts, longest, longest, 0.0, True, False
        )
        return Attended(out.view(q_BTHK.shape), lse, (seed, offset))
    return _attend_on_cpu(q_BTHK, k_BTHK, v_BTHK, documents)


def attend_backward(
    kernel: Kernel,
    grad_BTHK: Tensor,
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHK: Tensor,
    attended: Attended,
    documents: Documents | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, in their shapes, from that of the output (B × T × H × K)."""
    tokens = q_BTHK.shape[1]
    if kernel == "fa4":
        output = attended.output_BTHK
        tensors, bounds = _fa4_arguments(documents, q_BTHK, k_BTHK, v_BTHK, output, grad_BTHK)
        gradients = flash_attention_4()[1](*tensors, attended.log_sum_exp, causal=True, **bounds)
        q, k, v = (g.view(like.shape) for g, like in zip(gradients, (q_BTHK, k_BTHK, v_BTHK), strict=True))
        return q, k, v
    if kernel == "cudnn":
        gradients = aten._scaled_dot_product_cudnn_attention_backward(
            *_heads_first(grad_BTHK, q_BTHK, k_BTHK, v_BTHK, attended.output_BTHK),
            attended.log_sum_exp, *attended.rng_state, None, None, None, tokens, tokens, 0.0, True,
        )  # fmt: skip
        q, k, v = (gradient.transpose(1, 2) for gradient in gradients)
        return q, k, v
    if kernel == "flash":
        starts, longest = _flash_bounds(q_BTHK, documents)
        gradients = aten._flash_attention_backward(
            *_packed(grad_BTHK, q_BTHK, k_BTHK, v_BTHK, attended.output_BTHK),
            attended.log_sum_exp, starts, starts, longest, longest, 0.0, True, *attended.rng_state,
        )  # fmt: skip
        q, k, v = (g.view(like.shape) for g, like in zip(gradients, (q_BTHK, k_BTHK, v_BTHK), strict=True))
        return q, k, v
    return _attend_on_cpu_backward(grad_BTHK, q_BTHK, k_BTHK, v_BTHK, attended, documents)


def compile_ahead(heads: int, key_heads: int, head_width: int, tokens: int, *, masked: bool) -> None:
    """Have FlashAttention-4 compile forward and backward of such windows in bf16, if that is what attends
    here, without touching a device. `masked`: documents are packed into them."""
    if choose_kernel("cuda", torch.bfloat16, head_width, masked) != "fa4":
        return
    with compiling_ahead():
        q, k = (
            torch.empty(1, tokens, many, head_width, dtype=torch.bfloat16, device="cuda")
            for many in (heads, key_heads)
        )
        starts = torch.empty(2, dtype=torch.int32, device="cuda")
        documents = Documents(starts, (0, tokens), tokens) if masked else None
        attend_backward("fa4", q, q, k, k, attend("fa4", q, k, k, documents), documents)


def _heads_first(*tensors: Tensor) -> Iterator[Tensor]:
    return (tensor.transpose(1, 2) for tensor in tensors)


def _packed(*tensors: Tensor) -> Iterator[Tensor]:
    return (tensor.flatten(0, 1) for tensor in tensors)


def _fa4_arguments(
    documents: Documents | None, *tensors: Tensor
) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    if documents is None:
        return tensors, {}
    starts, longest = documents.starts, documents.longest
    bounds = {
        "cu_seqlens_q": starts,
        "cu_seqlens_k": starts,
        "max_seqlen_q": longest,
        "max_seqlen_k": longest,
    }
    return tuple(_packed(*tensors)), bounds


def _flash_bounds(q_BTHK: Tensor, documents: Documents | None) -> tuple[Tensor, int]:
    if documents is not None:
        return documents.starts, documents.longest
    windows, tokens = q_BTHK.shape[:2]
    return torch.arange(0, (windows + 1) * tokens, tokens, dtype=torch.int32, device=q_BTHK.device), tokens


def _attend_on_cpu(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, documents: Documents | None) -> Attended:
    q, k, v = (tensor.flatten(0, 1) for tensor in (q_BTHK, k_BTHK, v_BTHK))
    output = torch.empty_like(q)
    sums = q.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))
    for place in _document_slices(q_BTHK, documents):
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(*_one_document(q, k, v, place), 0.0, True)
        output[place], sums[place] = out[0].transpose(0, 1), lse[0].transpose(0, 1)
    nothing = q.new_empty(0)
    return Attended(output.view(q_BTHK.shape), sums, (nothing, nothing))


def _attend_on_cpu_backward(
    grad_BTHK: Tensor,
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHK: Tensor,
    attended: Attended,
    documents: Documents | None,
) -> tuple[Tensor, Tensor, Tensor]:
    grad, q, k, v, out = (t.flatten(0, 1) for t in (grad_BTHK, q_BTHK, k_BTHK, v_BTHK, attended.output_BTHK))
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for place in _document_slices(q_BTHK, documents):
        q_, k_, v_ = _one_document(q, k, v, place)
        grad_, out_ = (tensor[place].transpose(0, 1)[None] for tensor in (grad, out))
        lse_ = attended.log_sum_exp[place].transpose(0, 1)[None]
        dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_, q_, k_, v_, out_, lse_, 0.0, True
        )
        grad_q[place] = dq[0].transpose(0, 1)
        for total, part in ((grad_k, dk), (grad_v, dv)):
            total[place] = part[0].unflatten(0, (total.shape[1], -1)).sum(1).transpose(0, 1)
    return grad_q.view(q_BTHK.shape), grad_k.view(k_BTHK.shape), grad_v.view(v_BTHK.shape)


def _document_slices(q_BTHK: Tensor, documents: Documents | None) -> list[slice]:
    windows, tokens = q_BTHK.shape[:2]
    bounds = documents.bounds if documents is not None else range(0, (windows + 1) * tokens, tokens)
    return [slice(start, end) for start, end in pairwise(bounds)]


def _one_document(q: Tensor, k: Tensor, v: Tensor, place: slice) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of one document (1 × H × T × K), key-value heads repeated for each query head."""
    repeats = q.shape[1] // k.shape[1]
    q_, k_, v_ = (tensor[place].transpose(0, 1)[None] for tensor in (q, k, v))
    return q_, k_.repeat_interleave(repeats, 1), v_.repeat_interleave(repeats, 1)
