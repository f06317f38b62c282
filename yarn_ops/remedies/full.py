"""Full attention: every token sees every token before it. What the others are measured against."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

CHUNK_TOKENS = 2048


class FullMemory:
    """The model's own attention over transformers' own cache, read in chunks."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._cache = DynamicCache()
        self._read = 0

    def read(self, ids: Tensor) -> None:
        for chunk in ids.split(CHUNK_TOKENS):
            self._run(chunk, 1)
        self._read += len(ids)

    def ask(self, ids: Tensor, last: int) -> Tensor:
        logits = self._run(ids, last)
        self._cache.crop(-len(ids))
        self.seen = self._read + len(ids)
        return logits

    seen = 0

    @property
    def held_bytes(self) -> int:
        return sum(
            layer.keys.nbytes + layer.values.nbytes for layer in self._cache.layers if layer.keys is not None
        )

    @torch.inference_mode()
    def _run(self, ids: Tensor, last: int) -> Tensor:
        return (
            self._model(input_ids=ids[None], past_key_values=self._cache, use_cache=True, logits_to_keep=last)
            .logits[0]
            .float()
        )
