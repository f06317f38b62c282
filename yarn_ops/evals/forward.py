"""From a causal model and windows of tokens to losses and predictions.

Axes: B windows, T tokens of a window, P positions (B and T flattened), D width, V vocabulary.
The body runs once over a window. The head runs over the scored positions alone, and over so few at a time
that the memory of their logits does not grow with the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from yarn_ops.errors import EvaluationError

Ids = NDArray[np.int64]

BATCH_TOKENS = 8192
"""tokens of one forward; a longer window runs alone"""
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

    scored = [
        _through_head(model, ids_BT[:, :-1], ids_BT[:, -scored_tokens:], losses)
        for ids_BT in _batches(windows)
    ]
    result = torch.cat(scored).cpu().numpy()
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

    scored = [
        _through_head(model, ids_BT[:, :-1], ids_BT[:, -scored_tokens:], hits) for ids_BT in _batches(windows)
    ]
    return torch.cat(scored).cpu().numpy()


@torch.inference_mode()
def require_known_head(model: PreTrainedModel) -> None:
    """EvaluationError when `logits_of` is not what the model computes (an unknown scale after the head)."""
    probe_BT = torch.arange(PROBE_TOKENS, device=model.device)[None] % model.config.vocab_size
    own_PV = model(input_ids=probe_BT, use_cache=False).logits[0].float()
    ours_PV = logits_of(model, _hidden(model, probe_BT)[0])
    if not torch.allclose(own_PV, ours_PV, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise EvaluationError(
            f"{type(model).__name__}: its logits are not those of its output layer; "
            "this architecture cannot be measured yet"
        )


def _through_head(
    model: PreTrainedModel, read_BT: Tensor, target_BT: Tensor, judge: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    scored_tokens = target_BT.shape[1]
    hidden_PD = _hidden(model, read_BT.to(model.device))[:, -scored_tokens:].flatten(0, 1)
    target_P = target_BT.to(model.device).flatten()
    rows = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    judged = [
        judge(logits_of(model, some_PD), some_P)
        for some_PD, some_P in zip(hidden_PD.split(rows), target_P.split(rows), strict=True)
    ]
    return torch.cat(judged).view(target_BT.shape)


def _hidden(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    return model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state


def logits_of(model: PreTrainedModel, hidden_PD: Tensor) -> Tensor:
    """float32 [P, V], with the scale (Granite) and the soft cap (Gemma 2) that a config may ask for."""
    logits_PV = model.get_output_embeddings()(hidden_PD).float()
    if scale := getattr(model.config, "logits_scaling", None):
        logits_PV = logits_PV / scale
    if cap := getattr(model.config, "final_logit_softcapping", None):
        logits_PV = torch.tanh(logits_PV / cap) * cap
    return logits_PV


def _batches(windows: Ids) -> Iterator[Tensor]:
    step = max(1, BATCH_TOKENS // windows.shape[1])
    for start in range(0, len(windows), step):
        yield torch.from_numpy(windows[start : start + step])
