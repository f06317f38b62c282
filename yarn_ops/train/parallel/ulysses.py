"""Attention over a window whose tokens lie in several processes (DeepSpeed Ulysses, arXiv 2309.14509).

Everything but attention works on each token by itself, so a process keeps its part of the tokens. For
attention they turn: each gets all tokens of its share of the heads, attends with the kernel of one process,
documents and causality as they are, and turns back. Where there are fewer key-value heads than processes,
copies of one serve several, and their gradients are added.

Axes in names: B windows, T this process's tokens, S all tokens, H heads, K head width, C processes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from yarn_ops.train.attention import Attended, Documents, Kernel, attend, attend_backward


class Across(NamedTuple):
    """The processes that share a window."""

    group: dist.ProcessGroup
    rank: int
    size: int

    def part(self, tensor: Tensor, dim: int) -> Tensor:
        """This process's part of what belongs to the whole window."""
        return tensor.chunk(self.size, dim)[self.rank]


def attend_across(
    across: Across | None,
    kernel: Kernel,
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHK: Tensor,
    documents: Documents | None,
) -> Attended:
    """As `attend`, of this process's tokens to all of the window; the sums stay as the kernel made them."""
    if across is None:
        return attend(kernel, q_BTHK, k_BTHK, v_BTHK, documents)
    q, k, v = (to_heads(across, tensor) for tensor in (q_BTHK, k_BTHK, v_BTHK))
    attended = attend(kernel, q, k, v, documents)
    return replace(attended, output_BTHK=to_tokens(across, attended.output_BTHK))


def attend_across_backward(
    across: Across | None,
    kernel: Kernel,
    grad_BTHK: Tensor,
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHK: Tensor,
    attended: Attended,
    documents: Documents | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `attend_backward`."""
    if across is None:
        return attend_backward(kernel, grad_BTHK, q_BTHK, k_BTHK, v_BTHK, attended, documents)
    grad, q, k, v = (to_heads(across, tensor) for tensor in (grad_BTHK, q_BTHK, k_BTHK, v_BTHK))
    whole = replace(attended, output_BTHK=to_heads(across, attended.output_BTHK))
    of_q, of_k, of_v = attend_backward(kernel, grad, q, k, v, whole, documents)
    kv_heads = k_BTHK.shape[2]
    return (
        to_tokens(across, of_q),
        _of_one_head(to_tokens(across, of_k), kv_heads),
        _of_one_head(to_tokens(across, of_v), kv_heads),
    )


def to_heads(across: Across, tensor_BTHK: Tensor) -> Tensor:
    """B × T × H × K of my tokens and all heads to B × S × H/C × K of all tokens and my heads."""
    copies = max(1, across.size // tensor_BTHK.shape[2])
    if copies > 1:
        tensor_BTHK = tensor_BTHK.repeat_interleave(copies, 2)
    sent_CBTHK = tensor_BTHK.unflatten(2, (across.size, -1)).movedim(2, 0).contiguous()
    return _exchanged(across, sent_CBTHK).movedim(0, 1).flatten(1, 2)


def to_tokens(across: Across, tensor_BSHK: Tensor) -> Tensor:
    """The way back."""
    sent_CBTHK = tensor_BSHK.unflatten(1, (across.size, -1)).movedim(1, 0).contiguous()
    return _exchanged(across, sent_CBTHK).movedim(0, 2).flatten(2, 3)


def _exchanged(across: Across, sent_C: Tensor) -> Tensor:
    """The i-th part goes to the i-th process; what comes from it is the i-th of the result."""
    received_C = torch.empty_like(sent_C)
    dist.all_to_all_single(received_C, sent_C, group=across.group)
    return received_C


def _of_one_head(grad_BTHK: Tensor, heads: int) -> Tensor:
    copies = grad_BTHK.shape[2] // heads
    return grad_BTHK if copies == 1 else grad_BTHK.unflatten(2, (heads, copies)).sum(3)
