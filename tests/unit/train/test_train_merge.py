"""The merge: the checkpoint is the trained model, and a broken merge is caught."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from yarn_ops.errors import MergeError
from yarn_ops.records import Adapter, BaseModel, Checkpoint, Dropped, Local, PatchedModel, ShardSet
from yarn_ops.train import merge as merging
from yarn_ops.train.job import Job
from yarn_ops.train.lora import attach_adapter, merge_lora

MakeJob = Callable[..., Job]
Trained = Callable[[Job], Job]
Break = Callable[[PreTrainedModel], None]


def merge(job: Job, out: Path) -> Checkpoint:
    base = BaseModel(
        source="tiny", architecture="LlamaForCausalLM", model_type="llama", parameters=1, vocab_size=96,
        context_tokens=32, head_dim=16, rope_theta=10_000.0,
    )  # fmt: skip
    patched = PatchedModel(
        method="yarn", factor=4.0, original_context_tokens=32, target_context_tokens=128,
        attention_factor=1.1386, inverse_frequency_error=0.0,
    )  # fmt: skip
    adapter = Adapter(
        method=job.train.method, steps=1, window_tokens=128, tokens_seen=1, trainable_parameters=1,
        first_loss=1.0, final_loss=1.0, seconds=1.0,
    )  # fmt: skip
    shards = ShardSet(
        tokenizer_digest="", vocab_size=96, train_documents=1, train_tokens=1, held_out_documents=1,
        held_out_tokens=1, longest_document_tokens=1, dropped=Dropped(), lengths=(),
    )  # fmt: skip
    return merging.merge(
        Local(base, job.base_dir),
        Local(patched, job.patched_dir),
        Local(adapter, job.out_dir),
        Local(shards, job.shards_dir),
        out,
        device="cpu",
        report=lambda *_: None,
    )


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


def twice_the_scaling(model: PreTrainedModel) -> None:
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.scaling = {name: 2 * scaling for name, scaling in layer.scaling.items()}


def one_layer_forgotten(model: PreTrainedModel) -> None:
    model.model.layers[1].self_attn.v_proj.lora_B.default.weight.data.zero_()


def one_norm_forgotten(model: PreTrainedModel) -> None:
    model.model.layers[0].input_layernorm.weight.data.fill_(1.0)


@pytest.mark.parametrize("fault", [twice_the_scaling, one_layer_forgotten, one_norm_forgotten])
def test_a_broken_merge_is_caught(
    make_job: MakeJob, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Break
) -> None:
    def broken(model: PreTrainedModel) -> None:
        with torch.no_grad():
            fault(model)
        merge_lora(model)

    job = trained(make_job(steps=3))
    monkeypatch.setattr(merging, "merge_lora", broken)
    with pytest.raises(MergeError, match="moved log-probabilities"):
        merge(job, tmp_path / "merged")
    assert not list(tmp_path.glob("*merged*"))


def test_a_tensor_that_did_not_reach_the_file_is_named(
    make_job: MakeJob, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(model: PreTrainedModel) -> dict[str, str]:
        return (
            {**digests(model), "model.norm.weight": "other"}
            if model.dtype == torch.bfloat16
            else digests(model)
        )

    job, digests = trained(make_job(steps=1)), merging.parameter_digests
    monkeypatch.setattr(merging, "parameter_digests", spoiled)
    with pytest.raises(MergeError, match=r"1 of 20 parameters .* model\.norm\.weight first"):
        merge(job, tmp_path / "merged")
    assert not list(tmp_path.glob("*merged*"))


def test_an_adapter_that_learnt_nothing_is_refused(
    make_job: MakeJob, trained: Trained, tmp_path: Path
) -> None:
    job = trained(make_job(steps=1, learning_rate=1e-30))
    with pytest.raises(MergeError, match="nothing was learnt there"):
        merge(job, tmp_path / "merged")
