"""Causal attention by a kernel that is named, never guessed: what a layer asks for is what runs, or it fails.

    fa4     GPU, bf16: FlashAttention-4, where its package is installed and the chip is Hopper or Blackwell
    cudnn   GPU, bf16, one document a window: the fastest that torch brings along for Hopper
    flash   GPU, bf16: FlashAttention-2
    cpu     torch's blocked kernel, document by document; float64, float32 or bf16

Documents of a packed window are kept apart by variable-length attention. Key-value heads may be fewer than
query heads. The derivative is a call of its own, so what the forward keeps (output and log-sum-exp, or
nothing) is the layer's choice.

Axes in names: B windows, T tokens, H heads, K head width.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from yarn_ops.errors import TrainError

Kernel = Literal["fa4", "cudnn", "flash", "cpu"]
aten = torch.ops.aten
LARGEST_HEAD = 128  # cuDNN's and FlashAttention-4's, where a gradient is wanted
HOPPER_FORWARD = {"tile_mn": (192, 128), "num_threads": 512, "intra_wg_overlap": False, "pack_gqa": False}
"""FlashAttention-4's forward for heads of 128: 192 queries × 128 keys at a time, by three warpgroups. Where
the chip's power limits it, the least time of seven choices, a few percent below its own 128 × 128 by two."""


@dataclass(frozen=True)
class Documents:
    """Where each document of a packed batch begins, windows one after another."""

    starts: Tensor
    """int32, documents + 1, on the device; the last is B·T"""
    bounds: tuple[int, ...]
    """the same numbers"""
    longest: int

    @classmethod
    def of(cls, positions_BT: Tensor, device: str | torch.device) -> Documents:
        """From positions (CPU) that restart at 0 with every document."""
        starts = (positions_BT.flatten() == 0).nonzero().flatten().tolist()
        bounds = (*starts, positions_BT.numel())
        longest = max(end - start for start, end in pairwise(bounds))
        return cls(torch.tensor(bounds, dtype=torch.int32, device=device), bounds, longest)


@dataclass(frozen=True)
class Attended:
    """An attention's output and what its derivative needs beside queries, keys and values."""

    output_BTHK: Tensor
    log_sum_exp: Tensor
    rng_state: tuple[Tensor, Tensor]
    """the dropout's state: there is none, but the kernels want it back"""


def choose_kernel(device: str, dtype: torch.dtype, head_width: int, documents: bool) -> Kernel:
    """The fastest that runs there; TrainError where none does."""
    if device == "cpu":
        return "cpu"
    if dtype not in (torch.bfloat16, torch.float16):
        raise TrainError(f"training in {dtype} on a GPU: attention needs bf16; set train.precision to auto")
    if head_width > LARGEST_HEAD:
        return "flash"
    if head_width in (64, 128) and torch.cuda.get_device_capability()[0] in (9, 10) and _fa4() is not None:
        return "fa4"
    return "flash" if documents else "cudnn"


@functools.cache
def _fa4() -> Any:
    """FlashAttention-4's forward and backward as they are called without autograd, or None."""
    try:
        interface: Any = importlib.import_module("flash_attn.cute.interface")
        own = interface._tile_size_bwd_sm90

        def for_long_windows(head: int, head_v: int, causal: bool, local: bool, **others: Any) -> Any:
            return own(head, head_v, False, False, **others)

        # Under a causal mask it takes 64 queries at a time, so that few are masked; without one, 80. In long
        # windows next to none are masked: 3 % less time at 32,768 tokens.
        interface._tile_size_bwd_sm90 = for_long_windows
        return interface._flash_attn_fwd, interface._flash_attn_bwd
    except (ImportError, AttributeError):
        return None


def _fa4_tile(q_BTHK: Tensor) -> dict[str, Any]:
    hopper = torch.cuda.get_device_capability()[0] == 9
    return HOPPER_FORWARD if hopper and q_BTHK.shape[-1] == 128 else {}


def attend(
    kernel: Kernel, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, documents: Documents | None
) -> Attended:
    """Softmax of q·k/√K over the tokens up to each one, of its own document."""
    if kernel == "fa4":
        tensors, bounds = _fa4_arguments(documents, q_BTHK, k_BTHK, v_BTHK)
        out, lse, *_ = _fa4()[0](*tensors, causal=True, return_lse=True, **bounds, **_fa4_tile(q_BTHK))
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
    """Gradients of queries, keys and values, in their shapes."""
    tokens = q_BTHK.shape[1]
    if kernel == "fa4":
        output = attended.output_BTHK
        tensors, bounds = _fa4_arguments(documents, q_BTHK, k_BTHK, v_BTHK, output, grad_BTHK)
        gradients = _fa4()[1](*tensors, attended.log_sum_exp, causal=True, **bounds)
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
        q, k, v = (
            gradient.view(like.shape)
            for gradient, like in zip(gradients, (q_BTHK, k_BTHK, v_BTHK), strict=True)
        )
        return q, k, v
    return _attend_on_cpu_backward(grad_BTHK, q_BTHK, k_BTHK, v_BTHK, attended, documents)


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
    output, sums = (
        torch.empty_like(q),
        q.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32)),
    )
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
    """One document, heads first; this kernel wants a key-value head for every query head."""
    repeats = q.shape[1] // k.shape[1]
    q_, k_, v_ = (tensor[place].transpose(0, 1)[None] for tensor in (q, k, v))
    return q_, k_.repeat_interleave(repeats, 1), v_.repeat_interleave(repeats, 1)
