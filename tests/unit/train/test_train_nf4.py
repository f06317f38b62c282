"""Frozen weights in 4 bits: a step is that of the dequantised weights, a merge that of the base as it was."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import PROGRAM, TOLERANCE, together
from merged import merge
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from small_models import LENGTHS, gradients, small_model
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, Qwen3Config

from yarn_ops.errors import TrainError
from yarn_ops.recipe import Train
from yarn_ops.train.decoder import Decoder
from yarn_ops.train.events import read_events
from yarn_ops.train.job import Job
from yarn_ops.train.layout_search import predict, step_shape, training_shape
from yarn_ops.train.lora import TENSORS
from yarn_ops.train.model_shape import NF4_BYTES, ModelShape
from yarn_ops.train.nf4 import Nf4Layers, require_nf4
from yarn_ops.train.parallel.layout import Layout, StepShape
from yarn_ops.train.plan import GIB, LADDER, plan_step
from yarn_ops.train.precision import trainer_environment
from yarn_ops.train.probe import GPUS

H200 = GPUS[1]
LLAMA_8B = ModelShape(
    32, 4096, 14336, 32, 8, 128, 128256, parameters=8_072_204_288, trained=41_943_040, nf4=True
)
LARGEST_GAP = 0.2
"""of a block's largest magnitude: half of what is between NF4's -1 and -0.696, rounded up"""
MATRICES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
INSTALLED_APART = Path(sys.prefix, "nf4")
"""by infra/test: PEFT would import bitsandbytes into every process of the suite"""


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes, here and in processes that the test starts."""
    if (INSTALLED_APART / "bitsandbytes").is_dir():
        monkeypatch.syspath_prepend(INSTALLED_APART)
        monkeypatch.setenv("PYTHONPATH", str(INSTALLED_APART), prepend=":")
    elif find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed (extra nf4)")


