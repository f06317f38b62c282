"""One micro-batch: windows to a summed loss, in memory that does not grow with the vocabulary.

Axes in names: B windows, T tokens of a window, N = B·T positions, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from yarn_ops.data.windows import Window
from yarn_ops.errors import TrainError

IGNORED = -100
LOGITS_AT_ONCE = 1 << 26
"""elements of the largest logits tensor: 256 MiB in float32"""
PROOF_TOKENS = 16


@dataclass(frozen=True)
class Batch:
    """Windows on the device. With a document mask, positions restart at each document and the first token of
    a document is nobody's target."""

    inputs_BT: Tensor
    targets_BT: Tensor
    """int64; `IGNORED` where nothing is to be predicted"""
    positions_BT: Tensor | None
    target_tokens: int
    document_ids: frozenset[str]


def make_batch(windows: Sequence[Window], *, device: str, document_mask: bool) -> Batch:
    ids = torch.stack([torch.as_tensor(window.ids) for window in windows])
    segments = torch.stack([torch.as_tensor(window.segments) for window in windows])
    targets, positions = ids[:, 1:].clone(), None
    if document_mask:
        targets[segments[:, 1:] != segments[:, :-1]] = IGNORED
        positions = positions_within(segments[:, :-1]).to(device)
    return Batch(
        inputs_BT=ids[:, :-1].to(device),
        targets_BT=targets.to(device),
        positions_BT=positions,
        target_tokens=int((targets != IGNORED).sum()),
        document_ids=frozenset(document for window in windows for document in window.document_ids),
    )


def positions_within(segments_BT: Tensor) -> Tensor:
    """Each token's position in its own run of equal segment numbers: 0, 1, 2, ... (int64, B × T)."""
    index = torch.arange(segments_BT.shape[1]).expand(segments_BT.shape)
    starts = torch.ones_like(segments_BT, dtype=torch.bool)
    starts[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return index - torch.where(starts, index, 0).cummax(dim=1).values


class Head(nn.Module):
    """Hidden states to float32 logits, as the model's own forward does, but for any part of the positions."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.projection = model.get_output_embeddings()
        self.vocabulary: int = self.projection.out_features
        self.divisor: float = getattr(model.config, "logits_scaling", None) or 1.0  # Granite
        self.cap = getattr(model.config, "final_logit_softcapping", None)  # Gemma 2

    def forward(self, hidden: Tensor) -> Tensor:
        logits = self.projection(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.divisor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


class CausalLoss:
    """Next-token cross-entropy of a model, summed over targets."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._backbone = model.base_model
        self._head = Head(model)

    def __call__(self, batch: Batch) -> Tensor:
        """Nats, summed over the batch's targets (scalar, float32)."""
        hidden_BTD = self._hidden(batch.inputs_BT, batch.positions_BT)
        return summed_loss(hidden_BTD.flatten(0, 1), batch.targets_BT.flatten(), self._head)

    @torch.no_grad()
    def prove_head(self, inputs_BT: Tensor) -> None:
        """TrainError unless our head gives the model's own logits: another architecture may do more there."""
        inputs_BT = inputs_BT[:, :PROOF_TOKENS]
        ours = self._head(self._hidden(inputs_BT, None))
        theirs = self._model(input_ids=inputs_BT, use_cache=False).logits
        if not torch.allclose(ours, theirs.to(ours.dtype), rtol=1e-2, atol=1e-2, equal_nan=True):
            raise TrainError(
                f"{type(self._model).__name__}: its logits are not those of its output layer; "
                "this architecture cannot be trained yet"
            )

    def _hidden(self, inputs_BT: Tensor, positions_BT: Tensor | None) -> Tensor:
        # Given no mask, transformers reads restarting positions as packed documents and keeps them apart.
        output = self._backbone(input_ids=inputs_BT, position_ids=positions_BT, use_cache=False)
        return output.last_hidden_state


def summed_loss(
    hidden_ND: Tensor, targets_N: Tensor, head: Head, logits_at_once: int = LOGITS_AT_ONCE
) -> Tensor:
    """Cross-entropy summed over targets, from `logits_at_once` elements of logits at a time."""
    weights = tuple(weight for weight in head.parameters() if weight.requires_grad)
    return _SummedLoss.apply(hidden_ND, targets_N, head, logits_at_once, *weights)  # type: ignore[no-untyped-call]


class _SummedLoss(torch.autograd.Function):
    """The gradients are made in the forward, chunk by chunk, so that no logits outlive their chunk and none
    are computed twice. `weights` are the head's trained parameters: usually none, or tied embeddings."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, targets_N: Tensor, head: Head, logits_at_once: int, *weights: Tensor
    ) -> Tensor:
        rows = max(1, logits_at_once // head.vocabulary)
        learning = (hidden_ND, *weights) if any(ctx.needs_input_grad) else ()
        gradients = [torch.zeros_like(tensor) for tensor in learning]
        total = hidden_ND.new_zeros((), dtype=torch.promote_types(hidden_ND.dtype, torch.float32))
        for start in range(0, len(hidden_ND), rows):
            chunk = slice(start, start + rows)
            with torch.set_grad_enabled(bool(gradients)):
                hidden = hidden_ND[chunk].detach().requires_grad_(bool(gradients))
                loss = F.cross_entropy(head(hidden), targets_N[chunk], ignore_index=IGNORED, reduction="sum")
            total += loss.detach()
            if gradients:
                of_hidden, *of_weights = torch.autograd.grad(loss, (hidden, *weights))
                gradients[0][chunk] = of_hidden
                for gradient, more in zip(gradients[1:], of_weights, strict=True):
                    gradient += more
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, *of_weights = (gradient * outer[0].to(gradient.dtype) for gradient in ctx.saved_tensors)
        return of_hidden, None, None, None, *of_weights


def activation_bytes(model: PreTrainedModel, tokens: int, element_bytes: int) -> int:
    """About what one forward keeps for its backward: a layer of Llama's shape keeps 16 tensors of the hidden
    width and 4 of the MLP's."""
    config = model.config
    mlp_width = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    width = 16 * config.hidden_size + 4 * mlp_width
    return int(config.num_hidden_layers * tokens * width * element_bytes)


def recompute_when_short(model: PreTrainedModel, tokens: int, *, device: str, element_bytes: int) -> bool:
    """Turn on gradient checkpointing, layer by layer, when activations would take half of the free memory.

    It changes time and memory, not one bit of a gradient. Returns whether it is on.
    """
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    if 2 * activation_bytes(model, tokens, element_bytes) <= free:
        return False
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return True
