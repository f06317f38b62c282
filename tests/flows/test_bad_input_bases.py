"""A base that cannot be found, read, trusted or extended is refused in one line, before it is measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from person import Person, fails

Break = Callable[[Path], object]

WEIGHTS = "model.safetensors"


def config(**changes: Any) -> Break:
    """Changes values of config.json; None takes one out."""

    def change(path: Path) -> None:
        values = {**json.loads((path / "config.json").read_text("utf-8")), **changes}
        kept = {key: value for key, value in values.items() if value is not None}
        (path / "config.json").write_text(json.dumps(kept), "utf-8")

    return change


def truncated(path: Path) -> None:
    with (path / WEIGHTS).open("r+b") as file:
        file.truncate(5_000_000)


def pickled(path: Path) -> None:
    (path / WEIGHTS).rename(path / "pytorch_model.bin")


def missing_shard(path: Path) -> None:
    (path / WEIGHTS).rename(path / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"model.embed_tokens.weight": "model-00002-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")


def larger_tokenizer(path: Path) -> None:
    tokenizer = json.loads((path / "tokenizer.json").read_text("utf-8"))
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 8192, "content": "<|more|>"})
    (path / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")


def damaged_weights(path: Path) -> None:
    """Sound file, unsound numbers: bytes of ones are NaN in every floating type."""
    with (path / WEIGHTS).open("r+b") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        file.seek(8 + header_bytes + 4096)
        file.write(b"\xff" * 65_536)


DIRECTORIES: dict[str, tuple[Break, list[str]]] = {
    "no such directory": (
        shutil.rmtree,
        ["broken: no such directory; name a model directory or shipped:base512"],
    ),
    "no config": (
        lambda path: (path / "config.json").unlink(),
        ["config.json: missing", "download it again"],
    ),
    "a config that is no JSON": (
        lambda path: (path / "config.json").write_text("{"),
        ["config.json: cannot be read as JSON", "download it again"],
    ),
    "no vocabulary size": (
        config(vocab_size=None),
        ["config.json: vocab_size is None", "must be a whole number"],
    ),
    "no weights": (lambda path: (path / WEIGHTS).unlink(), ["no weights", "download the checkpoint again"]),
    "pickled weights": (pickled, ["pytorch_model.bin: pickled weights can run code", "convert them"]),
    "truncated weights": (
        truncated,
        [f"{WEIGHTS}: truncated or corrupt at 5000000 bytes", "download it again"],
    ),
    "a missing shard": (
        missing_shard,
        ["model-00002-of-00002.safetensors: missing", "download the checkpoint"],
    ),
    "another model's config": (
        config(vocab_size=100),
        ["embed_tokens", "vocab_size 100", "download both again"],
    ),
    "no tokenizer": (
        lambda path: (path / "tokenizer.json").unlink(),
        ["no tokenizer", "add the base's tokenizer"],
    ),
    "a tokenizer larger than the vocabulary": (
        larger_tokenizer,
        ["the tokenizer's largest id is 8192 but the embedding has 8192 rows", "not this model's"],
    ),
    "remote code": (
        config(auto_map={"AutoModel": "a.B"}),
        ["config.json: auto_map asks for remote code", "choose another base"],
    ),
    "code beside the weights": (
        lambda path: (path / "modeling.py").write_text("1"),
        ["modeling.py: the checkpoint brings code", "choose another base"],
    ),
    "scaled already": (
        config(rope_scaling={"rope_type": "yarn", "factor": 4.0}),
        ["RoPE is already scaled (yarn); give base.original_context_tokens"],
    ),
    "quantised": (
        config(quantization_config={}),
        ["the weights are quantised; extend the unquantised model"],
    ),
    "no rotary model": (
        config(architectures=["GPT2LMHeadModel"], model_type="gpt2"),
        ["architectures names GPT2LMHeadModel", "choose another base"],
    ),
    "a refused architecture": (
        config(architectures=["Phi3ForCausalLM"], model_type="phi3"),
        ["model_type: phi3 cannot be extended", "choose another base"],
    ),
    "weights that are no numbers": (damaged_weights, ["is not finite", "weights are damaged"]),
}

REFERENCES = {
    "hf:org/nothing@main": ["hf:org/nothing@main: huggingface.co cannot be reached", "give a directory"],
    "hf:not a name": ["hf:not a name: not a model name; write hf:org/name@revision"],
    "models:/nothing@champion": ["model 'nothing': not registered", "registered: none"],
    "models:/nothing": ["models:/nothing: write models:/name@alias or models:/name/version"],
    "s3://bucket/base": [
        "s3://bucket/base",
        "does not answer; is it running, is YARN_OPS_S3_ENDPOINT_URL right?",
    ],
    "shipped:base513": ["shipped:base513: not shipped; there is base512"],
    "ftp://host/base": ["ftp://host/base: unknown kind of base model; give a directory"],
}

NOBODY = {
    "YARN_OPS_S3_ENDPOINT_URL": "http://127.0.0.1:9",
    "YARN_OPS_S3_ACCESS_KEY": "somebody",
    "YARN_OPS_S3_SECRET_KEY": "secret",
}


@pytest.mark.parametrize("fault", DIRECTORIES)
def test_a_directory(fault: str, person: Person, small_recipe: Path, base512: Path, tmp_path: Path) -> None:
    breaks, phrases = DIRECTORIES[fault]
    base = Path(shutil.copytree(base512, tmp_path / "broken"))
    breaks(base)
    answer = fails(person, ["extend", small_recipe, "--set", f"base.model={base}"], *phrases)
    assert "evaluate" not in answer.stages


@pytest.mark.parametrize("model", REFERENCES)
def test_a_reference(model: str, person: Person, small_recipe: Path) -> None:
    answer = fails(
        person, ["extend", small_recipe, "--set", f"base.model={model}"], *REFERENCES[model], **NOBODY
    )
    assert answer.stages == []


@pytest.mark.parametrize(
    ("changes", "phrases"),
    [
        (
            {"rope.target_context_tokens": 256},
            ["rope.target_context_tokens: 256 is below the base's original context of 512", "longer"],
        ),
        (
            {"rope.factor": 4, "train.legs": "[{context_tokens=1024, steps=2}]"},
            ["train.legs: the last leg's factor is 2 but rope asks for 4", "reach the target context"],
        ),
        (
            {"rope.factor": 2, "rope.target_context_tokens": 2048},
            ["rope.factor: 2 times the original context of 512 is less than", "give 4 or more"],
        ),
        ({"rope.factor": 2, "base.original_context_tokens": 600}, ["600 is above the 512", "correct it"]),
    ],
)
def test_a_recipe_that_does_not_suit_the_base(
    changes: dict[str, Any], phrases: list[str], person: Person, small_recipe: Path
) -> None:
    small_recipe.write_text(small_recipe.read_text("utf-8").replace("factor = 2\n", ""), "utf-8")
    settings = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    answer = fails(person, ["extend", small_recipe, *settings], *phrases)
    assert set(answer.stages) <= {"base"}


def test_the_sound_base_is_taken_after_all_of_them(person: Person, small_recipe: Path) -> None:
    answer = fails(
        person,
        ["extend", small_recipe, "--set", "evaluate.recall_pairs=4000"],
        "evaluate.lengths: 512 tokens cannot hold 4000 code pairs",
        "lower evaluate.recall_pairs",
    )
    assert answer.stages == ["base", "patch", "rehearse", "documents", "shards"]
