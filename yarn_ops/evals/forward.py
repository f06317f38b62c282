"""From a causal model and windows of tokens to losses and predictions.

Axes: B windows, T tokens of a window, P positions (B and T flattened), D width, V vocabulary.
The body runs once over a window. The head runs over the scored positions alone, and over so few at a time
that the memory of their logits does not grow with the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

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

    judged = (
        _last(model, _hidden(model, _padded(model, ids_BT)), ids_BT, scored_tokens, _losses)
        for ids_BT in _batches(model, windows)
    )
    return _finite(torch.cat([*judged]), windows)


@torch.inference_mode()
def losses_and_foreign(
    model: PreTrainedModel, windows: Ids, scored_tokens: int, near_tokens: int, targets: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """As `token_losses`; and those of the last `targets` tokens of `foreign_texts`, read behind the keys and
    values that reading the windows leaves. The model is one whose texts may be read so (`reader_choice`).

    windows: int64 [B, T+1]. Returns float32 [B, scored_tokens] and [B, targets].
    """
    far = windows.shape[1] - 1 - near_tokens
    following = np.roll(windows, -1, axis=0)[:, far:]
    own, foreign, start = [], [], 0
    for ids_BT in _batches(model, windows):
        cache, end = DynamicCache(), start + len(ids_BT)
        hidden_BTD = _hidden(model, _padded(model, ids_BT), past_key_values=cache, use_cache=True)
        own.append(_last(model, hidden_BTD, ids_BT, scored_tokens, _losses))
        del hidden_BTD
        cache.crop(far - int(cache.get_seq_length()))
        near_BT = torch.from_numpy(following[start:end])
        places = torch.arange(far, far + near_tokens, device=model.device)[None]
        read_BT = near_BT[:, :-1].to(model.device)
        hidden_BTD = _hidden(model, read_BT, position_ids=places, past_key_values=cache, use_cache=True)
        foreign.append(_last(model, hidden_BTD, near_BT, targets, _losses))
        start = end
    return _finite(torch.cat(own), windows), np.roll(_finite(torch.cat(foreign), windows), 1, axis=0)


def foreign_texts(windows: Ids, near_tokens: int) -> Ids:
    """Each window with the far text of the one before it (the first: of the last), that is all but what is
    read for its last `near_tokens` targets. int64 [B, T+1]"""
    far = windows.shape[1] - 1 - near_tokens
    return np.concatenate([np.roll(windows, 1, axis=0)[:, :far], windows[:, far:]], axis=1)


def whole_forwards(length: int) -> int:
    """A number of windows of `length` tokens that fills forwards on every device. Windows that are asked in
    groups of so many are read in the forwards in which all would be, so with the same losses to the bit."""
    return math.lcm(*(_at_once(length + 1, tokens) for tokens in (BATCH_TOKENS, GPU_BATCH_TOKENS)))


@torch.inference_mode()
def correct_predictions(model: PreTrainedModel, windows: Ids, scored_tokens: int) -> NDArray[np.bool_]:
    """Whether the likeliest next token is the true one, for the last `scored_tokens` tokens of every window.

    windows: int64 [B, T]; the first T-1 tokens are read. Returns bool [B, scored_tokens].
    """

    def hits(logits_PV: Tensor, target_P: Tensor) -> Tensor:
        return logits_PV.argmax(-1) == target_P

    judged = (
        _last(model, _hidden(model, _padded(model, ids_BT)), ids_BT, scored_tokens, hits)
        for ids_BT in _batches(model, windows)
    )
    return torch.cat([*judged]).cpu().numpy()


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


def _losses(logits_PV: Tensor, target_P: Tensor) -> Tensor:
    return F.cross_entropy(logits_PV, target_P, reduction="none")


def _finite(losses: Tensor, windows: Ids) -> NDArray[np.float32]:
    result: NDArray[np.float32] = losses.cpu().numpy()
    if not np.isfinite(result).all():
        raise EvaluationError(
            f"the model's loss over windows of {windows.shape[1] - 1} tokens is not finite; "
            "its weights are damaged or overflow in this precision"
        )
    return result


def _last(
    model: PreTrainedModel, hidden_BTD: Tensor, ids_BT: Tensor, scored_tokens: int,
    judge: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """judge: (logits [P, V], target tokens [P]) -> [P]; of the last tokens of every window, [B, scored].
    hidden: of all tokens but the last, and perhaps of some that pad behind."""
    head, rows = Head.of(model), max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    tokens = ids_BT.shape[1] - 1
    hidden_PD = hidden_BTD[:, tokens - scored_tokens : tokens].flatten(0, 1)
    target_P = ids_BT[:, -scored_tokens:].to(model.device).flatten()
    judged = [
        judge(head.logits(some_PD), some_P)
        for some_PD, some_P in zip(hidden_PD.split(rows), target_P.split(rows), strict=True)
    ]
    return torch.cat(judged).view(len(ids_BT), scored_tokens)


def _padded(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    """All tokens but the last of every window, on the model's device."""
    read_BT = ids_BT[:, :-1].to(model.device)
    if lean.installed(model) and read_BT.shape[1] > PLANNED_TOKENS:  # its kernel; what pads is not looked at
        read_BT = F.pad(read_BT, (0, -read_BT.shape[1] % PLANNED_TOKENS))
    return read_BT


def _hidden(model: PreTrainedModel, ids_BT: Tensor, **cached: Any) -> Tensor:
    return model.base_model(input_ids=ids_BT, **{"use_cache": False, **cached}).last_hidden_state


def _batches(model: PreTrainedModel, windows: Ids) -> Iterator[Tensor]:
    step = _at_once(windows.shape[1], BATCH_TOKENS if model.device.type == "cpu" else GPU_BATCH_TOKENS)
    for start in range(0, len(windows), step):
        yield torch.from_numpy(windows[start : start + step])


def _at_once(window_tokens: int, batch_tokens: int) -> int:
    return max(1, batch_tokens // window_tokens)
