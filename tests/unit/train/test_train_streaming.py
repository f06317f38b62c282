"""Streamed layers beside resident ones, to the last bit, and when the planner streams."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import LENGTHS, gradients, small_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config

from yarn_ops.errors import TrainError
from yarn_ops.recipe import Train
from yarn_ops.train.decoder import Decoder
from yarn_ops.train.events import EventLog
from yarn_ops.train.layout_search import Prediction, predict, require_readable
from yarn_ops.train.loop import run_job
from yarn_ops.train.lora import TENSORS
from yarn_ops.train.model_shape import ModelShape
from yarn_ops.train.parallel.layout import Layout, StepShape
from yarn_ops.train.parallel.ranks import Ranks
from yarn_ops.train.plan import GIB, HOST_LADDER, LADDER
from yarn_ops.train.probe import GPUS
from yarn_ops.train.streaming import StreamedLayers, streamed_places

H200 = GPUS[1]
LLAMA_8B = ModelShape(32, 4096, 14336, 32, 8, 128, 128256, parameters=8_072_204_288, trained=41_943_040)
QWEN_32B = ModelShape(64, 5120, 27648, 40, 8, 128, 152064, parameters=32_898_000_000, trained=134_217_728)
LLAMA_70B = ModelShape(80, 8192, 28672, 64, 8, 128, 128256, parameters=70_760_000_000, trained=207_000_000)
LAYERS = 5


def planned(
    shape: ModelShape, tokens: int, memory_gib: float, host_gib: float = 96, **step: Any
) -> Prediction:
    step_shape = StepShape(
        **{"windows": 1, "batch_windows": 1, "heads": 32, "kv_heads": 8, "ours": True} | step, tokens=tokens
    )
    return predict(
        1, step_shape, Train(), shape, H200.rates, memory_bytes=memory_gib * GIB, host_bytes=host_gib * GIB
    )


@pytest.mark.parametrize("config", [LlamaConfig, Qwen3Config])
@pytest.mark.parametrize("streamed", [1, 2, 3, LAYERS])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_streamed_step_is_the_resident_one_to_the_last_bit(
    config: Any, streamed: int, device: str, mapped: bool
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU here")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    policies = [LADDER[0], LADDER[1], HOST_LADDER[1], LADDER[3], LADDER[4]]
    ids_BT = torch.randint(0, 96, (1, sum(LENGTHS))).to(device)
    wide = {} if device == "cpu" else {"head_dim": 64, "hidden_size": 256}

    def steps(streams: bool) -> list[dict[str, torch.Tensor]]:
        model = small_model(config, dtype=dtype, num_hidden_layers=LAYERS, **wide)
        absent = None
        if streams:
            places = streamed_places(LAYERS, streamed)
            absent = StreamedLayers(model.model.layers, places, device, mapped=mapped)
        model.to(device)
        decoder, found = Decoder(model, dtype, policies, absent=absent), []
        for _ in range(3):  # the second and third begin where the backward before left the slots
            hidden = decoder(ids_BT, None)
            found.append({"hidden": hidden.detach(), **gradients(model, hidden)})
            with torch.no_grad():
                found[-1]["logits"] = model(input_ids=ids_BT).logits  # by transformers' own forward
        return found

    for ours, theirs in zip(steps(streams=True), steps(streams=False), strict=True):
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_streamed_places_are_spread() -> None:
    assert streamed_places(8, 8) == list(range(8))
    assert streamed_places(8, 4) == [1, 3, 5, 7]
    assert streamed_places(8, 3) == [2, 5, 7]
    assert streamed_places(3, 0) == []


def test_weights_of_a_mapped_file_stay_there(tmp_path: Path) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 64}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path).requires_grad_(False)
    expected = [layer.mlp.up_proj.weight.clone() for layer in model.model.layers]
    absent = StreamedLayers(model.model.layers, range(4), "cpu", mapped=True)
    assert len({layer.mlp.up_proj.weight.data_ptr() for layer in model.model.layers}) == 2
    for place in (0, 1, 2, 3, 3, 2, 1, 0):
        with absent.gathered(place, place + 1):
            assert torch.equal(model.model.layers[place].mlp.up_proj.weight, expected[place])


@pytest.mark.parametrize("layout", [Layout(streamed=1), Layout(streamed=2), Layout(streamed=2, mapped=True)])
def test_a_leg_writes_the_same_adapter(make_job: Any, trained: Any, layout: Layout) -> None:
    """Loading, the proof by the model's own forward, steps and adapter; and the event says what streams."""
    resident = trained(make_job("resident", steps=3))
    job, ranks = make_job("streamed", steps=3), Ranks()
    job.work_dir.mkdir(parents=True)
    ranks.use_layout(layout)
    run_job(job, EventLog(job.events, steps=3, through_step=0), threading.Event(), None, ranks)
    written = [(each.out_dir / TENSORS).read_bytes() for each in (job, resident)]
    assert written[0] == written[1]
    assert layout.describe() in job.events.read_text("utf-8")


def test_files_of_another_precision_cannot_be_read_as_they_are() -> None:
    require_readable(Layout(streamed=2, mapped=True), {"dtype": "bfloat16"}, torch.bfloat16)
    require_readable(Layout(streamed=2), {"dtype": "float32"}, torch.bfloat16)
    with pytest.raises(TrainError, match=r"files hold float32, not bfloat16; use a host with more memory"):
        require_readable(Layout(streamed=2, mapped=True), {"torch_dtype": "float32"}, torch.bfloat16)


def test_what_fits_whole_is_not_streamed() -> None:
    assert planned(LLAMA_8B, 32768, 139.8).layout == Layout()


@pytest.mark.parametrize(
    ("shape", "tokens", "memory_gib", "beside_gib", "ratio"),
    [
        (LLAMA_8B, 32768, 23.5, 139.8, 1.25),
        (LLAMA_8B, 32768, 11.5, 139.8, 1.4),
        (QWEN_32B, 32768, 23.5, 139.8, 1.15),
    ],
)
def test_a_small_card_takes_little_longer(
    shape: ModelShape, tokens: int, memory_gib: float, beside_gib: float, ratio: float
) -> None:
    found, beside = planned(shape, tokens, memory_gib), planned(shape, tokens, beside_gib)
    assert found.layout.streamed and not found.layout.mapped
    assert found.plan.peak_bytes <= 0.95 * memory_gib * GIB
    assert beside.step_s <= found.step_s <= ratio * beside.step_s


def test_a_base_larger_than_the_card_streams_in_part() -> None:
    found = planned(LLAMA_70B, 32768, 139.8)
    assert 0 < found.layout.streamed < LLAMA_70B.layers
    assert found.plan.host_bytes <= 96 * GIB


def test_a_host_that_cannot_hold_the_base_reads_it_from_its_files() -> None:
    found = planned(LLAMA_8B, 32768, 11.5, host_gib=12)
    assert found.layout.mapped and "streamed from files" in found.layout.describe()
    assert found.plan.host_bytes <= 12 * GIB
    assert found.step_s > planned(LLAMA_8B, 32768, 11.5).step_s


def test_a_host_too_small_is_told_what_would_do() -> None:
    with pytest.raises(TrainError, match=r"needs [\d.]+ GiB of host memory, there are 2.0; .* as much free"):
        planned(LLAMA_8B, 131072, 23.5, host_gib=2)


def test_layers_that_are_not_ours_or_learn_are_not_streamed() -> None:
    for shape, ours in ((LLAMA_8B, False), (replace(LLAMA_8B, full=True), True)):
        with pytest.raises(TrainError, match="GiB of the device's memory"):
            planned(shape, 32768, 11.5, ours=ours)
