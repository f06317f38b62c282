"""`yarn-ops evaluate`, as typed, on models that are not ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Phi3Config

PNG = b"\x89PNG\r\n"
DOCUMENTS = "stdlib:json/*.py"


def saved(config, base512: Path, folder: Path) -> Path:
    """A model of this config with random weights and the demo's tokenizer."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base512 / name, folder)
    return folder


@pytest.fixture
def llama(base512: Path, tmp_path: Path) -> Path:
    config = LlamaConfig(
        vocab_size=8192, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256,
    )  # fmt: skip
    return saved(config, base512, tmp_path / "other-llama")


def test_a_foreign_model_is_measured_without_a_recipe_and_once(yarn_ops, llama, tmp_path):
    out = tmp_path / "capacity"
    arguments = ("evaluate", llama, "--documents", DOCUMENTS, "--out", out)
    first = yarn_ops(*arguments)
    assert first.status == 0, first.err
    assert "other-llama: sees" in first.out and "finds nothing even in short texts" in first.out
    assert (out / "capacity.png").read_bytes().startswith(PNG)
    page = (out / "capacity.html").read_text("utf-8")
    assert "<h1>other-llama</h1>" in page and "http" not in page and str(tmp_path) not in page
    found = json.loads((out / "scores.json").read_text("utf-8"))
    again = yarn_ops(*arguments, "--json")
    assert json.loads(again.out) == found
    (facts,) = found
    assert facts["costs"][-1]["kv_bytes"] == 2 * 8 * 2 * 256  # keys and values, one head of 8, bfloat16


def test_a_column_of_what_was_not_measured_is_left_out(yarn_ops, llama):
    shown = yarn_ops("evaluate", llama, "--suite", "tiny", "--documents", DOCUMENTS).out
    assert "nats" in shown and "perplexity" not in shown


def test_kinds_of_documents_have_perplexities_of_their_own(yarn_ops, llama, tmp_path):
    (tmp_path / "note.txt").write_text("Too short to measure.", "utf-8")
    globs = ("--documents", DOCUMENTS, "--documents", "stdlib:email/*.py", "--documents", tmp_path / "*.txt")
    result = yarn_ops("evaluate", llama, *globs, "--longest", 128, "--json")
    assert result.status == 0, result.err
    (facts,) = json.loads(result.out)
    value = {score["task"]: score["value"] for score in facts["scores"]}
    of_kinds = [value[f"perplexity/last-quarter of stdlib:{name}/*.py"] for name in ("json", "email")]
    assert of_kinds[0] != of_kinds[1] and value["perplexity/last-quarter"] in of_kinds
    (why,) = [why for cell, why in facts["skipped"].items() if cell.startswith("perplexity of")]
    assert "give more documents" in why


def test_positions_need_not_be_rotary(yarn_ops, base512, tmp_path):
    config = GPT2Config(vocab_size=8192, n_embd=16, n_layer=1, n_head=2, n_positions=128)
    model = saved(config, base512, tmp_path / "gpt2")
    result = yarn_ops("evaluate", model, "--documents", DOCUMENTS)
    assert result.status == 0, result.err
    assert "gpt2: " in result.out
    beyond = yarn_ops("evaluate", model, "--longest", 256)
    assert beyond.status == 2 and "no positions beyond 128 tokens" in beyond.err


def test_a_class_without_a_reference_is_measured_and_that_is_said_once(yarn_ops, base512, tmp_path, caplog):
    config = Phi3Config(
        vocab_size=8192, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, pad_token_id=0, eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    model = saved(config, base512, tmp_path / "phi3")
    result = yarn_ops("evaluate", model, "--documents", DOCUMENTS, "--longest", 128)
    assert result.status == 0, result.err
    assert caplog.text.count("phi3: measured as transformers loads it; its RoPE is not proven: ") == 1
    assert "phi3: sees" in result.out


def test_scaling_that_transformers_does_not_know_is_one_line(yarn_ops, llama):
    config = json.loads((llama / "config.json").read_bytes())
    config["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "mystery", "factor": 2.0}
    (llama / "config.json").write_text(json.dumps(config))
    result = yarn_ops("evaluate", llama, "--documents", DOCUMENTS, "--longest", 128)
    assert result.status == 2
    assert result.err.splitlines()[-1].startswith("yarn-ops: ") and "'mystery'" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("shipped:base1",), "not shipped"),
        (("/nowhere/at/all",), "/nowhere/at/all: no such directory"),
        (("shipped:base512", "--longest", 100), "no task fits in fewer than 128"),
        (("shipped:base512", "--documents", "/nowhere/*.txt"), "matches no file with text"),
        (("shipped:base512", "--longest", 8192, "--documents", "stdlib:this.py"), "give more documents"),
        (("shipped:base512", "--suite", "quik"), "quik"),
    ],
)
def test_faults_are_one_line(yarn_ops, arguments, complaint):
    result = yarn_ops("evaluate", *arguments)
    assert result.status == 2
    assert result.err.startswith("yarn-ops: ") and complaint in result.err
    assert result.err.count("\n") == 1
