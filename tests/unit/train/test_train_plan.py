"""The planner against steps that were measured, and its choices."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_ops.errors import TrainError
from yarn_ops.recipe import Train
from yarn_ops.train.lora import make_trainable
from yarn_ops.train.model_shape import ModelShape
from yarn_ops.train.plan import (
    GIB,
    HOST_LADDER,
    LADDER,
    LayerPolicy,
    model_flops,
    plan_step,
    step_cost,
    step_down,
)
from yarn_ops.train.probe import GPUS, known_gpu

RESULTS = Path(__file__).parents[3] / "infra" / "benchmarks" / "results" / "train-step-h200.jsonl"
H200 = GPUS[1]
LLAMAS = {
    "llama-3-8b": (32, 4096, 14336, 32, 128, 2),
    "llama-3.2-3b": (28, 3072, 8192, 24, 128, 2),
    "llama-3.2-1b": (16, 2048, 8192, 32, 64, 2),
}
"""layers, hidden, MLP, heads, head width, embeddings (input and output: the benchmark does not tie them)"""


def llama(name: str, rank: int = 16, layers: int | None = None) -> ModelShape:
    """A Llama's shape with LoRA on every linear layer; all have 8 key-value heads and 128,256 tokens."""
    whole, d, f, heads, head_width, embeddings = LLAMAS[name]
    layers, kv = layers or whole, 8 * head_width
    widths = (d + d) * 2 + (d + kv) * 2 + (d + f) * 3  # in + out of q, o; k, v; gate, up, down
    trained = layers * rank * widths
    frozen = layers * (d * (2 * d + 2 * kv + 3 * f) + 2 * d) + embeddings * 128256 * d + d
    return ModelShape(layers, d, f, heads, 8, head_width, 128256, frozen + trained, trained)


def llama_8b(layers: int = 32, rank: int = 16) -> ModelShape:
    return llama("llama-3-8b", rank, layers)


def measured() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()]


def policies_of(kept: str) -> list[LayerPolicy]:
    parts = re.findall(r"(\w+)( on the host)? × (\d+)", kept)
    return [LayerPolicy(keep, bool(host)) for keep, host, count in parts for _ in range(int(count))]  # type: ignore[arg-type]


def test_the_shape_is_llama_3_8b() -> None:
    assert llama_8b().trained == 41_943_040
    assert llama_8b().parameters - llama_8b().trained == 8_030_261_248
    assert model_flops(llama_8b(), 32768, 32768) == pytest.approx(1969e12, rel=1e-3)


@pytest.mark.parametrize(
    "row",
    measured(),
    ids=lambda row: (
        f"{row['shape']}-{row['tokens']}-{row['kept']}-r{row['rank']}-{row.get('precision', 'bf16')}"
    ),
)
def test_predicted_is_what_was_measured(row: dict[str, Any]) -> None:
    """Memory within 10 %, seconds within 20 %: by the table of GPUs, and as a probe predicted it there."""
    policies, rates = policies_of(row["kept"]), H200.rates
    if row.get("precision") == "fp8":
        rates = rates._replace(products=H200.float8_products)
    shape = llama(row["shape"], row["rank"], len(policies))
    cost = step_cost(shape, policies, row["tokens"], row["tokens"], rates)
    if "predicted_s" in row:
        assert row["predicted_gib"] == pytest.approx(row["peak_gib"], rel=0.1)
        assert row["predicted_s"] == pytest.approx(row["step_s"], rel=0.2)
    assert cost.peak_bytes / GIB == pytest.approx(row["peak_gib"], rel=0.1)
    if not row.get("extrapolated"):  # from a first step, compilation and all
        assert cost.step_s == pytest.approx(row["step_s"], rel=0.2)


@pytest.mark.parametrize("memory_gib", [30, 45, 80, 139.8])
def test_more_memory_is_spent_on_less_time(memory_gib: float) -> None:
    shape = llama_8b()
    plans = [
        plan_step(shape, 32768, 32768, H200.rates, memory_bytes=each * GIB, host_bytes=64 * GIB)
        for each in (memory_gib, memory_gib + 15)
    ]
    assert plans[0].peak_bytes <= 0.95 * memory_gib * GIB
    assert plans[1].step_s <= plans[0].step_s
    assert plans[0].describe() != "everything × 32" or memory_gib > 115


@pytest.mark.parametrize(
    ("tokens", "memory_gib", "host_gib", "words"),
    [
        (32768, 15, 64, "smaller base"),
        (1 << 21, 139.8, 64, "smaller rope.factor"),
        (1 << 19, 139.8, 8, "host memory"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_knob(
    tokens: int, memory_gib: float, host_gib: float, words: str
) -> None:
    with pytest.raises(TrainError, match=words):
        plan_step(
            llama_8b(), tokens, tokens, H200.rates, memory_bytes=memory_gib * GIB, host_bytes=host_gib * GIB
        )


@pytest.mark.parametrize(
    ("first", "steps"), [(LADDER[2], len(LADDER)), (HOST_LADDER[1], len(LADDER))], ids=["device", "host"]
)
def test_a_step_down_keeps_less_until_there_is_no_less(first: LayerPolicy, steps: int) -> None:
    shape, policies = llama_8b(2), [first, LADDER[-1]]
    peaks = []
    while policies:
        peaks.append(step_cost(shape, policies, 32768, 32768, H200.rates).peak_bytes)
        policies = step_down(policies) or []
    assert len(peaks) == steps
    assert peaks == sorted(peaks, reverse=True)


def test_a_long_window_s_inputs_go_to_the_host_so_that_attention_is_computed_once() -> None:
    """Where the host has the room: 1B's shape at a million tokens."""
    shape, tokens = llama("llama-3.2-1b"), 1 << 20
    roomy, small = (
        plan_step(
            shape, tokens, tokens, H200.rates, memory_bytes=H200.memory_bytes, host_bytes=host_gib * GIB
        )
        for host_gib in (100, 1)
    )
    assert all(policy.keep != "input" for policy in roomy.policies)
    assert roomy.describe().startswith("outputs (input on the host) ×")
    assert roomy.host_bytes == sum(policy.on_host for policy in roomy.policies) * tokens * 2048 * 2
    assert small.host_bytes == 0
    assert small.step_s > 1.1 * roomy.step_s


def test_what_a_layer_kept_is_gone_when_the_layers_before_it_compute() -> None:
    """So layers that keep less may take more beside it than the last ones."""
    shape, tokens = llama_8b(8), 1 << 19
    last = step_cost(shape, [LADDER[0]] * 7 + [LADDER[-1]], tokens, tokens, H200.rates).peak_bytes
    first = step_cost(shape, [LADDER[0]] * 8, tokens, tokens, H200.rates).peak_bytes
    all_ = step_cost(shape, [LADDER[-1]] * 8, tokens, tokens, H200.rates).peak_bytes
    assert first <= last < all_


def test_gpus_are_known_by_their_drivers_names() -> None:
    assert known_gpu("NVIDIA H100 80GB HBM3") is GPUS[0]
    assert known_gpu("NVIDIA H200") is H200
    assert known_gpu("Tesla V100-SXM2-16GB") is None


@pytest.mark.parametrize("train", [Train(train_embeddings=True), Train(method="full")], ids=["lora", "full"])
def test_adapters_are_no_full_training_however_large_the_embedding_that_learns(train: Train) -> None:
    config = LlamaConfig(
        vocab_size=4096, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    make_trainable(model, train)
    shape = ModelShape.of(model, element_bytes=2, weight_bytes=2)
    assert shape.trained > shape.parameters / 2
    assert shape.full == (train.method == "full")
