"""A model with adapters on one GPU, its frozen weights there, streamed or in 4 bits, and its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import psutil
import torch
from peft import inject_adapter_in_model
from torch import nn
from train_step import LORA
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_ops.train import decoder
from yarn_ops.train.backbone import Backbone
from yarn_ops.train.batches import IGNORED, Batch
from yarn_ops.train.decoder import AbsentLayers
from yarn_ops.train.layout_search import Prediction
from yarn_ops.train.loss import CausalLoss
from yarn_ops.train.model_shape import ModelShape
from yarn_ops.train.nf4 import Nf4Layers
from yarn_ops.train.parallel.ranks import Ranks
from yarn_ops.train.streaming import StreamedLayers, streamed_places


def adapted(config: LlamaConfig) -> LlamaForCausalLM:
    """A model with adapters, in bf16 and its adapters in float32, without values (meta device)."""
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model = LlamaForCausalLM(config).requires_grad_(False).train()
            inject_adapter_in_model(LORA, model)
    finally:
        torch.set_default_dtype(torch.float32)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def shape_of(model: LlamaForCausalLM) -> ModelShape:
    return ModelShape.of(model, element_bytes=2, weight_bytes=2)


@torch.no_grad()
def filled(module: nn.Module, device: str) -> nn.Module:
    """Random values: norms 1, matrices normal with 0.02, adapters too, so that all gradients are of use."""
    module.to_empty(device=device)
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(std=0.02)
    return module


def with_room(layers: nn.ModuleList, streamed: int) -> Iterator[nn.Module]:
    """The layers; where some will be pinned, each once the host has memory for two: a virtual machine's may
    grow as it is used, slower than it is taken."""
    layer_bytes = 2 * sum(parameter.numel() for parameter in layers[0].parameters())
    patience_s = 60.0
    for layer in layers:
        while streamed and patience_s > 0 and psutil.virtual_memory().available < 2 * layer_bytes:
            time.sleep(0.1)
            patience_s -= 0.1
        yield layer


class LayerTimes(NamedTuple):
    """A step of at least two layers, all of whose kernels it may have compiled."""

    step_s: float
    loss: float
    forward_s: float
    """of a layer, the mean without the first one's"""
    backward_s: float
    first_s: float
    """by which the first forward and the first backward took longer: what compiling took"""


class Run:
    """A model, its layers as a prediction lays them out, or in 4 bits, and its optimizer."""

    def __init__(
        self,
        config: LlamaConfig,
        tokens: int,
        device: str,
        found: Prediction,
        *,
        nf4: bool = False,
        keeps: int | None = None,
        tell: Callable[[dict[str, Any]], None] = print,
    ) -> None:
        """`keeps`: layers of a model of fewer than were foretold. `tell`: hears of a step begun again."""
        torch.manual_seed(0)
        self.config, self.tokens, self.device, self.tell = config, tokens, device, tell
        self.model = model = adapted(config)
        backbone, layout = model.base_model, found.layout
        # Each is made where it computes, when it is come to: a streamed one leaves before the next is made.
        made = (filled(layer, device) for layer in with_room(backbone.layers, layout.streamed))
        places = streamed_places(config.num_hidden_layers, layout.streamed)
        absent: AbsentLayers | None = None
        if layout.streamed:
            absent = StreamedLayers(made, places, device)
        elif nf4:
            absent = Nf4Layers(made, device)
        list(made)
        for part in (backbone.embed_tokens, backbone.norm, model.lm_head):
            filled(part, device)
        with torch.device(device):
            backbone.rotary_emb = type(backbone.rotary_emb)(config=config)
        self.learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.learning, lr=1e-4, fused=True)
        ranks = Ranks()
        ranks.use_layout(layout)
        # The last layers keep most: a model that only compiles takes what both ends of it keep.
        policies = found.plan.policies
        policies = policies if keeps is None else (policies[0], policies[-1])
        self.backbone = Backbone(
            model, torch.bfloat16, windows=1, window=tokens, policies=policies, ranks=ranks, absent=absent
        )
        self.loss_of = CausalLoss(model, self.backbone, torch.bfloat16)
        self.random = torch.Generator().manual_seed(1)

    def step(self) -> tuple[float, float]:
        """Seconds and loss; as the trainer, it begins again with less kept where memory is short."""
        ids = torch.randint(0, self.config.vocab_size, (1, self.tokens), generator=self.random).to(
            self.device
        )
        while True:
            began = self._now()
            try:
                loss = self.backward(ids)
            except torch.OutOfMemoryError:
                if not self.backbone.step_down():
                    raise
                self.tell({"stepped_down_to": self.backbone.plan.describe()})
                self.optimizer.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
                continue
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            return self._now() - began, loss

    def backward(self, ids: torch.Tensor) -> float:
        targets = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], IGNORED)], dim=1)
        batch = Batch(ids, targets, None, ids.numel() - 1, frozenset())
        loss = self.loss_of(batch).total / batch.target_tokens
        loss.backward()
        return float(loss.detach())

    def step_by_layers(self) -> LayerTimes:
        """One step; every layer is told as soon as it has computed."""
        layers, compute = len(self.model.base_model.layers), decoder.decoder_layer
        forwards, ready = list[float](), list[float]()

        def watched(x: torch.Tensor, *others: Any) -> torch.Tensor:
            if len(forwards) == layers:  # the step begins again
                forwards.clear()
                ready.clear()
            began = self._done()
            y = compute(x, *others)
            forwards.append(self._done() - began)
            self.tell({"forward_of": len(forwards), "s": round(forwards[-1], 3)})
            y.register_hook(arrived)
            return y

        def arrived(_: torch.Tensor) -> None:
            ready.append(self._done())
            if len(ready) > 1:
                self.tell({"backward_of": layers - len(ready) + 2, "s": round(ready[-1] - ready[-2], 3)})

        decoder.decoder_layer = watched
        try:
            step_s, loss = self.step()
        finally:
            decoder.decoder_layer = compute
        backwards = [end - begin for begin, end in pairwise([*ready, self._done()])]
        forward_s, backward_s = (sum(each[1:]) / (layers - 1) for each in (forwards, backwards))
        first_s = forwards[0] - forward_s + backwards[0] - backward_s
        return LayerTimes(step_s, loss, forward_s, backward_s, first_s)

    def _done(self) -> float:
        """The time once all is computed; copies to and from the host may go on."""
        if self.device == "cuda":
            torch.cuda.current_stream().synchronize()
        return time.perf_counter()

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
