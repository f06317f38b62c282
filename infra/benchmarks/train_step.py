"""The LoRA training step at long context, beside what a user would pick, in one process on one GPU.

    python infra/benchmarks/train_step.py --arms peer,plan --tokens 32768 --out rows.jsonl

The shape is a Llama's (`--shape`, 8B unless told) with random weights, LoRA (`--rank`, 16) on every linear
layer, batch 1, YaRN ×4. Each arm is a new model; a step is timed whole (forward, backward, optimizer) between
synchronisations, and the median of `--steps` after a warm-up counts.

    peer                  transformers + PEFT + Liger kernels with gradient checkpointing, autocast
    plan                  our layers as the planner chooses what they keep
    ours:attention        our layers, told what to keep; `everything*24+input@host*8` mixes it by layer
    fp8, fp8:attention    the same with the frozen weights' products in 8 bits
    correct               our bf16 gradients against transformers' in float32, on a small shape

Beside what was measured stands what the planner predicted. `--backward-layers N` ends a step after N layers'
backward, when its memory has peaked, and extrapolates its seconds: for lengths whose steps take minutes.

MFU is model FLOPs (no recomputation, no gradients of frozen weights) at 790 TFLOP/s, which a large bf16
product reaches on an H200.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_ops.train import decoder
from yarn_ops.train.backbone import Backbone
from yarn_ops.train.batches import Batch
from yarn_ops.train.decoder import Decoder
from yarn_ops.train.loss import CausalLoss
from yarn_ops.train.plan import LayerPolicy

PEAK_FLOPS = 790e12
SHAPES = {
    "llama-3-8b": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "llama-3.2-3b": {
        "vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
        "num_attention_heads": 24, "num_key_value_heads": 8,
    },
    "llama-3.2-1b": {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "qwen-2.5-32b": {
        "vocab_size": 152064, "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64,
        "num_attention_heads": 40, "num_key_value_heads": 8,
    },
    "smollm2-135m": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    "llama-3-70b": {
        "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8,
    },
}  # fmt: skip
SHAPE = SHAPES["llama-3-8b"]
SMALL = SHAPE | {"vocab_size": 8192, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4}
SMALL |= {"num_attention_heads": 8, "num_key_value_heads": 2}
LORA = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arms", default="peer,plan")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3-8b")
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--backward-layers", type=int)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    for arm in arguments.arms.split(","):
        try:
            row = correct() if arm == "correct" else measure(arm, arguments)
        except torch.cuda.OutOfMemoryError as error:
            row = {"arm": arm, "tokens": arguments.tokens, "failed": str(error).splitlines()[0]}
        print(json.dumps(row), flush=True)
        if arguments.out:
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        gc.collect()
        torch.cuda.empty_cache()


def measure(arm: str, arguments: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    torch.cuda.reset_peak_memory_stats()
    tokens = arguments.tokens
    kind, _, policy = arm.partition(":")
    shape = SHAPES[arguments.shape]
    config = shape_config(
        shape | {"num_hidden_layers": arguments.layers or shape["num_hidden_layers"]}, tokens
    )
    lora = LoraConfig(r=arguments.rank, lora_alpha=2 * arguments.rank, target_modules="all-linear")
    if kind == "peer":
        step, predicted = peer(config, lora), {}
    else:
        step, predicted = ours(config, lora, tokens, policy, float8=kind == "fp8")
    torch.cuda.reset_peak_memory_stats()
    if arguments.backward_layers:
        return {"arm": arm, "tokens": tokens, **part_of_step(step, config, arguments), **predicted}
    seconds, losses = [], []
    for number in range(arguments.steps + 1):
        ids = torch.randint(0, config.vocab_size, (1, tokens), device="cuda")
        torch.cuda.synchronize()
        began = time.perf_counter()
        losses.append(step(ids))
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        if arguments.profile and number == arguments.steps:
            profile(lambda ids=ids: step(ids))
    step_s = statistics.median(seconds[1:] or seconds)
    return {
        "arm": arm,
        "shape": arguments.shape,
        "device": torch.cuda.get_device_name(),
        "tokens": tokens,
        "rank": arguments.rank,
        "step_s": round(step_s, 3),
        "tokens_per_s": round(tokens / step_s),
        "mfu": round(model_flops(config, tokens) / step_s / PEAK_FLOPS, 3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        **predicted,
        "all_s": [round(value, 3) for value in seconds],
        "losses": [round(loss, 4) for loss in losses],
    }


class EnoughError(Exception):
    """The backward has gone through as many layers as were asked for."""


def part_of_step(
    step: Callable[[torch.Tensor], float], config: LlamaConfig, arguments: argparse.Namespace
) -> dict[str, Any]:
    """A forward and some layers' backward, each layer timed where its input's gradient is ready."""
    layers, asked, ready = config.num_hidden_layers, arguments.backward_layers, []

    def arrived(_: torch.Tensor) -> None:
        torch.cuda.synchronize()
        ready.append(time.perf_counter())
        if len(ready) > asked:
            raise EnoughError

    def watched(x: torch.Tensor, *others: Any) -> torch.Tensor:
        y = layer(x, *others)
        y.register_hook(arrived)
        return y

    layer, decoder.decoder_layer = decoder.decoder_layer, watched
    began = time.perf_counter()
    try:
        step(torch.randint(0, config.vocab_size, (1, arguments.tokens), device="cuda"))
    except EnoughError:
        pass
    finally:
        decoder.decoder_layer = layer
    layer_s = (ready[-1] - ready[0]) / asked
    step_s = ready[0] - began + layers * layer_s
    return {
        "extrapolated": True,
        "step_s": round(step_s, 1),
        "forward_and_loss_s": round(ready[0] - began, 1),
        "backward_layer_s": round(layer_s, 2),
        "mfu": round(model_flops(config, arguments.tokens) / step_s / PEAK_FLOPS, 3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        "host_gib": round(psutil.Process().memory_info().rss / 2**30, 1),
    }


def shape_config(shape: dict[str, Any], tokens: int) -> LlamaConfig:
    rope = {
        "rope_type": "yarn",
        "rope_theta": 5e5,
        "factor": 4.0,
        "original_max_position_embeddings": tokens // 4,
    }
    return LlamaConfig(**shape, max_position_embeddings=tokens, rope_parameters=rope, use_cache=False)


def random_model(config: LlamaConfig, device: str = "cuda") -> LlamaForCausalLM:
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).train()
    finally:
        torch.set_default_dtype(torch.float32)


def peer(config: LlamaConfig, lora: LoraConfig) -> Callable[[torch.Tensor], float]:
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    apply_liger_kernel_to_llama()
    model = get_peft_model(random_model(config), lora)
    model.get_base_model().gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    model.enable_input_require_grads()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def step(ids: torch.Tensor) -> float:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def ours(
    config: LlamaConfig, lora: LoraConfig, tokens: int, policy: str, *, float8: bool
) -> tuple[Callable[[torch.Tensor], float], dict[str, Any]]:
    model = random_model(config)
    model.requires_grad_(False)
    inject_adapter_in_model(lora, model)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(learning, lr=1e-4, fused=True)
    told = policies(policy, config) if policy else None
    backbone = Backbone(model, torch.bfloat16, windows=1, window=tokens, policies=told, float8=float8)
    if float8:
        backbone.quantise()
    loss_of = CausalLoss(model, backbone, torch.bfloat16)

    def step(ids: torch.Tensor) -> float:
        targets = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], dim=1)
        batch = Batch(ids, targets, None, ids.numel() - 1, frozenset())
        loss = loss_of(batch).total / batch.target_tokens
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    plan = backbone.plan
    predicted = {
        "kept": plan.describe(),
        "predicted_s": round(plan.step_s, 3),
        "predicted_gib": round(plan.peak_bytes / 2**30, 1),
    }
    return step, predicted


def policies(text: str, config: LlamaConfig) -> list[LayerPolicy]:
    """`everything*24+input@host*8`; one name alone is every layer's."""
    found: list[LayerPolicy] = []
    for part in text.split("+"):
        name, _, count = part.partition("*")
        keep, _, place = name.partition("@")
        found += [LayerPolicy(keep, place == "host")] * int(count or config.num_hidden_layers)  # type: ignore[arg-type]
    return found


