"""What is written is what is read back: every key, every tensor."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, LlamaFileType, TokenType, dequantize
from safetensors.torch import load_file, save_file

from yarn_ops.errors import ExportError
from yarn_ops.export.gguf_file import write_gguf
from yarn_ops.export.serving import serving_settings
from yarn_ops.models.files import read_config
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.rope.methods import inverse_frequencies


@pytest.fixture
def written(tmp_path, quiet):
    """written(model, weights): the reader of its GGUF."""

    def write(model, weights="f16", report=quiet):
        rope = serving_settings(read_config(model), "llama.cpp").gguf
        write_gguf(model, rope, tmp_path / "out.gguf", weights=weights, report=report)
        return GGUFReader(tmp_path / "out.gguf")

    return write


def keys(reader):
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}


def tensors(reader):
    return {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}


def turned_in_pairs(rows, heads):
    """transformers' order of a head's rows (i beside i + D/2) from llama.cpp's (2i beside 2i + 1)."""
    by_head = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return by_head.swapaxes(1, 2).reshape(rows.shape)


def test_the_keys_of_the_extended_base(extended, written):
    found = keys(written(extended()))
    lists = {name: found.pop(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type", "merges")}
    assert found == pytest.approx(
        {
            "general.architecture": "llama",
            "general.name": "extended",
            "general.file_type": LlamaFileType.MOSTLY_F16,
            "general.quantization_version": 2,
            "llama.vocab_size": 8192,
            "llama.context_length": 2048,
            "llama.embedding_length": 256,
            "llama.block_count": 4,
            "llama.feed_forward_length": 704,
            "llama.attention.head_count": 4,
            "llama.attention.head_count_kv": 2,
            "llama.attention.key_length": 64,
            "llama.attention.value_length": 64,
            "llama.attention.layer_norm_rms_epsilon": 1e-6,
            "llama.rope.dimension_count": 64,
            "llama.rope.freq_base": 10000.0,
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 4.0,
            "llama.rope.scaling.original_context_length": 512,
            "llama.rope.scaling.attn_factor": 1.0,
            "llama.rope.scaling.finetuned": True,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.eos_token_id": 0,
            "tokenizer.ggml.add_bos_token": False,
            "tokenizer.ggml.add_eos_token": False,
        }
    )
    assert {name: len(values) for name, values in lists.items()} == {
        "tokens": 8192,
        "token_type": 8192,
        "merges": 7935,
    }
    assert lists["tokens"][:2] == ["<|eos|>", "!"]
    assert lists["token_type"][:2] == [TokenType.CONTROL, TokenType.NORMAL]
    assert lists["merges"][0] == "Ġ Ġ"


@pytest.mark.parametrize(
    ("weights", "kind", "rtol"),
    [
        ("f16", GGMLQuantizationType.F16, 1e-3),
        ("bf16", GGMLQuantizationType.BF16, 0),
        ("q8_0", GGMLQuantizationType.Q8_0, None),
    ],
)
def test_the_tensors_of_the_extended_base(extended, written, weights, kind, rtol):
    model = extended()
    reader = written(model, weights)
    found, source = tensors(reader), load_file(model / "model.safetensors")
    assert len(found) == len(source) == 38
    assert {tensor.tensor_type for tensor in reader.tensors if len(tensor.shape) == 2} == {kind}

    def close(name, expected):
        step = np.abs(expected).max() / 127 if rtol is None else 1e-7
        np.testing.assert_allclose(found[name], expected, rtol=rtol or 0, atol=step)

    close("token_embd.weight", source["model.embed_tokens.weight"].float().numpy())
    norm = source["model.layers.3.input_layernorm.weight"].float().numpy()
    np.testing.assert_array_equal(found["blk.3.attn_norm.weight"], norm)
    for layer in range(4):
        names = {"attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_down": "mlp.down_proj"}
        for name, module in names.items():
            close(
                f"blk.{layer}.{name}.weight",
                source[f"model.layers.{layer}.{module}.weight"].float().numpy(),
            )
        for name, heads in (("q", 4), ("k", 2)):
            found[f"blk.{layer}.attn_{name}.weight"] = turned_in_pairs(
                found[f"blk.{layer}.attn_{name}.weight"], heads
            )
            close(
                f"blk.{layer}.attn_{name}.weight",
                source[f"model.layers.{layer}.self_attn.{name}_proj.weight"].float().numpy(),
            )


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_queries_and_keys_of_qwen_keep_their_order(random_model, written, model_type):
    model = random_model(model_type, head_dim=16)
    found, source = tensors(written(model, "bf16")), load_file(model / "model.safetensors")
    for name in ("q", "k"):
        expected = source[f"model.layers.1.self_attn.{name}_proj.weight"].bfloat16().float().numpy()
        np.testing.assert_array_equal(found[f"blk.1.attn_{name}.weight"], expected)


def test_an_untied_head_is_written_and_a_repeated_one_is_not(random_model, written):
    model = random_model("llama", tie_word_embeddings=False)
    assert "output.weight" in tensors(written(model))
    source = load_file(model / "model.safetensors")
    source["lm_head.weight"] = source["model.embed_tokens.weight"].clone()
    save_file(source, model / "model.safetensors", {"format": "pt"})
    config = json.loads((model / "config.json").read_bytes()) | {"tie_word_embeddings": True}
    (model / "config.json").write_text(json.dumps(config))
    assert "output.weight" not in tensors(written(model))


def test_shards_are_read_as_one_model(extended, written):
    model = extended()
    whole = load_file(model / "model.safetensors")
    names = sorted(whole)
    places = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: whole[name] for name in names if places[name] == file}, model / file)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    alone = tensors(written(model, "bf16"))
    (model / "model.safetensors").unlink()
    sharded = tensors(written(model, "bf16"))
    assert alone.keys() == sharded.keys()
    for name, values in alone.items():
        np.testing.assert_array_equal(sharded[name], values)


