"""The output head of a causal model: hidden states to logits, with the architecture's scaling and soft cap.

Axes in names: N positions, D hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel


class Head(NamedTuple):
    """The output layer's parameters, and the scaling and soft cap of its logits."""

    weight_VD: Tensor
    bias_V: Tensor | None
    divisor: float
    """of the logits; Granite's logits_scaling, 1 / Cohere's logit_scale, else 1"""
    cap: float | None
    """Gemma 2's soft cap: logits become cap · tanh(logits / cap); None: none"""

    @classmethod
    def of(cls, model: PreTrainedModel, dtype: torch.dtype | None = None) -> Head:
        """The head of a model, its weights cast to `dtype`; None: in the model's dtype."""
        projection, config = model.get_output_embeddings(), model.config
        weight, bias = projection.weight, projection.bias
        return cls(
            weight_VD=weight if dtype is None else weight.to(dtype),
            bias_V=bias if bias is None or dtype is None else bias.to(dtype),
            divisor=getattr(config, "logits_scaling", None)
            or 1.0 / (getattr(config, "logit_scale", 0) or 1.0),
            cap=getattr(config, "final_logit_softcapping", None),
        )

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits (N × V, float32 or wider) of hidden states after the last norm."""
        weight, bias = self.weight_VD.to(hidden_ND), self.bias_V
        logits = F.linear(hidden_ND, weight, bias if bias is None else bias.to(hidden_ND))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.divisor != 1:  # by which dividing would pass over all of them and change no bit
            logits = logits / self.divisor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap
