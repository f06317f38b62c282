"""Which layout several processes take, and which they cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from yarn_ops.errors import TrainError
from yarn_ops.recipe import Train
from yarn_ops.train.layout_search import predict
from yarn_ops.train.model_shape import ModelShape
from yarn_ops.train.parallel.layout import Layout, StepShape, usable_processes
from yarn_ops.train.plan import GIB, LADDER, step_cost
from yarn_ops.train.probe import GPUS

H100 = GPUS[0]
LLAMA_8B = ModelShape(32, 4096, 14336, 32, 8, 128, 128256, parameters=8_072_204_288, trained=41_943_040)
LLAMA = {"architectures": ["LlamaForCausalLM"], "num_attention_heads": 32, "num_key_value_heads": 8}


def step(tokens: int = 32768, config: dict[str, Any] = LLAMA, **train: Any) -> StepShape:
    return StepShape.of(Train(**train), tokens, config)


def chosen(processes: int, tokens: int, memory_gib: float = 79, **train: Any) -> Layout:
    found = predict(
        processes,
        step(tokens, **train),
        Train(**train),
        LLAMA_8B,
        H100.rates,
        memory_bytes=memory_gib * GIB,
        host_bytes=96 * GIB,
    )
    return found.layout


def test_windows_are_shared_before_tokens() -> None:
    assert list(step(gradient_accumulation_steps=4).shares(4)) == [(4, 1), (2, 2), (1, 4)]
    assert list(step(gradient_accumulation_steps=3).shares(4)) == [(1, 4)]
    assert chosen(2, 32768, memory_gib=140, gradient_accumulation_steps=2) == Layout(data=2)
    # with less memory, half a window lets each layer keep more, which is worth what it costs to turn
    assert chosen(2, 32768, memory_gib=79, gradient_accumulation_steps=2) == Layout(context=2)


def test_one_window_is_cut() -> None:
    assert chosen(2, 131072) == Layout(context=2)
    assert chosen(8, 524288) == Layout(context=8)


def test_a_base_that_one_device_does_not_hold_is_sharded() -> None:
    layout = chosen(4, 8192, memory_gib=17, gradient_accumulation_steps=4)
    assert layout.sharded
    with pytest.raises(TrainError, match="needs"):
        chosen(4, 8192, memory_gib=17, gradient_accumulation_steps=4, shard_base="no")


def test_sharding_and_cutting_take_memory_off_each_device() -> None:
    least = [LADDER[1]] * LLAMA_8B.layers
    peaks = [
        step_cost(LLAMA_8B.laid_out(layout), least, 131072 // layout.context, 131072, H100.rates).peak_bytes
        for layout in (Layout(), Layout(2, 1, True), Layout(context=2), Layout(context=2, sharded=True))
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert LLAMA_8B.laid_out(Layout(2, 1, True)).fixed_bytes < 0.67 * LLAMA_8B.fixed_bytes


WHOLE_8B = replace(LLAMA_8B, parameters=8_030_261_248, trained=8_030_261_248, full=True, weight_bytes=4)


def test_several_processes_share_the_optimizer_of_all_parameters() -> None:
    """Bytes of a parameter: 2 to compute with, and a share of 16 (float32 weight, gradient, two moments)."""
    for processes in (2, 8):
        whole = step(gradient_accumulation_steps=processes)
        asked = {"memory_bytes": 139.8 * GIB, "host_bytes": 96 * GIB}
        found = predict(processes, whole, Train(method="full"), WHOLE_8B, H100.rates, **asked)
        assert found.layout.optimizer_sharded and "optimizer sharded" in found.layout.describe()
        fixed = WHOLE_8B.laid_out(found.layout).fixed_bytes
        embedding = 128256 * 4096  # in float32
        assert fixed == pytest.approx((2 + 16 / processes) * WHOLE_8B.trained + 2 * embedding, rel=1e-6)
        assert fixed < found.plan.peak_bytes < 0.95 * 139.8 * GIB
    with pytest.raises(TrainError, match=r"needs 149\.\d GiB of the device's memory"):
        predict(1, step(8192), Train(method="full"), WHOLE_8B, H100.rates, **asked)
    with pytest.raises(TrainError, match=r"choose train\.method lora, or more GPUs"):
        predict(1, step(), Train(method="full"), WHOLE_8B, H100.rates, **asked | {"memory_bytes": 80 * GIB})
    with pytest.raises(TrainError, match=r"^train.shard_base: .*frozen.*set it to auto$"):
        predict(2, step(), Train(method="full", shard_base="yes"), WHOLE_8B, H100.rates, **asked)


@pytest.mark.parametrize(
    ("config", "usable"),
    [
        (LLAMA, 8),
        (LLAMA | {"num_key_value_heads": 2}, 8),
        (LLAMA | {"num_attention_heads": 12, "num_key_value_heads": 4}, 4),
        (LLAMA | {"architectures": ["GPTNeoXForCausalLM"]}, 1),
    ],
)
def test_as_many_processes_as_share_a_window(config: dict[str, Any], usable: int) -> None:
    assert usable_processes(8, step(config=config)) == usable
    assert usable_processes(10**12, step(config=config)) >= usable  # at once


def test_a_forced_layout_is_taken_or_refused_in_one_line() -> None:
    assert chosen(4, 32768, gradient_accumulation_steps=4, context_parallel=4) == Layout(context=4)
    assert chosen(4, 32768, gradient_accumulation_steps=4, shard_base="yes").sharded
    with pytest.raises(TrainError, match=r"with 2 a window, not 3; leave it empty"):
        chosen(2, 32768, context_parallel=3)
    with pytest.raises(TrainError, match=r"train.shard_base: layers are sharded among several processes"):
        chosen(2, 32768, shard_base="yes", method="lora", precision="fp8")


def test_processes_that_share_no_step_are_refused_without_naming_what_nobody_asked_for() -> None:
    with pytest.raises(TrainError, match=r"key-value heads in no way; change train\.gradient_accumulation"):
        chosen(3, 32768, batch_windows=1, gradient_accumulation_steps=4)
