"""Bases as people publish them: tied, biased, padded, sharded, of half precision, with more tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_bases import TARGETS, go, lay_down, lay_shards
from transformers import AutoTokenizer

from yarn_ops.errors import BaseModelError
from yarn_ops.models.inspection import inspect_checkpoint

Vary = Callable[[Path], None]
TEMPLATES = {
    "chat_template.jinja": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "additional_chat_templates/tool_use.jinja": "tools {{ messages }}",
    "additional_chat_templates/rag.jinja": "passages {{ messages }}",
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("variants") / "shards"
    lay_shards(folder)
    return folder


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def add_templates(base: Path) -> None:
    for name, text in TEMPLATES.items():
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(text)


def add_tokens(base: Path) -> None:
    """With a gap behind the vocabulary."""
    path = base / "tokenizer.json"
    tokens = json.loads(path.read_text())["added_tokens"]
    more = [{**tokens[0], "id": 300 + row, "content": f"<|added{row}|>"} for row in range(3)]
    edit(path, added_tokens=[*tokens, *more])


def begin_with_bos(base: Path) -> None:
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    known = {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}
    processor = {"type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text, text]}
    edit(base / "tokenizer.json", post_processor={**processor, "special_tokens": known})
    edit(base / "tokenizer_config.json", bos_token="<s>")


def shard_oddly(base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    names = {
        name: f"part.{'ZyX'[row % 3]}-of_three.v2.safetensors" for row, name in enumerate(sorted(tensors))
    }
    for file in set(names.values()):
        part = {name: tensors[name] for name in tensors if names[name] == file}
        save_file(part, base / file, {"format": "pt"})
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def halve(base: Path) -> None:
    tensors = {name: tensor.half() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    edit(base / "config.json", dtype="float16")


def bias(base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    for name in [name for name in tensors if name.endswith(".bias")]:
        tensors[name] = torch.randn_like(tensors[name])
    save_file(tensors, base / "model.safetensors", {"format": "pt"})


VARIANTS: dict[str, tuple[dict[str, Any], tuple[Vary, ...]]] = {
    "tied": ({"tie_word_embeddings": True}, ()),
    "untied": ({"tie_word_embeddings": False}, ()),
    "biased": ({"attention_bias": True, "mlp_bias": True}, (bias,)),
    "padded": ({"vocab_size": 640}, ()),
    "added tokens": ({}, (add_tokens,)),
    "templates": ({}, (add_templates,)),
    "BOS": ({}, (begin_with_bos,)),
    "sharded": ({}, (shard_oddly,)),
    "float16": ({}, (halve,)),
}
CLASSES = ("llama", "qwen2", "gemma2", "gpt_neox", "qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3")


def check(model_type: str, asked: str, changes: dict[str, Any], vary: tuple[Vary, ...], *where: Path) -> None:
    folder, shards = where

    def all_of_it(base: Path) -> None:
        for one in vary:
            one(base)

    found = go(model_type, TARGETS[asked], folder, shards, all_of_it, **changes)
    if asked == "default" and found.stage == "rehearsal":
        assert "no linear layer is named" in found.why
        return
    assert found.stage == "merged", found
    base, merged = folder / "base", folder / "merged"
    if add_templates in vary:
        assert {name: (merged / name).read_text() for name in TEMPLATES} == TEMPLATES
        assert set(AutoTokenizer.from_pretrained(merged).chat_template) == {"default", "tool_use", "rag"}
    text = "a text <|added2|> and more"
    assert AutoTokenizer.from_pretrained(merged)(text) == AutoTokenizer.from_pretrained(base)(text)
    assert shapes(merged) == shapes(base)


def shapes(folder: Path) -> dict[str, torch.Size]:
    files = folder.glob("*.safetensors")
    return {name: tensor.shape for file in files for name, tensor in load_file(file).items()}


def test_a_base_of_many_kinds_goes_the_whole_way(tmp_path: Path, shards: Path) -> None:
    """All of them at once, so that the suite pays for one."""
    changes = {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "vocab_size": 640}
    vary = (add_tokens, add_templates, begin_with_bos, bias, halve, shard_oddly)
    check("llama", "all-linear", changes, vary, tmp_path, shards)


@pytest.mark.slow
@pytest.mark.parametrize("asked", TARGETS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model_type", CLASSES)
def test_every_kind_of_base_goes_the_whole_way(
    model_type: str, variant: str, asked: str, tmp_path: Path, shards: Path
) -> None:
    check(model_type, asked, *VARIANTS[variant], tmp_path, shards)


@pytest.mark.parametrize("model_type", ["lfm2_moe", pytest.param("deepseek_v3", marks=pytest.mark.slow)])
def test_a_bias_that_routes_is_kept(model_type: str, tmp_path: Path, shards: Path) -> None:
    """It is no parameter: no gradient moves it, and routers read it in training and in the merged model."""

    def routing(folder: Path) -> dict[str, torch.Tensor]:
        tensors = load_file(folder / "model.safetensors")
        return {
            name: tensor
            for name, tensor in tensors.items()
            if name.endswith(("expert_bias", "correction_bias"))
        }

    def vary(base: Path) -> None:
        tensors = load_file(base / "model.safetensors")
        tensors |= {name: torch.randn_like(tensor) for name, tensor in routing(base).items()}
        save_file(tensors, base / "model.safetensors", {"format": "pt"})

    check(model_type, "all-linear", {}, (vary,), tmp_path, shards)
    given, kept = routing(tmp_path / "base"), routing(tmp_path / "merged")
    assert given and given.keys() == kept.keys()
    for name, tensor in given.items():
        torch.testing.assert_close(kept[name].float(), tensor.float(), rtol=2**-8, atol=0)


@pytest.mark.parametrize("key", ["quantization_config", "quantization"])
def test_a_quantised_base_is_refused_when_it_is_fetched(key: str, tmp_path: Path, shards: Path) -> None:
    found = go(
        "llama",
        TARGETS["default"],
        tmp_path,
        shards,
        lambda base: edit(base / "config.json", **{key: {"bits": 4}}),
    )
    assert found.stage == "base" and "quantised" in found.why


@pytest.mark.parametrize("head_dim", [None, ...])
def test_a_scaled_base_without_the_width_of_its_heads_is_one_line(head_dim: Any, tmp_path: Path) -> None:
    """Mixtral's config leaves it null, and transformers multiplies it."""
    lay_down("mixtral", tmp_path, head_dim=16)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["head_dim"]
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
    config |= {"rope_parameters": yarn} | ({} if head_dim is ... else {"head_dim": head_dim})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError) as fault:
        inspect_checkpoint(tmp_path, source="tiny", original_context_tokens=32)
    told = "transformers cannot scale the RoPE of mixtral; write 16"
    assert str(fault.value).endswith(f"config.json: head_dim: null or missing, with which {told}")
    (tmp_path / "config.json").write_text(json.dumps(config | {"head_dim": 16}))
    assert inspect_checkpoint(tmp_path, source="tiny", original_context_tokens=32).head_dim == 16
