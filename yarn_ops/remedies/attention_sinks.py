"""A rolling buffer with attention sinks: the first tokens and the last ones, and nothing between.

Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks": evicting the first tokens breaks
a model whose heads attend to them by default, keeping four of them does not. Positions are those within the
buffer: a token's position is its rank among the tokens that are seen with it. Perplexity does not rise with
the length, and what has left the buffer cannot be found.

A text no longer than the buffer is read with full attention, exactly. Any split of a text into chunks
computes the same function.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from yarn_ops.errors import EvaluationError
from yarn_ops.models.pre_rope import Rotation, run

SINK_TOKENS = 4
"""Xiao et al. 2023, section 3.2: four are enough, one or two are not"""
CHUNK_TOKENS = 512
"""read at once, or an eighth of a longer buffer"""
LOGITS_AT_ONCE = 1 << 26
"""attention logits of a layer, at most: 256 MiB in float32"""
PROBE_TOKENS = 24
FP32_TOLERANCE, HALF_TOLERANCE = 1e-3, 0.15
"""of the largest logit; bf16 rounds in another order"""


class AttentionSinkMemory:
    """At most `buffer_tokens` keys and values a layer, whatever the length read."""

    def __init__(self, model: PreTrainedModel, *, buffer_tokens: int) -> None:
        """A query sees the first SINK_TOKENS tokens and the last ones, `buffer_tokens` with itself."""
        assert buffer_tokens > SINK_TOKENS
        self._model, self._rotation = model, Rotation(model)
        self._sinks, self._local = SINK_TOKENS, buffer_tokens - SINK_TOKENS
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        """by layer [G, tokens, D]: sinks, then the last `_local` ones"""
        self._read = 0
        self._keep = False

    def read(self, ids: Tensor) -> None:
        self._keep = True
        heads = self._model.config.num_attention_heads
        most = LOGITS_AT_ONCE // (heads * (self._sinks + self._local))
        wanted = max(CHUNK_TOKENS, self._local // 8)
        for chunk in ids.split(max(1, min(wanted, most))):
            run(self._model, self, chunk, 1)
            self._read += len(chunk)
        self._keep = False

    def ask(self, ids: Tensor, last: int) -> Tensor:
        logits = run(self._model, self, ids, last)
        self.seen = min(self._read + len(ids), self._sinks + self._local)
        return logits

    seen = 0

    @property
    def held_bytes(self) -> int:
        return sum(kept.nbytes for kept in [*self._keys.values(), *self._values.values()])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        queries = query.shape[1]
        if layer in self._keys:
            key = torch.cat((self._keys[layer], key), dim=1)
            value = torch.cat((self._values[layer], value), dim=1)
        end = self._read + queries
        sinks = min(self._sinks, end)
        first = end - (key.shape[1] - sinks)  # index in the text of the first key after the sinks
        device = query.device
        at_Q = torch.arange(self._read, end, device=device)
        at_K = torch.cat((torch.arange(sinks, device=device), torch.arange(first, end, device=device)))
        start_Q = (at_Q + 1 - self._local).clamp(min=self._sinks)  # first token after the sinks that is seen
        is_sink_K = at_K < sinks
        sees_QK = (at_K <= at_Q[:, None]) & (is_sink_K | (at_K >= start_Q[:, None]))

        grouped = query.unflatten(0, (key.shape[0], -1))  # [G, R, Q, D]
        far = self._rotation.turn(grouped, self._sinks + at_Q - start_Q).flatten(1, 2)
        near = self._rotation.turn(grouped, at_Q - first).flatten(1, 2)
        logits = torch.cat(
            (
                far @ self._rotation.turn(key[:, :sinks], at_K[:sinks]).transpose(1, 2),
                near @ self._rotation.turn(key[:, sinks:], at_K[sinks:] - first).transpose(1, 2),
            ),
            dim=-1,
        ).float()
        logits = logits.unflatten(1, (-1, queries)).mul_(scaling)
        logits.masked_fill_(~sees_QK, -torch.inf)
        output = logits.softmax(-1).to(value.dtype).flatten(1, 2) @ value
        if self._keep:
            self._keys[layer], self._values[layer] = self._kept(key, sinks), self._kept(value, sinks)
        return output.unflatten(1, (-1, queries)).flatten(0, 1)

    def _kept(self, x: Tensor, sinks: int) -> Tensor:
        if x.shape[1] <= sinks + self._local:
            return x.clone()
        return torch.cat((x[:, :sinks], x[:, -self._local :]), dim=1)


def require_pre_rope(model: PreTrainedModel) -> None:
    """EvaluationError unless attention remade here is the model's own: same logits on a few tokens."""
    name = type(model).__name__
    ids = torch.arange(1, PROBE_TOKENS + 1, device=model.device) % model.config.vocab_size
    memory = AttentionSinkMemory(model, buffer_tokens=2 * PROBE_TOKENS)
    try:
        ours = memory.ask(ids, PROBE_TOKENS)
    except (TypeError, RuntimeError) as error:  # it hands on no memory, or turns but a part of its heads
        raise EvaluationError(f"{name}: attention cannot be remade over unturned keys: {error}") from None
    with torch.inference_mode():
        own = model(input_ids=ids[None], use_cache=False).logits[0].float()
    tolerance = FP32_TOLERANCE if model.dtype == torch.float32 else HALF_TOLERANCE
    if not torch.allclose(ours, own, rtol=tolerance, atol=tolerance * float(own.abs().max())):
        raise EvaluationError(f"{name}: attention over unturned keys is not its own attention")
