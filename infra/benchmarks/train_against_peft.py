"""Our training step against transformers + PEFT on a real base: gradients, and 50 steps on the same batches.

    python infra/benchmarks/train_against_peft.py BASE TEXT [--tokens 32768] [--steps 50] [--ways PEFT,ours]

BASE: a model directory; TEXT: a text file of some million characters. LoRA r=16 on every linear layer, YaRN
×4, learning rate 2e-3, one window a step, the same windows and the same first adapters for all three:

    ours        bf16, our layers
    fp8         the same with the frozen weights' products in 8 bits (Hopper or newer)
    PEFT        bf16 base, float32 adapters, autocast
    reference   transformers + PEFT in float32

Gradients are compared with those of the first way, at the adapters that it has learnt by the last step.
Prints a table.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from yarn_ops.train.backbone import Backbone
from yarn_ops.train.batches import Batch
from yarn_ops.train.loss import CausalLoss

LORA = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
RATE = 2e-3
WARM_UP = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--ways", default="reference,PEFT,ours")
    arguments = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    length = arguments.tokens + 1
    text = arguments.text.read_text("utf-8")[: 6 * length * arguments.steps]
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    windows = ids[: len(ids) // length * length].view(-1, 1, length).to(arguments.device)
    batches = [windows[step % len(windows)] for step in range(arguments.steps)]

    ways: dict[str, tuple[torch.dtype, Callable[[PreTrainedModel], Callable[[Tensor], Tensor]]]] = {
        "reference": (torch.float32, lambda model: theirs(model, torch.float32)),
        "PEFT": (torch.bfloat16, lambda model: theirs(model, torch.bfloat16)),
        "ours": (torch.bfloat16, lambda model: ours(model, arguments.tokens, float8=False)),
        "fp8": (torch.bfloat16, lambda model: ours(model, arguments.tokens, float8=True)),
    }
    curves, learnt, gradients = {}, {}, {}
    for name in arguments.ways.split(","):
        dtype, way = ways[name]
        model = load(arguments.base, arguments.tokens, dtype, arguments.device)
        loss_of = way(model)
        curves[name] = train(model, loss_of, batches)
        adapters = adapters_of(model)
        learnt = learnt or {key: value.detach().clone() for key, value in adapters.items()}
        with torch.no_grad():
            for key, value in adapters.items():
                value.copy_(learnt[key])
        loss_of(batches[0]).backward()
        gradients[name] = {key: value.grad.float().clone() for key, value in adapters.items()}
        del model, loss_of, adapters

    heads = ("loss first", "last 5", "off PEFT", "gradients: all", "median", "worst")
    print(" " * 10, *(f"{head:>15}" for head in heads))
    first = next(iter(curves))
    for name, curve in curves.items():
        off = max(abs(one / other - 1) for one, other in zip(curve, curves["PEFT"], strict=True))
        errors = [relative(gradients[name][key], value) for key, value in gradients[first].items()]
        whole = relative(together(gradients[name]), together(gradients[first]))
        figures = f"{curve[0]:15.4f} {statistics.fmean(curve[-5:]):15.4f} {off:15.2%}"
        print(f"{name:10} {figures} {whole:15.1e} {statistics.median(errors):15.1e} {max(errors):15.1e}")


def load(base: Path, tokens: int, dtype: torch.dtype, device: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(base)
    theta = config.rope_parameters["rope_theta"]
    config.rope_parameters = {
        "rope_type": "yarn", "rope_theta": theta, "factor": 4.0,
        "original_max_position_embeddings": config.max_position_embeddings,
    }  # fmt: skip
    config.max_position_embeddings = tokens
    model = AutoModelForCausalLM.from_pretrained(base, config=config, dtype=torch.bfloat16).to(device)
    model.to(dtype).requires_grad_(False)  # the same weights for all: those that bf16 can hold
    inject_adapter_in_model(LORA, model)
    generator = torch.Generator().manual_seed(1)
    for name, adapter in adapters_of(model).items():
        adapter.data = adapter.data.float()
        if "lora_A" in name:
            start = torch.empty(adapter.shape).uniform_(-1, 1, generator=generator) / adapter.shape[1] ** 0.5
            adapter.data.copy_(start)
    return model.train()


def adapters_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def ours(model: PreTrainedModel, tokens: int, *, float8: bool) -> Callable[[Tensor], Tensor]:
    backbone = Backbone(model, torch.bfloat16, windows=1, window=tokens, float8=float8)
    if float8:
        backbone.quantise()
    loss = CausalLoss(model, backbone, torch.bfloat16)

    def loss_of(ids: Tensor) -> Tensor:
        batch = Batch(ids[:, :-1], ids[:, 1:], None, ids.shape[1] - 1, frozenset())
        return loss(batch).total / (ids.shape[1] - 1)

    return loss_of


def theirs(model: PreTrainedModel, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    def loss_of(ids: Tensor) -> Tensor:
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0]
        return torch.nn.functional.cross_entropy(logits.float(), ids[0, 1:])

    return loss_of


def train(model: PreTrainedModel, loss_of: Callable[[Tensor], Tensor], batches: list[Tensor]) -> list[float]:
    optimizer = torch.optim.AdamW(adapters_of(model).values(), lr=RATE, betas=(0.9, 0.95), weight_decay=0)
    curve = []
    for step, ids in enumerate(batches):
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / WARM_UP)
        loss = loss_of(ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        curve.append(float(loss.detach()))
    return curve


def together(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


main()
