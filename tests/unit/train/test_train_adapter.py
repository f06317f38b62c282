"""What learns, and that an adapter directory holds all of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from small_models import attach_adapter
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from yarn_ops.digests import digest_tree
from yarn_ops.errors import TrainError
from yarn_ops.recipe import Train
from yarn_ops.train.job import Job
from yarn_ops.train.lora import load_trained, make_trainable, merge_lora, read_losses, trained_parameters
from yarn_ops.train.precision import trainer_environment

MakeJob = Callable[..., Job]
Trained = Callable[[Job], Job]
LAYER_NORMS = ("input_layernorm", "post_attention_layernorm")
NORMS = {"model.norm.weight"} | {f"model.layers.{n}.{norm}.weight" for n in (0, 1) for norm in LAYER_NORMS}
EMBEDDINGS = "model.embed_tokens.weight"


def load(tiny: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny / "base", dtype=dtype)


def learning(tiny: Path, **train: object) -> set[str]:
    model = load(tiny)
    make_trainable(model, Train.model_validate(train))
    return set(trained_parameters(model))


def test_lora_norms_and_embeddings_learn_as_asked(tiny: Path) -> None:
    def whole(names: set[str]) -> set[str]:
        return {name for name in names if "lora_" not in name}

    assert whole(learning(tiny)) == NORMS
    assert whole(learning(tiny, train_norms=False, train_embeddings=True)) == {EMBEDDINGS}
    assert len(learning(tiny, train_norms=False)) == 2 * 4 * 2  # layers, targets, A and B
    assert len(learning(tiny, train_norms=False, targets=["all-linear"])) == 2 * 7 * 2
    assert learning(tiny, method="full") == {name for name, _ in load(tiny).named_parameters()}


def test_what_learns_is_float32_and_what_does_not_stays(tiny: Path) -> None:
    model = load(tiny, torch.bfloat16)
    make_trainable(model, Train())
    kinds = {parameter.requires_grad: parameter.dtype for parameter in model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


@pytest.mark.parametrize("target", ["qproj", "lm_head"])  # the head takes no part in adapters
def test_a_target_that_is_no_layer_is_named(tiny: Path, target: str) -> None:
    with pytest.raises(TrainError, match=rf"named '{target}'; choose from down_proj, .*q_proj"):
        learning(tiny, targets=[target])


@pytest.mark.parametrize("train", [{"train_embeddings": True}, {"method": "full"}])
def test_every_trained_tensor_is_kept_and_changed(
    tiny: Path, make_job: MakeJob, trained: Trained, train: dict[str, object]
) -> None:
    job = trained(make_job(steps=2, **train))
    model, base = load(tiny), dict(load(tiny).named_parameters())
    assert attach_adapter(model, job.out_dir) == []
    for name in NORMS | {EMBEDDINGS}:
        assert (dict(model.named_parameters())[name] - base[name]).abs().max() > 1e-4
    facts = json.loads((job.out_dir / "adapter.json").read_bytes())
    assert facts["tensors"] == len(load_file(job.out_dir / "adapter_model.safetensors"))
    assert facts["trainable_parameters"] == sum(
        value.numel() for value in load_file(job.out_dir / "adapter_model.safetensors").values()
    )
    losses = [json.loads(line)["loss"] for line in (job.out_dir / "curve.jsonl").read_text().splitlines()]
    assert (facts["first_loss"], facts["final_loss"]) == (losses[0], sum(losses) / 2)


def test_peft_itself_reads_the_directory(tiny: Path, make_job: MakeJob, trained: Trained) -> None:
    job = trained(make_job(steps=2))
    ours, ids = load(tiny), torch.arange(20)[None]
    attach_adapter(ours, job.out_dir)
    theirs = PeftModel.from_pretrained(load(tiny), job.out_dir)
    torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, rtol=1e-5, atol=1e-5)


def test_peft_refuses_trained_tied_embeddings_rather_than_untie_them(
    tiny: Path, make_job: MakeJob, trained: Trained
) -> None:
    job = trained(make_job(steps=1, train_embeddings=True))
    with pytest.raises(KeyError, match="lm_head"):
        PeftModel.from_pretrained(load(tiny), job.out_dir)


def test_bf16_learns_what_float32_does(make_job: MakeJob, trained: Trained) -> None:
    try:
        if trainer_environment("bf16", "cpu"):
            pytest.skip("bf16 needs another environment here")
    except TrainError as error:
        pytest.skip(str(error))
    jobs = [trained(make_job(precision, precision=precision)) for precision in ("fp32", "bf16")]
    fp32, bf16 = (torch.tensor(read_losses(job.out_dir)) for job in jobs)
    assert not torch.equal(fp32, bf16)
    torch.testing.assert_close(bf16, fp32, rtol=1e-2, atol=0)
    kept = load_file(jobs[1].out_dir / "adapter_model.safetensors")
    assert {value.dtype for value in kept.values()} == {torch.float32}


def test_the_same_training_makes_the_same_bytes(make_job: MakeJob, trained: Trained) -> None:
    one, other = (trained(make_job(name, steps=3)) for name in ("one", "other"))
    assert digest_tree(one.out_dir) == digest_tree(other.out_dir)


def test_a_leg_goes_on_from_the_adapter_before(tiny: Path, make_job: MakeJob, trained: Trained) -> None:
    first = trained(make_job("first", steps=3))
    second = trained(make_job("second", steps=1, previous_dir=first.out_dir, learning_rate=1e-9))
    before, after = (load_file(job.out_dir / "adapter_model.safetensors") for job in (first, second))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)


def test_an_adapter_of_another_rank_is_refused(tiny: Path, make_job: MakeJob, trained: Trained) -> None:
    first = trained(make_job("first", steps=1))
    with pytest.raises(TrainError, match="another base or rank"):
        trained(make_job("second", rank=8, previous_dir=first.out_dir))


def test_a_lost_tensor_is_noticed(tiny: Path, make_job: MakeJob, trained: Trained) -> None:
    job = trained(make_job(steps=1))
    file = job.out_dir / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file(
        {name: value for name, value in tensors.items() if not name.endswith("model.norm.weight")}, file
    )
    with pytest.raises(TrainError, match="20 tensors of 21"):
        attach_adapter(load(tiny), job.out_dir)
    save_file(
        {name: value for name, value in tensors.items() if "layers.1.self_attn.q_proj" not in name}, file
    )
    with pytest.raises(TrainError, match="19 tensors of 21"):
        attach_adapter(load(tiny), job.out_dir)
    tensors["other"] = tensors.pop("base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight")
    save_file(tensors, file)
    with pytest.raises(TrainError, match="1 missing, 1 of no such name"):
        attach_adapter(load(tiny), job.out_dir)


def test_no_adapter_directory_is_one_line(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="not an adapter directory"):
        load_trained(load(tiny), tmp_path)


def test_the_sum_is_that_of_peft_to_the_bit() -> None:
    """Of weights that take several pieces, with a last one that is smaller."""
    model = nn.Sequential(nn.Linear(700, 900), nn.Linear(900, 3))
    inject_adapter_in_model(LoraConfig(r=16, lora_alpha=24, target_modules=["0", "1"]), model)
    for layer in model:
        nn.init.normal_(layer.lora_B["default"].weight)
    theirs = copy.deepcopy(model)
    for layer in theirs:
        layer.merge()
    merge_lora(model)
    for ours, layer in zip(model, theirs, strict=True):
        assert type(ours) is nn.Linear and torch.equal(ours.weight, layer.get_base_layer().weight)
