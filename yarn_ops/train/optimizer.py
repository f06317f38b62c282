"""The optimizer: AdamW over what learns, whole in this process or sharded among those of its run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from yarn_ops.train.lora import trained_parameters
from yarn_ops.train.moments import MOMENTS
from yarn_ops.train.parallel.parameter_shards import ParameterShards
from yarn_ops.train.parallel.ranks import Ranks

BETAS = (0.9, 0.95)  # Llama 2, section 2.2; YaRN's runs kept them


class Optimizer:
    """AdamW with weight decay on matrices, and none on norms and biases.

    What it gives out and takes are whole tensors by parameter name, so a state fits any number of processes.
    """

    def __init__(
        self, model: PreTrainedModel, weight_decay: float, dtype: torch.dtype, ranks: Ranks | None = None
    ) -> None:
        """For the parameters of a model that learn. Where the layout of `ranks` shards the optimizer, they
        become of `dtype`, but for the embedding of tokens: its gradient, a sum over all of a token's places,
        would be added up in that dtype."""
        self._ranks = ranks = ranks or Ranks()
        parameters = trained_parameters(model)
        self._shards: ParameterShards | None = None
        if ranks.layout.optimizer_sharded:
            embedding = model.get_input_embeddings().weight
            dtypes = {
                name: value.dtype if value is embedding else dtype for name, value in parameters.items()
            }
            self._shards = ParameterShards(parameters, dtypes, ranks)
        self._updated: Mapping[str, nn.Parameter] = self._shards.parts if self._shards else parameters
        matrices, vectors = (
            [self._updated[name] for name, parameter in parameters.items() if (parameter.ndim > 1) == wanted]
            for wanted in (True, False)
        )
        self._adamw = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            betas=BETAS,
        )

    def accumulated(self) -> None:
        """A micro-batch's backward has ended. All processes call it after each."""
        if self._shards is not None:
            self._shards.complete()

    def update(self, rate: float, clip_norm: float) -> float:
        """Sum gradients over processes, clip, step and clear; the gradient norm before clipping. Where that
        is not finite nothing is changed. All processes call it."""
        updated = list(self._updated.values())
        if self._shards is None:
            self._ranks.sum_gradients(updated)
        else:
            self._shards.skip_unused()
        norm = nn.utils.get_total_norm([one.grad for one in updated if one.grad is not None])
        if self._shards is not None:
            norm = norm.new_tensor(math.sqrt(self._ranks.total(norm.item() ** 2)))
        if not torch.isfinite(norm):
            return norm.item()
        nn.utils.clip_grads_with_norm_(updated, clip_norm, norm)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        self.clear()
        if self._shards is not None:
            self._shards.publish()
        return norm.item()

    def clear(self) -> None:
        """Forget all gradients."""
        self._adamw.zero_grad(set_to_none=True)
        if self._shards is not None:
            self._shards.clear()

    def weights(self) -> dict[str, Tensor]:
        """{name: the parameter in float32}. All processes call it; the main rank has the tensors."""
        return self._whole((name, name, value.detach()) for name, value in self._updated.items())

    def moments(self) -> dict[str, Tensor]:
        """{moment/name: tensor, in the parameter's shape}; zeros before the first step. As `weights`."""
        state = self._adamw.state
        return self._whole(
            (f"{moment}/{name}", name, state[value][moment] if state[value] else torch.zeros_like(value))
            for name, value in self._updated.items()
            for moment in MOMENTS
        )

    @torch.no_grad()
    def place_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the parameters to these. All processes call it."""
        for name, value in self._updated.items():
            value.copy_(self._part(tensors[name]))
        if self._shards is not None:
            self._shards.publish()

    def place_moments(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Set the state to these moments, after `updates` steps."""
        for name, value in self._updated.items():
            self._adamw.state[value] = {
                "step": torch.tensor(float(updates)),
                **{moment: self._part(tensors[f"{moment}/{name}"]).to(value.device) for moment in MOMENTS},
            }

    def _part(self, whole: Tensor) -> Tensor:
        return whole if self._shards is None else self._shards.part(whole).clone()

    def _whole(self, found: Iterable[tuple[str, str, Tensor]]) -> dict[str, Tensor]:
        """Of (key, parameter name, tensor of what is updated) here: {key: whole tensor}."""
        if self._shards is None:
            return {key: tensor for key, _, tensor in found}
        kept: dict[str, Tensor] = {}
        for key, name, part in found:
            whole = self._shards.whole(name, part)
            if self._ranks.is_main:
                kept[key] = whole.cpu()
        return kept