def test_a_ramp_that_llama_cpp_cannot_be_told_is_written_as_divisors(extended, written):
    model = extended(beta_fast=16.0, beta_slow=2.0, attention_factor=1.25)
    reader = written(model)
    found = keys(reader)
    assert found["llama.rope.scaling.type"] == "none"
    assert found["llama.rope.scaling.attn_factor"] == 1.25
    assert "llama.rope.scaling.factor" not in found
    plain = 10000.0 ** (-np.arange(0, 64, 2) / 64)
    spec = rope_spec_of(read_config(model))
    np.testing.assert_allclose(
        plain / tensors(reader)["rope_freqs.weight"], inverse_frequencies(spec), rtol=1e-6
    )


def test_matrices_whose_rows_do_not_fill_blocks_are_float16_in_q8_0(random_model, written):
    reader = written(random_model("llama", intermediate_size=72), "q8_0")
    kinds = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    assert kinds["blk.0.ffn_down.weight"] is GGMLQuantizationType.F16
    assert kinds["blk.0.ffn_up.weight"] is GGMLQuantizationType.Q8_0


@pytest.mark.parametrize("own", ["own", None])
def test_named_chat_templates_are_all_written(extended, written, own):
    """By the names that GGUF readers ask for: tokenizer.chat_template.NAME, listed beside the model's own."""
    model = extended()
    named = {"tool_use": "tools {{ messages }}", "rag": "passages"}
    (model / "additional_chat_templates").mkdir()
    for name, text in named.items():
        (model / "additional_chat_templates" / f"{name}.jinja").write_text(text)
    if own:
        (model / "chat_template.jinja").write_text(own)
    found = {name: value for name, value in keys(written(model)).items() if "chat_template" in name}
    listed = found.pop("tokenizer.chat_templates")
    assert sorted(listed) == sorted(named)
    assert found == {
        **({"tokenizer.chat_template": own} if own else {}),
        **{f"tokenizer.chat_template.{name}": text for name, text in named.items()},
    }


def test_progress_is_told_in_bytes(extended, written):
    heard = []
    written(extended(), report=lambda done, total, note: heard.append((done, total, note)))
    assert heard[0][0] == 0 and heard[-1][0] == heard[-1][1] > 10_000_000
    assert len(heard) == 39


def test_a_value_beyond_float16_is_refused_and_nothing_is_left(extended, written, tmp_path):
    model = extended()
    source = load_file(model / "model.safetensors")
    source["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(source, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=r"mlp\.up_proj\.weight does not fit float16; write --type bf16"):
        written(model)
    assert [path for path in tmp_path.iterdir() if path != model] == []
    assert tensors(written(model, "bf16"))["blk.0.ffn_up.weight"][0, 0] == torch.tensor(1e5).bfloat16()


def test_another_activation_is_refused(extended, written):
    model = extended()
    config = json.loads((model / "config.json").read_bytes()) | {"hidden_act": "gelu"}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match=r"hidden_act is gelu, and llama\.cpp computes silu"):
        written(model)


def test_a_tensor_without_a_place_is_refused(extended, written):
    model = extended()
    source = load_file(model / "model.safetensors")
    source["model.layers.0.self_attn.sinks"] = torch.zeros(4)
    save_file(source, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=r"llama has no tensor model\.layers\.0\.self_attn\.sinks"):
        written(model)
