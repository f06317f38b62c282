"""Next-token cross-entropy of a micro-batch, from a bounded number of logits at a time.

Axes in names: B windows, T tokens of a window, N = B·T positions, D hidden width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from yarn_ops.errors import TrainError
from yarn_ops.models.head import Head
from yarn_ops.train.batches import Batch
from yarn_ops.train.elementwise import cross_entropy, uncompiled
from yarn_ops.train.parallel.ranks import ContextGroup

HiddenStates = Callable[[Tensor, Tensor | None], Tensor]
"""token ids and positions (B × T) to hidden states (B × T × D) after the last norm"""
LOGITS_AT_ONCE = 1 << 26
"""elements of the largest logits tensor: 256 MiB in float32"""
LOGITS_AT_ONCE_GPU = 1 << 29
"""1 GiB in bf16: products wide enough for the chip"""
PROOF_TOKENS = 16
PROOF_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""of the logits, in the norm"""


class Loss(NamedTuple):
    """Sums over one micro-batch, in nats."""

    total: Tensor
    """weighted, over the batch's targets (scalar, float32)"""
    answers: Tensor | None
    """not weighted, over the targets that answer an exercise; None where no window has one"""


class CausalLoss:
    """Next-token cross-entropy of a model, summed over targets."""

    def __init__(
        self,
        model: PreTrainedModel,
        backbone: HiddenStates,
        dtype: torch.dtype,
        context_group: ContextGroup | None = None,
    ) -> None:
        """`backbone` computes in `dtype`; `context_group`: the processes that share each window."""
        self._model, self._backbone, self._dtype, self._context_group = model, backbone, dtype, context_group

    def __call__(self, batch: Batch) -> Loss:
        hidden_BTD = self._backbone(batch.inputs_BT, batch.positions_BT)
        head = Head.of(self._model, self._dtype)
        weights_N = None if batch.weights_BT is None else batch.weights_BT.flatten()
        total, losses_N = summed_loss(hidden_BTD.flatten(0, 1), batch.targets_BT.flatten(), head, weights_N)
        if batch.answers_BT is None:
            return Loss(total, None)
        return Loss(total, losses_N[batch.answers_BT.flatten()].sum())

    @torch.no_grad()
    def prove(self, inputs_BT: Tensor) -> None:
        """TrainError unless our forward gives the model's own logits, and they are finite.

        inputs: token ids of whole windows, the same in every process that shares them.
        """
        parts = self._context_group.size if self._context_group else 1
        inputs_BT = inputs_BT[:, : PROOF_TOKENS * parts]
        mine_BT = self._context_group.part(inputs_BT, 1) if self._context_group else inputs_BT
        training = self._model.training
        self._model.eval()  # dropout would tell the two apart
        with uncompiled():
            ours = Head.of(self._model, self._dtype).logits(self._backbone(mine_BT, None))
        with torch.autocast(inputs_BT.device.type, self._dtype, enabled=self._dtype == torch.bfloat16):
            theirs = self._model(input_ids=inputs_BT, use_cache=False).logits
        self._model.train(training)
        if not torch.isfinite(theirs).all():
            raise TrainError(
                "training: the model's output is not finite before training; its weights are damaged or "
                "overflow in this precision; use another base or train.precision fp32"
            )
        theirs = (self._context_group.part(theirs, 1) if self._context_group else theirs).to(ours.dtype)
        apart = torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs)
        if not apart <= PROOF_TOLERANCE[self._dtype]:
            raise TrainError(
                f"{type(self._model).__name__}: training would compute other logits than the model's own "
                f"(relative difference {apart:.1e}); this architecture cannot be trained yet"
            )


def summed_loss(
    hidden_ND: Tensor,
    targets_N: Tensor,
    head: Head,
    weights_N: Tensor | None = None,
    logits_at_once: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(cross-entropy in nats, weighted and summed over targets ≥ 0; each position's own, not weighted (N),
    empty without weights). At most `logits_at_once` elements of logits are in memory."""
    at_once = logits_at_once or (LOGITS_AT_ONCE_GPU if hidden_ND.is_cuda else LOGITS_AT_ONCE)
    chunks = math.ceil(len(hidden_ND) / max(1, at_once // len(head.weight_VD)))
    rows = math.ceil(len(hidden_ND) / chunks) if chunks else 1  # chunks of one length: compiled once
    return _SummedLoss.apply(hidden_ND, targets_N, weights_N, rows, *head)  # type: ignore[no-any-return, no-untyped-call]


class _SummedLoss(torch.autograd.Function):
    """Gradients are computed in the forward, chunk by chunk, so that no logits outlive their chunk and none
    are computed twice. Those of the head are made where it learns (tied embeddings may)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        targets_N: Tensor,
        weights_N: Tensor | None,
        rows: int,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        divisor: float,
        cap: float | None,
    ) -> tuple[Tensor, Tensor]:
        grad_hidden = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight_VD) if ctx.needs_input_grad[4] else None
        grad_bias = torch.zeros_like(bias_V) if bias_V is not None and ctx.needs_input_grad[5] else None
        total = hidden_ND.new_zeros((), dtype=torch.promote_types(hidden_ND.dtype, torch.float32))
        losses = total.new_zeros(0 if weights_N is None else len(hidden_ND))
        for start in range(0, len(hidden_ND), rows):
            chunk = slice(start, start + rows)
            logits = F.linear(hidden_ND[chunk], weight_VD, bias_V)
            weights = None if weights_N is None else weights_N[chunk]
            loss, grad_logits = cross_entropy(logits, targets_N[chunk], divisor, cap, weights)
            if weights is not None:
                losses[chunk] = loss
                loss = torch.dot(loss, weights.to(loss.dtype))
            total += loss
            if grad_hidden is not None:
                grad_hidden[chunk] = grad_logits @ weight_VD
            if grad_weight is not None:
                grad_weight.addmm_(grad_logits.t(), hidden_ND[chunk])
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.mark_non_differentiable(losses)
        return total, losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = (
            None if gradient is None else gradient * outer for gradient in ctx.saved_tensors
        )
        return grad_hidden, None, None, None, grad_weight, grad_bias, None, None
