"""Attention over a window whose tokens lie in several processes (DeepSpeed Ulysses, arXiv 2309.14509).

Everything but attention works on each token by itself, so a process keeps its part of the tokens. For
attention the processes exchange parts: each gets all tokens of its share of the heads, attends with the
kernel of one process, documents and causality as they are, and sends the outputs back. Where there are
fewer key-value heads than processes, copies of one serve several, and their gradients are added.

Axes in names: B windows, T this process's tokens, S all tokens, H heads, K head width, C processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from yarn_ops.train.attention import Attended, Documents, Kernel, attend, attend_backward
from yarn_ops.train.parallel.ranks import ContextGroup


def context_parallel_attention(
    context_group: ContextGroup | None,
    kernel: Kernel,
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHK: Tensor,
    documents: Documents | None,
) -> Attended:
    """Attention of this process's tokens (B × T × H × K) over the whole window, as `attention.attend`. The
    log-sum-exps are those of this process's heads, stacked by round. Without a group: `attend`."""
    if context_group is None:
        return attend(kernel, q_BTHK, k_BTHK, v_BTHK, documents)
    output_BTHK, sums = torch.empty_like(q_BTHK), []
    for round_ in _rounds(context_group, k_BTHK.shape[2]):
        q, k, v = (round_.to_heads(each) for each in (q_BTHK, k_BTHK, v_BTHK))
        attended = attend(kernel, q, k, v, documents)
        round_.to_tokens(attended.output_BTHK, output_BTHK)
        sums.append(attended.log_sum_exp)
    return Attended(output_BTHK, torch.stack(sums), attended.rng_state)


def context_parallel_attention_backward(
    context_group: ContextGroup | None,
    kernel: Kernel,
    grad_BTHK: Tensor,
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHK: Tensor,
    attended: Attended,
    documents: Documents | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v (this process's tokens), as `attention.attend_backward`."""
    if context_group is None:
        return attend_backward(kernel, grad_BTHK, q_BTHK, k_BTHK, v_BTHK, attended, documents)
    gradients = tuple(torch.empty_like(each) for each in (q_BTHK, k_BTHK, v_BTHK))
    for round_, sums in zip(_rounds(context_group, k_BTHK.shape[2]), attended.log_sum_exp, strict=True):
        grad, q, k, v = (round_.to_heads(each) for each in (grad_BTHK, q_BTHK, k_BTHK, v_BTHK))
        whole = Attended(round_.to_heads(attended.output_BTHK), sums, attended.rng_state)
        found = attend_backward(kernel, grad, q, k, v, whole, documents)
        del grad, q, k, v, whole
        for grad_heads, grad_tokens in zip(found, gradients, strict=True):
            round_.to_tokens(grad_heads, grad_tokens)
    return gradients  # type: ignore[return-value]


@dataclass(frozen=True)
class _ExchangeRound:
    """The heads that are exchanged together: one key-value head of each process and its query heads, so that
    the exchange's buffers take a fraction of all heads' memory."""

    context_group: ContextGroup
    place: int
    """of the key-value head among those of one process"""
    kv_heads: int

    def to_heads(self, tensor_BTHK: Tensor) -> Tensor:
        """B × T × H × K of this process's tokens to B × S × h × K of all tokens and its heads of this
        round."""
        sent_CBTHK = self._mine(tensor_BTHK).movedim(2, 0).contiguous()
        return self._exchanged(sent_CBTHK).movedim(0, 1).flatten(1, 2)

    def to_tokens(self, tensor_BSHK: Tensor, out_BTHK: Tensor) -> None:
        """The inverse of `to_heads`, written into `out`. Copies of one head in several processes are
        added."""
        sent_CBTHK = tensor_BSHK.unflatten(1, (self.context_group.size, -1)).movedim(1, 0).contiguous()
        received_BTCHK = self._exchanged(sent_CBTHK).movedim(0, 2)
        if out_BTHK.shape[2] >= self.context_group.size:
            self._mine(out_BTHK).copy_(received_BTCHK)
        else:
            out_BTHK.copy_(received_BTCHK.flatten(2, 3).unflatten(2, (out_BTHK.shape[2], -1)).sum(3))

    def _mine(self, tensor_BTHK: Tensor) -> Tensor:
        """B × T × C × h × K: the heads of this round, by process."""
        size, rounds = self.context_group.size, max(1, self.kv_heads // self.context_group.size)
        if tensor_BTHK.shape[2] < size:
            tensor_BTHK = tensor_BTHK.repeat_interleave(size // tensor_BTHK.shape[2], 2)
        return tensor_BTHK.unflatten(2, (size, rounds, -1))[:, :, :, self.place]

    def _exchanged(self, sent_C: Tensor) -> Tensor:
        """All-to-all along the first axis: part i goes to process i, and part i of the result comes from
        it."""
        received_C = torch.empty_like(sent_C)
        dist.all_to_all_single(received_C, sent_C, group=self.context_group.group)
        return received_C


def _rounds(context_group: ContextGroup, kv_heads: int) -> list[_ExchangeRound]:
    return [
        _ExchangeRound(context_group, place, kv_heads)
        for place in range(max(1, kv_heads // context_group.size))
    ]
