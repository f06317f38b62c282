"""Small random models, their hidden states by our layers, and gradients, for whoever compares layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from yarn_ops.train.decoder import Decoder
from yarn_ops.train.lora import attach_to_modules
from yarn_ops.train.model_shape import TILE_ROWS
from yarn_ops.train.plan import LayerPolicy

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 256,
}  # fmt: skip
LENGTHS = (20, 1, 29)


def small_model(
    config: Any, *, whole: bool = False, dtype: torch.dtype = torch.float64, **values: Any
) -> Any:
    torch.manual_seed(0)
    built = config(**SIZES | values, attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(built, dtype=torch.float32).to(dtype)
    if not whole:
        targets = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        inject_adapter_in_model(LoraConfig(r=4, lora_alpha=8, target_modules=targets), model)
        model.to(dtype)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".lora_" in name)
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def gradients(model: PreTrainedModel, hidden_BTD: Tensor) -> dict[str, Tensor]:
    """Of a fixed random function of the hidden states."""
    random = torch.Generator().manual_seed(1)
    weights = torch.randn(hidden_BTD.shape, dtype=torch.bfloat16, generator=random).to(hidden_BTD)
    model.zero_grad()
    (hidden_BTD * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def decode(
    model: PreTrainedModel, ids_BT: Tensor, packed: bool, policy: LayerPolicy, tile_rows: int = TILE_ROWS
) -> Tensor:
    positions_BT = torch.cat([torch.arange(n) for n in LENGTHS]).expand(ids_BT.shape) if packed else None
    dtype = next(model.parameters()).dtype
    decoder = Decoder(model, dtype, [policy] * len(model.model.layers), tile_rows=tile_rows)
    return decoder(ids_BT, positions_BT)


def attach_adapter(model: Any, directory: Path) -> list[str]:
    """Put a kept adapter on a bare model; returns as `load_trained` does."""
    return attach_to_modules(model, directory, [""])[1]