def rounded(matrix: torch.Tensor) -> torch.Tensor:
    """What a matrix is after a way through NF4."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    return dequantize_4bit(*quantize_4bit(matrix, blocksize=64, quant_type="nf4"))  # type: ignore[no-any-return]


def is_frozen_matrix(name: str) -> bool:
    return ".layers." in f".{name}" and name.endswith(".weight") and name.split(".")[-2] in MATRICES


def test_each_block_is_rounded_by_its_largest_magnitude(library: None) -> None:
    matrix = torch.randn(32, 128) * torch.tensor([1e-6, 1.0, 1e3, 0]).repeat(8)[:, None]
    blocks, found = matrix.view(-1, 64), rounded(matrix).view(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    assert ((found - blocks).abs() <= LARGEST_GAP * largest).all()
    assert 0 < (found - blocks).norm() / blocks.norm() < 0.15


@pytest.mark.parametrize("config", [LlamaConfig, Qwen3Config])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_step_is_that_of_the_dequantised_weights_to_the_last_bit(
    library: None, config: Any, device: str
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU here")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    wide = {} if device == "cpu" else {"head_dim": 64, "hidden_size": 256}
    ids_BT = torch.randint(0, 96, (1, sum(LENGTHS))).to(device)
    policies = [LADDER[number % len(LADDER)] for number in range(5)]

    def steps(nf4: bool) -> list[dict[str, torch.Tensor]]:
        model, absent = small_model(config, dtype=dtype, num_hidden_layers=5, **wide), None
        if nf4:
            absent = Nf4Layers(model.model.layers, device)
        model.to(device)
        if not nf4:
            for name, parameter in model.named_parameters():
                if is_frozen_matrix(name.replace(".base_layer", "")):
                    parameter.data = rounded(parameter.data)
        decoder, found = Decoder(model, dtype, policies, absent=absent), []
        for _ in range(2):
            hidden = decoder(ids_BT, None)
            found.append({"hidden": hidden.detach(), **gradients(model, hidden)})
            with torch.no_grad():
                found[-1]["logits"] = model(input_ids=ids_BT).logits  # by transformers' own forward
        return found

    for ours, theirs in zip(steps(nf4=True), steps(nf4=False), strict=True):
        assert ours.keys() == theirs.keys() and len(ours) > 60
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_weights_take_four_and_a_half_bits_and_one_layer_more(library: None) -> None:
    model = small_model(LlamaConfig, dtype=torch.bfloat16, hidden_size=64, intermediate_size=128)
    matrices = [value for name, value in model.named_parameters() if is_frozen_matrix(name)]
    matrices += [value for name, value in model.named_parameters() if ".base_layer.weight" in name]
    weights = sum(map(torch.numel, matrices))
    layers = Nf4Layers(model.model.layers, "cpu")
    held = [tensor for layer in layers._held for codes, state in layer for tensor in (codes, state.absmax)]
    assert sum(tensor.nbytes for tensor in held) == weights * NF4_BYTES == weights * 4.5 / 8
    assert len({each.weight.data_ptr() for each in (layer.mlp.up_proj for layer in model.model.layers)}) == 1


@pytest.fixture
def dequantised(library: None, tiny: Path, tmp_path: Path) -> Path:
    """The tiny base with the weights that its NF4 stands for."""
    base = tmp_path / "dequantised"
    shutil.copytree(tiny / "base", base)
    tensors = load_file(base / "model.safetensors")
    for name, tensor in tensors.items():
        if is_frozen_matrix(name):
            tensors[name] = rounded(tensor)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    return base


def start_of(job: Job) -> dict[str, Any]:
    return next(event for event in read_events(job.events) if event["event"] == "start")


def test_a_leg_is_that_of_the_dequantised_base(make_job: Any, trained: Any, dequantised: Path) -> None:
    """Loading, both proofs, steps and adapter; and resumed from a snapshot, to the last bit."""
    job = trained(make_job("nf4", steps=4, precision="nf4"))
    exact = trained(make_job("exact", steps=4, base_dir=dequantised))
    assert (job.out_dir / TENSORS).read_bytes() == (exact.out_dir / TENSORS).read_bytes()
    assert start_of(job)["precision"] == "nf4"

    resumed = make_job("resumed", steps=4, precision="nf4")
    shutil.copytree(job.snapshots / "step-00000002", resumed.snapshots / "step-00000002")
    trained(resumed)
    assert start_of(resumed)["step"] == 2
    assert (resumed.out_dir / TENSORS).read_bytes() == (job.out_dir / TENSORS).read_bytes()


def test_a_merge_adds_to_the_base_in_full_precision(
    library: None, make_job: Any, trained: Any, tmp_path: Path
) -> None:
    job = trained(make_job(steps=3, precision="nf4", targets=["q_proj", "down_proj"], train_norms=False))
    checkpoint = merge(job, tmp_path / "merged")
    assert checkpoint.merge_difference < 0.5
    base, found = (load_file(path / "model.safetensors") for path in (job.base_dir, tmp_path / "merged"))
    adapter = load_file(job.out_dir / TENSORS)
    changed = 0
    for name, weight in base.items():
        lora = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{lora}A.weight" in adapter:
            product = adapter[f"{lora}B.weight"] @ adapter[f"{lora}A.weight"]
            weight = weight + product * (job.train.alpha / job.train.rank)
            changed += 1
        assert torch.equal(found[name], weight.bfloat16()), name
    assert changed == 4


@pytest.mark.slow
def test_several_processes_train_as_one_does(
    library: None, four_heads: Path, make_job: Any, tmp_path: Path
) -> None:
    places = {"base_dir": four_heads / "base", "patched_dir": four_heads / "patched", "batch_windows": 2}
    jobs = {}
    for layout, context in (("data × 2", 1), ("context × 2", 2)):
        job = make_job(
            steps=1, precision="nf4", gradient_accumulation_steps=2, context_parallel=context, **places
        )
        jobs[layout] = job.model_dump(mode="json")
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    together(2, PROGRAM, tmp_path / "jobs.json", tmp_path)
    for layout in jobs:
        for rank in range(2):
            found = json.loads((tmp_path / f"{layout}-{rank}.json").read_bytes())
            assert found["layout"] == layout and found["compared"] > 10
            assert found["loss"] < TOLERANCE and found["gradient"] < TOLERANCE


def planned(memory_gib: float, processes: int = 1, windows: int = 1, **train: Any) -> Any:
    step = StepShape(windows=windows, batch_windows=1, tokens=32768, heads=32, kv_heads=8, ours=True)
    train = {"precision": "nf4"} | train
    return predict(
        processes, step, Train(**train), LLAMA_8B, H200.rates, memory_bytes=memory_gib * GIB,
        host_bytes=16 * GIB,
    )  # fmt: skip


def test_a_base_of_8_billion_fits_12_gb_without_a_host_that_holds_it() -> None:
    found = planned(11.5)
    assert found.layout == Layout()
    assert found.plan.peak_bytes <= 0.95 * 11.5 * GIB and found.plan.host_bytes < 8 * GIB
    whole = plan_step(LLAMA_8B, 32768, 32768, H200.rates, memory_bytes=139 * GIB, host_bytes=96 * GIB)
    assert whole.step_s < found.step_s < 1.4 * whole.step_s


def test_a_card_too_small_is_told_of_streaming() -> None:
    with pytest.raises(TrainError, match=r"GiB of the device's memory, .*, or train.precision auto"):
        planned(7)


def test_each_of_several_processes_holds_the_base() -> None:
    assert planned(12, processes=2, windows=2).layout.processes == 2
    with pytest.raises(TrainError, match=r"^train.shard_base: .* in bf16 or fp32; set it to auto$"):
        planned(12, processes=2, windows=2, shard_base="yes")


def test_a_recipe_s_shape_is_in_4_bits() -> None:
    train = Train(precision="nf4", targets=("q_proj",))
    shape = training_shape(small_model(LlamaConfig), train, "cuda")
    assert shape.nf4 and (shape.weight_bytes, shape.element_bytes) == (2, 2)
    assert training_shape(small_model(LlamaConfig), train, "cpu").element_bytes == 4


def test_what_has_no_frozen_weights_of_ours_is_refused() -> None:
    with pytest.raises(ValidationError, match="nf4 holds frozen weights, and with method full none is"):
        Train(method="full", precision="nf4")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=16))
    for precision in ("nf4", "fp8"):
        with pytest.raises(TrainError, match=f"{precision} is for our own layers, and GPTNeoXFor"):
            step_shape(model, Train(precision=precision), 64, {"architectures": ["GPTNeoXForCausalLM"]})


def test_without_the_library_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yarn_ops.train.precision.find_spec", lambda _: None)
    for refused in (lambda: trainer_environment("nf4", "cpu"), lambda: require_nf4("cpu")):
        with pytest.raises(TrainError, match=r"nf4 needs bitsandbytes, .* pip install 'yarn-ops\[nf4\]'"):
            refused()


def test_a_library_that_does_not_run_here_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bitsandbytes"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TrainError, match=r"does not run on this cpu \(libcudart.*\); install another"):
        require_nf4("cpu")
