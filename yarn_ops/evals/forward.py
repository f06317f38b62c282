"""From a causal model and windows of tokens to losses and predictions.

Axes: B windows, T tokens of a window, P positions (B and T flattened), D width, V vocabulary.
The body runs once over a window. The head runs over the scored positions alone, and over so few at a time
that the memory of their logits does not grow with the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from yarn_ops.data.haystack import Ids
from yarn_ops.errors import EvaluationError
from yarn_ops.models import lean
from yarn_ops.models.head import Head
from yarn_ops.models.suffix import PLANNED_TOKENS

BATCH_TOKENS, GPU_BATCH_TOKENS = 8192, 32_768
"""tokens of one forward, so many that a small model fills a GPU; a longer window runs alone"""
LOGITS_AT_ONCE = 1 << 25
"""float32 logits alive at a time: 128 MiB"""
PROBE_TOKENS = 8


@torch.inference_mode()
def token_losses(model: PreTrainedModel, windows: Ids, scored_tokens: int) -> NDArray[np.float32]:
    """Negative log-likelihood in nats of the last `scored_tokens` tokens of every window.

    windows: int64 [B, T+1]; the model reads the first T tokens and is asked for the last T.
    Returns float32 [B, scored_tokens]. EvaluationError when a loss is not finite.
    """

    def losses(logits_PV: Tensor, target_P: Tensor) -> Tensor:
        return F.cross_entropy(logits_PV, target_P, reduction="none")

    result = _judged(model, windows, scored_tokens, losses)
    if not np.isfinite(result).all():
        raise EvaluationError(
            f"the model's loss over windows of {windows.shape[1] - 1} tokens is not finite; "
            "its weights are damaged or overflow in this precision"
        )
    return result


@torch.inference_mode()
def correct_predictions(model: PreTrainedModel, windows: Ids, scored_tokens: int) -> NDArray[np.bool_]:
    """Whether the likeliest next token is the true one, for the last `scored_tokens` tokens of every window.

    windows: int64 [B, T]; the first T-1 tokens are read. Returns bool [B, scored_tokens].
    """

    def hits(logits_PV: Tensor, target_P: Tensor) -> Tensor:
        return logits_PV.argmax(-1) == target_P

    return _judged(model, windows, scored_tokens, hits)


@torch.inference_mode()
def require_known_head(model: PreTrainedModel) -> None:
    """EvaluationError when the head's logits are not the model's (an unknown scale after it)."""
    probe_BT = torch.arange(PROBE_TOKENS, device=model.device)[None] % model.config.vocab_size
    own_PV = model(input_ids=probe_BT, use_cache=False).logits[0].float()
    ours_PV = Head.of(model).logits(_hidden(model, probe_BT)[0])
    if not torch.allclose(own_PV, ours_PV, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise EvaluationError(
            f"{type(model).__name__}: its logits are not those of its output layer; "
            "this architecture cannot be measured yet"
        )


def _judged(
    model: PreTrainedModel, windows: Ids, scored_tokens: int, judge: Callable[[Tensor, Tensor], Tensor]
) -> Any:
    """judge: (logits [P, V], target tokens [P]) -> [P]; of the last tokens of every window, [B, scored]."""
    head, rows = Head.of(model), max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    judged = []
    for ids_BT in _batches(windows, BATCH_TOKENS if model.device.type == "cpu" else GPU_BATCH_TOKENS):
        read_BT, tokens = ids_BT[:, :-1].to(model.device), ids_BT.shape[1] - 1
        if lean.installed(model) and tokens > PLANNED_TOKENS:  # its kernel; what is beyond is not looked at
            read_BT = F.pad(read_BT, (0, -tokens % PLANNED_TOKENS))
        hidden_PD = _hidden(model, read_BT)[:, tokens - scored_tokens : tokens].flatten(0, 1)
        target_P = ids_BT[:, -scored_tokens:].to(model.device).flatten()
        judged += [
            judge(head.logits(some_PD), some_P)
            for some_PD, some_P in zip(hidden_PD.split(rows), target_P.split(rows), strict=True)
        ]
    return torch.cat(judged).view(len(windows), scored_tokens).cpu().numpy()


def _hidden(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    return model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state


def _batches(windows: Ids, batch_tokens: int) -> Iterator[Tensor]:
    step = max(1, batch_tokens // windows.shape[1])
    for start in range(0, len(windows), step):
        yield torch.from_numpy(windows[start : start + step])
