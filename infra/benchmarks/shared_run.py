"""One model of a shape, and the way its steps are shared by several GPUs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from peft import LoraConfig, inject_adapter_in_model
from train_step import random_model, shape_config

from yarn_ops.train.backbone import Backbone
from yarn_ops.train.batches import IGNORED, Batch
from yarn_ops.train.loss import CausalLoss
from yarn_ops.train.optimizer import Optimizer
from yarn_ops.train.parallel.ranks import Ranks
from yarn_ops.train.parallel.sharding import ShardedLayers
from yarn_ops.train.plan import LayerPolicy

LORA = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
STEPS = 2
Fields = dict[str, Any]


class Work(NamedTuple):
    """Steps of one shape."""

    shape: Fields
    tokens: int
    windows: int
    """of an optimizer step"""
    full: bool = False
    """all parameters learn; else LoRA"""
    steps: int = STEPS


class Run:
    """One model and the way its steps are shared."""

    def __init__(self, work: Work, ranks: Ranks, policies: list[LayerPolicy] | None = None) -> None:
        torch.manual_seed(0)
        self.tokens, self.ranks = work.tokens, ranks
        self.config = shape_config(work.shape, work.tokens)
        self.model = prepared(random_model(self.config, device()), work.full)
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        self.learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        layers = self.model.base_model.layers
        absent = ShardedLayers(layers, device(), ranks.size) if ranks.layout.sharded else None
        self.optimizer = Optimizer(self.model, 0.0, torch.bfloat16, ranks)
        self.backbone = Backbone(
            self.model,
            torch.bfloat16,
            windows=1,
            window=work.tokens,
            policies=policies,
            ranks=ranks,
            absent=absent,
        )
        self.loss_of = CausalLoss(self.model, self.backbone, torch.bfloat16, ranks.context_group)

    def backward(self, number: int, windows: int) -> float:
        """Gradients of this process's share of a step of `windows`; the step's loss."""
        share = windows // self.ranks.layout.data
        mine = range(self.ranks.data_rank * share, (self.ranks.data_rank + 1) * share)
        loss = 0.0
        for window in mine:
            random = torch.Generator().manual_seed(1000 * number + window)
            ids = torch.randint(0, self.config.vocab_size, (1, self.tokens), generator=random).to(device())
            targets = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], IGNORED)], dim=1)
            batch = Batch(ids, targets, None, self.tokens - 1, frozenset()).part(self.ranks.context_group)
            part = self.loss_of(batch).total / (windows * (self.tokens - 1))
            part.backward()
            self.optimizer.accumulated()
            loss += float(part.detach())
        return self.ranks.total(loss)

    def step(self, number: int, windows: int) -> float:
        loss = self.backward(number, windows)
        self.optimizer.update(1e-4, 1.0)
        return loss


def prepared(model: Any, full: bool) -> Any:
    """What learns is in float32, the rest frozen in bf16."""
    model.requires_grad_(full)
    if not full:
        inject_adapter_in_model(LORA, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
