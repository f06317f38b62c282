"""Base and adapter side by side: the adapter's matrices, the base's weights, the extended model's config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from yarn_ops.errors import BaseModelError, ExportError, RopeError
from yarn_ops.export.adapter import export_adapter
from yarn_ops.models.files import read_config
from yarn_ops.models.loading import load_proven
from yarn_ops.recipe import Train
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.train.lora import make_trainable, merge_lora, save_adapter, trained_parameters


@pytest.fixture
def adapter(extended, tmp_path):
    """adapter(**train): a directory as training leaves it, with random values, and its merged model."""

    def make(**train):
        model_dir = extended()
        config = read_config(model_dir)
        model = load_proven(model_dir, None, rope_spec_of(config), dtype=torch.float32, device="cpu")
        asked = Train(**{"rank": 4, "train_norms": False, **train})
        make_trainable(model, asked)
        torch.manual_seed(0)
        for parameter in trained_parameters(model).values():
            torch.nn.init.normal_(parameter, std=0.05)
        save_adapter(model, tmp_path / "adapter", {"method": asked.method}, [])
        merge_lora(model)
        return tmp_path / "adapter", model

    return make


@pytest.fixture
def export(base512, tmp_path):
    def call(adapter: Path, engine="vllm", base=base512, patched=tmp_path / "extended"):
        return export_adapter(adapter, engine, base=base, patched=patched, to=tmp_path / "to")

    return call


@pytest.mark.parametrize(
    ("engine", "command"),
    [
        (
            "vllm",
            "vllm serve {0}/base --max-model-len 2048 --enable-lora --max-lora-rank 8 "
            "--lora-modules adapter={0}/adapter",
        ),
        (
            "sglang",
            "python -m sglang.launch_server --model-path {0}/base --context-length 2048 --enable-lora "
            "--max-lora-rank 4 --lora-paths adapter={0}/adapter",
        ),
    ],
)
def test_the_command_names_both_directories(adapter, export, tmp_path, engine, command):
    directory, _ = adapter()
    assert export(directory, engine).command == command.format(tmp_path / "to")
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["adapter", "base"]


def test_base_and_adapter_as_exported_are_the_merged_model(adapter, export, base512, tmp_path):
    directory, merged = adapter()
    export(directory)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "to/base", dtype=torch.float32)
    served = PeftModel.from_pretrained(base, tmp_path / "to/adapter")
    ids = torch.arange(1, 801)[None]
    with torch.inference_mode():
        torch.testing.assert_close(served(ids).logits, merged(ids).logits, rtol=0, atol=1e-3)
    assert (tmp_path / "to/base/model.safetensors").samefile(base512 / "model.safetensors")
    assert read_config(tmp_path / "to/base")["rope_parameters"]["rope_type"] == "yarn"
    assert read_config(base512)["rope_parameters"]["rope_type"] == "default"


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize(
    ("train", "named"),
    [
        ({"train_norms": True}, r"layernorm.*weight, 9 in all"),
        ({"train_embeddings": True}, r"embed_tokens\.weight, 1 in all"),
    ],
)
def test_norms_and_embeddings_are_refused(adapter, export, tmp_path, engine, train, named):
    directory, _ = adapter(**train)
    with pytest.raises(ExportError, match=rf"norms or embeddings \(.*{named}\), and {engine} serves LoRA"):
        export(directory, engine)
    assert not (tmp_path / "to").exists()


def test_all_parameters_are_refused(adapter, export):
    directory, _ = adapter(method="full")
    with pytest.raises(ExportError, match=r"adapter_config\.json: unreadable .* or serve the merged model"):
        export(directory)


@pytest.mark.parametrize("engine", ["llama.cpp", "transformers"])
def test_engines_that_get_the_merged_model(adapter, export, engine):
    directory, _ = adapter()
    with pytest.raises(ExportError, match=f"--adapter: {engine} is given the merged model"):
        export(directory, engine)


def described(directory, **changes):
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"bias": "all"}])
def test_other_kinds_of_adapter_are_refused(adapter, export, changes):
    directory, _ = adapter()
    described(directory, **changes)
    with pytest.raises(ExportError, match="vllm serves neither DoRA nor LoRA biases"):
        export(directory)


@pytest.mark.parametrize(("rank", "flag"), [(8, "8"), (9, "16"), (257, "320"), (512, "512")])
def test_vllm_is_told_the_next_rank_it_knows(adapter, export, rank, flag):
    directory, _ = adapter()
    described(directory, r=rank)
    assert f"--max-lora-rank {flag} " in export(directory).command


def test_a_rank_beyond_vllm_s_is_refused(adapter, export):
    directory, _ = adapter()
    described(directory, r=513)
    with pytest.raises(ExportError, match="rank 513, and vLLM serves up to 512"):
        export(directory)


def test_an_engine_that_cannot_rotate_so_is_refused(adapter, export, extended, tmp_path):
    directory, _ = adapter()
    config = read_config(tmp_path / "extended")
    for name in ("rope_scaling", "rope_parameters"):
        config[name]["attention_factor"] = 1.25
    (tmp_path / "extended/config.json").write_text(json.dumps(config))
    with pytest.raises(RopeError, match="ignored by sglang"):
        export(directory, "sglang")
    export(directory, "vllm-0.29")
    assert "attn_factor" in read_config(tmp_path / "to/base")["rope_parameters"]


def test_another_base_is_refused(adapter, export, random_model, tmp_path):
    directory, _ = adapter()
    other = random_model("llama")
    with pytest.raises(ExportError, match=r"hidden_size is 256, but 64 in .*; give the base"):
        export(directory, base=other)
    with pytest.raises(BaseModelError, match="no such directory"):
        export(directory, base=tmp_path / "nowhere")


def test_a_damaged_adapter_is_refused(adapter, export):
    directory, _ = adapter()
    file = directory / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ExportError, match=r"adapter_model\.safetensors: unreadable"):
        export(directory)
    save_file({}, file)
    with pytest.raises(ExportError, match="holds no tensor"):
        export(directory)


def test_only_lora_matrices_are_in_the_exported_file(adapter, export, tmp_path):
    directory, _ = adapter()
    export(directory)
    names = load_file(tmp_path / "to/adapter/adapter_model.safetensors")
    assert len(names) == 4 * 4 * 2
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
