"""The merge: the checkpoint is the trained model, and a broken merge is caught."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from merged import merge
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from small_models import attach_adapter
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from yarn_ops.errors import MergeError
from yarn_ops.train import merge as merging
from yarn_ops.train.job import Job
from yarn_ops.train.lora import merge_lora
from yarn_ops.train.weight_files import WeightFiles

MakeJob = Callable[..., Job]
Trained = Callable[[Job], Job]
Break = Callable[[nn.Module], None]
LARGE = 300.0


@pytest.mark.parametrize("train", [{"train_embeddings": True}, {"method": "full"}])
def test_the_merged_files_are_the_trained_model(
    make_job: MakeJob, trained: Trained, tmp_path: Path, train: dict[str, object]
) -> None:
    job = trained(make_job(steps=3, **train))
    checkpoint = merge(job, tmp_path / "merged")
    assert 0 < checkpoint.merge_difference < 0.5

    unmerged = AutoModelForCausalLM.from_pretrained(job.base_dir, dtype=torch.float32)
    attach_adapter(unmerged, job.out_dir)
    merge_lora(unmerged)
    written = load_file(tmp_path / "merged/model.safetensors")
    expected = {name: value.detach().bfloat16() for name, value in unmerged.named_parameters()}
    assert written.keys() == expected.keys()  # tied: no lm_head.weight
    for name, value in expected.items():
        assert torch.equal(written[name], value), name

    config = json.loads((tmp_path / "merged/config.json").read_bytes())
    patched = json.loads((job.patched_dir / "config.json").read_bytes())
    assert config == {**patched, "dtype": "bfloat16", "torch_dtype": "bfloat16"}
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert plain.dtype == torch.bfloat16 and plain.config.rope_parameters["factor"] == 4.0


def twice_the_scaling(model: nn.Module) -> None:
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.scaling = {name: 2 * scaling for name, scaling in layer.scaling.items()}


def one_layer_forgotten(model: nn.Module) -> None:
    if hasattr(model, "self_attn") and model.self_attn.layer_idx == 1:
        model.self_attn.v_proj.lora_B.default.weight.data.zero_()


def one_norm_forgotten(model: nn.Module) -> None:
    if hasattr(model, "self_attn") and model.self_attn.layer_idx == 0:
        model.input_layernorm.weight.data.fill_(1.0)


@pytest.mark.parametrize("fault", [twice_the_scaling, one_layer_forgotten, one_norm_forgotten])
def test_a_broken_merge_is_caught(
    make_job: MakeJob, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Break
) -> None:
    def broken(model: nn.Module) -> None:
        with torch.no_grad():
            fault(model)
        merge_lora(model)

    job = trained(make_job(steps=3))
    monkeypatch.setattr(merging, "merge_lora", broken)
    with pytest.raises(MergeError, match="moved log-probabilities"):
        merge(job, tmp_path / "merged")
    assert not list(tmp_path.glob("*merged*"))


def test_weights_that_do_not_fit_bfloat16_are_refused(
    make_job: MakeJob, trained: Trained, tmp_path: Path
) -> None:
    """Large logits of tokens in pairs, which differ in the fourth digit of their weights alone."""
    job = trained(make_job(steps=1, method="full"))
    (file,) = job.out_dir.glob("*.safetensors")
    tensors = load_file(file)
    (embedding,) = [name for name in tensors if "embed_tokens" in name]
    pairs = LARGE * tensors[embedding]
    pairs[1::2] = pairs[::2] * (1 + 2**-10)
    save_file({**tensors, embedding: pairs}, file)
    with pytest.raises(MergeError, match=r"^merge: rounding to bfloat16 moved the model by [\d.]+ nats"):
        merge(job, tmp_path / "merged")
    assert not list(tmp_path.glob("*merged*"))


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_tensor_that_did_not_reach_the_file_is_named(
    make_job: MakeJob, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """One bit of one of its numbers, which no log-probability would show."""

    class Spoilt(WeightFiles):
        def write(self, written: str, tensor: Tensor) -> None:
            spoilt = tensor.clone()
            if written == name:
                spoilt.view(torch.int16).view(-1)[-1] ^= 1
            super().write(written, spoilt)

    job = trained(make_job(steps=1))
    monkeypatch.setattr(merging, "WeightFiles", Spoilt)
    with pytest.raises(MergeError, match=rf"read back are not those merged, {re.escape(name)} first"):
        merge(job, tmp_path / "merged")
    assert not list(tmp_path.glob("*merged*"))


def test_a_model_of_many_files_is_the_one_of_one_file(
    make_job: MakeJob, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = trained(make_job(steps=1))
    merge(job, tmp_path / "one")
    monkeypatch.setattr(merging, "WeightFiles", partial(WeightFiles, file_bytes=8192))
    merge(job, tmp_path / "many")
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_bytes())
    one, many = load_file(tmp_path / "one/model.safetensors"), {}
    for file in files:
        held = load_file(tmp_path / "many" / file)
        assert {name for name, place in index["weight_map"].items() if place == file} == held.keys()
        assert len(held) == 1 or sum(value.nbytes for value in held.values()) <= 8192
        many |= held
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in one.values())
    assert one.keys() == many.keys() and all(torch.equal(one[name], many[name]) for name in one)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "many")
    assert torch.equal(again.model.norm.weight, one["model.norm.weight"])


def test_an_adapter_that_learnt_nothing_is_refused(
    make_job: MakeJob, trained: Trained, tmp_path: Path
) -> None:
    job = trained(make_job(steps=1, learning_rate=1e-30))
    with pytest.raises(MergeError, match="nothing was learnt there"):
        merge(job, tmp_path / "merged")
