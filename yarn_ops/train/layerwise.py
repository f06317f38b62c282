"""Several versions of a model read the same windows layer by layer, with one part of one version in memory.

The arguments of a layer besides hidden states (masks, rotary tables, positions) are recorded from the model's
own forward, with stand-ins for the layers. So they are right for every architecture.

Axes: T tokens of a window, D hidden width, N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from yarn_ops.models.head import Head
from yarn_ops.models.parts import PartedModel

WHOLE_HEADS = "yarn-ops-whole-heads"
"""an attention implementation, see `repeat_key_heads`"""
StandIn = Callable[[int, Tensor, dict[str, Any]], Tensor]
"""layer number, hidden states, the call's other arguments → hidden states"""
Window = tuple[Tensor, Tensor]
"""tokens and their positions, int64 [1, T] each"""


class Layerwise:
    """The hidden states of several versions of one model on windows, up to the layer reached.

    Each version goes through all layers in order; its part of the model has to have data when it does.
    """

    def __init__(self, parted: PartedModel, windows: Sequence[Window]) -> None:
        self._parted, self._model = parted, parted.model
        if parted.device.startswith("cuda"):
            repeat_key_heads(self._model)
        self._windows = [tuple(part.to(parted.device) for part in window) for window in windows]
        self._calls: list[list[dict[str, Any]]] = []
        """of each window, of each layer"""
        self._hidden: dict[str, list[Tensor]] = {}
        """of each version, of each window (1 × T × D)"""

    @torch.inference_mode()
    def embed(self, version: str) -> None:
        """Begin a version, with the data of the front."""
        self._calls, self._hidden[version] = [], []
        for ids, positions in self._windows:
            calls: list[dict[str, Any]] = []
            with self._layers_replaced(_noting(calls, last=len(self._parted.layers) - 1)):
                try:
                    self._model.base_model(
                        input_ids=ids,
                        position_ids=positions,
                        attention_mask=torch.ones_like(
                            ids
                        ),  # else positions with gaps would be as many texts
                        use_cache=False,
                    )
                except _AllNoted as noted:
                    self._hidden[version].append(noted.hidden)
            self._calls.append(calls)

    @torch.inference_mode()
    def advance(self, version: str, layer: int) -> None:
        """Take a version through a layer, with its data."""
        module, hidden = self._parted.layers[layer], self._hidden[version]
        for number, calls in enumerate(self._calls):
            hidden[number] = module(hidden[number], **calls[layer])

    @torch.inference_mode()
    def log_probabilities(self, version: str, positions: int) -> list[Tensor]:
        """Next-token log-probabilities at so many evenly spaced positions of each window, the last one
        included, with the data of what comes after the layers (float32, N × V, CPU). Ends the version."""
        found = []
        for hidden in self._hidden.pop(version):
            at = torch.linspace(0, hidden.shape[1] - 1, min(positions, hidden.shape[1])).long()
            taken_1ND = hidden[:, at.to(hidden.device)]
            with self._layers_replaced(lambda *_, taken=taken_1ND: taken):
                output = self._model.base_model(inputs_embeds=taken_1ND, use_cache=False)
            head = Head.of(self._model, taken_1ND.dtype)
            found.append(head.logits(output.last_hidden_state[0]).log_softmax(-1).cpu())
        return found

    @contextmanager
    def _layers_replaced(self, stand_in: StandIn) -> Iterator[None]:
        layers: list[Any] = self._parted.layers
        for number, layer in enumerate(layers):
            layer.forward = lambda hidden, number=number, **call: stand_in(number, hidden, call)
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward


def repeat_key_heads(model: PreTrainedModel) -> None:
    """Give each query head its own copy of its key head, where PyTorch's attention is used.

    In float32 on a GPU, PyTorch's blocked kernel shares no key heads; where they are shared, all T² scores of
    every head are in memory at once.
    """
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(WHOLE_HEADS, _attend_whole_heads)
        AttentionMaskInterface.register(WHOLE_HEADS, sdpa_mask)
        model.set_attn_implementation(WHOLE_HEADS)


def _attend_whole_heads(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    shares_none = SimpleNamespace(is_causal=getattr(module, "is_causal", True))
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    output, _ = sdpa_attention_forward(shares_none, query, key, value, attention_mask, **options)  # type: ignore[arg-type]
    return output, None


class _AllNoted(Exception):
    """Ends a forward before it reaches what has no data yet."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def _noting(calls: list[dict[str, Any]], last: int) -> StandIn:
    def note(number: int, hidden: Tensor, call: dict[str, Any]) -> Tensor:
        calls.append(call)
        if number == last:
            raise _AllNoted(hidden)
        return hidden

    return note