def model_flops(config: LlamaConfig, tokens: int) -> float:
    d, layers = config.hidden_size, config.num_hidden_layers
    kv = config.num_key_value_heads * d // config.num_attention_heads
    linear = 2 * layers * (2 * d * d + 2 * d * kv + 3 * d * config.intermediate_size) * tokens
    attention = layers * 4 * d * tokens**2 / 2
    return 2 * linear + 3.5 * attention + 4 * config.vocab_size * d * tokens


def profile(step: Callable[[], float]) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        step()
    print(profiler.key_averages().table(sort_by="cuda_time_total", row_limit=22, max_name_column_width=90))


def correct() -> dict[str, Any]:
    """Relative errors of loss and adapter gradients, bf16 kernels against float32 in transformers."""
    torch.manual_seed(0)
    config = shape_config(SMALL, 4096)
    model = random_model(config).float().requires_grad_(False)
    inject_adapter_in_model(LORA, model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ids = torch.randint(0, config.vocab_size, (1, 4096), device="cuda")
    targets = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], dim=1)
    positions = torch.cat([torch.arange(n) for n in (1000, 1, 2000, 1095)])[None]
    reference: dict[bool, tuple[float, dict[str, torch.Tensor]]] = {}
    for packed in (False, True):
        model.zero_grad()
        pieces = [(0, 1000), (1000, 1001), (1001, 3001), (3001, 4096)] if packed else [(0, 4096)]
        hidden = torch.cat([model.base_model(input_ids=ids[:, a:b]).last_hidden_state for a, b in pieces], 1)
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden)[0], targets[0], ignore_index=-100)
        loss.backward()
        reference[packed] = (float(loss.detach()), {name: p.grad.clone() for name, p in learning.items()})
    model.to(torch.bfloat16)
    for parameter in learning.values():
        parameter.data = parameter.data.float()
    worst: dict[str, Any] = {"arm": "correct"}
    for packed in (False, True):
        for keep in ("everything", "attention", "outputs", "input", "input@host"):
            model.zero_grad()
            hidden = Decoder(model, torch.bfloat16, policies(keep, config))
            batch = Batch(ids, targets, positions if packed else None, 4095, frozenset())
            loss = CausalLoss(model, hidden, torch.bfloat16)(batch).total / 4095
            loss.backward()
            expected, gradients = reference[packed]
            apart = max(
                float((p.grad - gradients[n]).norm() / gradients[n].norm()) for n, p in learning.items()
            )
            off = abs(float(loss) / expected - 1)
            worst[f"{keep}{' packed' * packed}"] = [f"{off:.1e}", f"{apart:.1e}"]
    return worst


if __name__ == "__main__":
    main()
