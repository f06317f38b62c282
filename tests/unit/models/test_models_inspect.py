"""A sound base becomes a record; an unsound one is refused in one line that says where and what next."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from yarn_ops.errors import BaseModelError
from yarn_ops.models.checkpoints import tensor_shapes
from yarn_ops.models.inspection import inspect_checkpoint


def refused(path, *fragments, **options):
    with pytest.raises(BaseModelError) as caught:
        inspect_checkpoint(path, source="base", **options)
    text = str(caught.value)
    assert all(fragment in text for fragment in fragments), text
    assert "\n" not in text


def test_record(checkpoint):
    record = inspect_checkpoint(checkpoint, source="shipped:base512")
    assert (record.source, record.architecture, record.model_type) == (
        "shipped:base512",
        "LlamaForCausalLM",
        "llama",
    )
    assert record.parameters == 5048576
    assert (record.vocab_size, record.context_tokens, record.head_dim) == (8192, 512, 64)
    assert record.rope_theta == 10000.0
    assert record.tree is None and record.parents == ()


def test_the_true_original_context_may_be_given(checkpoint):
    assert inspect_checkpoint(checkpoint, source="base", original_context_tokens=256).context_tokens == 256
    refused(checkpoint, "1024 is above", original_context_tokens=1024)


def test_shards_are_counted_once(checkpoint, shard):
    shard(checkpoint)
    assert inspect_checkpoint(checkpoint, source="base").parameters == 5048576


def test_head_dim_and_theta_in_the_older_style(checkpoint, edit):
    edit(checkpoint / "config.json", rope_parameters=..., rope_theta=5e5, head_dim=None)
    record = inspect_checkpoint(checkpoint, source="base")
    assert (record.head_dim, record.rope_theta) == (64, 5e5)


def test_pickles_beside_safetensors_are_not_needed(checkpoint):
    torch.save({}, checkpoint / "pytorch_model.bin")
    assert inspect_checkpoint(checkpoint, source="base").parameters == 5048576


def test_missing_parts(checkpoint):
    refused(checkpoint / "nowhere", "no such directory")
    refused(checkpoint / "config.json", "no such directory")
    (checkpoint / "tokenizer.json").unlink()
    refused(checkpoint, "no tokenizer")
    (checkpoint / "model.safetensors").unlink()
    refused(checkpoint, "no weights")
    (checkpoint / "config.json").unlink()
    refused(checkpoint, "config.json: missing")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl"])
def test_pickled_weights(name, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    torch.save({}, checkpoint / name)
    refused(checkpoint, name, "pickled weights", "convert")


def test_an_index_into_pickles(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    torch.save({}, checkpoint / "pytorch_model.bin")
    index = {"weight_map": {"model.norm.weight": "pytorch_model.bin"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(checkpoint, "only safetensors")


def test_an_adapter_alone(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "adapter_model.safetensors")
    refused(checkpoint, "an adapter, not a model")


def test_remote_code(checkpoint, edit):
    edit(checkpoint / "tokenizer_config.json", auto_map={"AutoTokenizer": "tokenization.Mine"})
    refused(checkpoint, "tokenizer_config.json", "remote code")
    edit(checkpoint / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Mine"})
    refused(checkpoint, "config.json: auto_map", "remote code")


def test_code_files(checkpoint):
    (checkpoint / "modeling_mine.py").write_text("raise SystemExit")
    refused(checkpoint, "modeling_mine.py", "never run")


@pytest.mark.parametrize("text", ["", "{", "[]", "nonsense", '"text"'])
def test_config_that_is_no_object(text, checkpoint):
    (checkpoint / "config.json").write_text(text)
    refused(checkpoint, "config.json")


def test_config_that_is_no_text(checkpoint):
    (checkpoint / "config.json").write_bytes(b"\xff\xfe\x00")
    refused(checkpoint, "config.json: cannot be read as JSON")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ...}, "architectures names nothing"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "only …ForCausalLM models"),
        ({"rope_parameters": ...}, "no rope_theta"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "one RoPE a layer type"),
        ({"max_position_embeddings": ...}, "max_position_embeddings is None"),
        ({"vocab_size": "8192"}, "vocab_size is '8192'"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"model_type": "unheard-of"}, "'unheard-of' is not known to extend safely"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"vocab_size": 8000}, "shape [8192, 256] but config.json says vocab_size 8000"),
        ({"tie_word_embeddings": False}, "missing tensor lm_head.weight"),
        ({"tie_word_embeddings": ...}, "missing tensor lm_head.weight"),  # Llama's default is false
        (
            {"head_dim": ..., "num_attention_heads": None},
            "num_attention_heads: missing where config.json needs a number",
        ),
        ({"hidden_act": "swishglu"}, "no model can be built from it"),
        ({"quantization": {"bits": 4}}, "quantised"),
        (
            {"rope_scaling": {"factor": 4.0, "type": "yarn"}, "rope_theta": 1e4, "rope_parameters": ...},
            "RoPE is already scaled (yarn)",
        ),
    ],
)
def test_config_that_does_not_fit(changes, message, checkpoint, edit):
    edit(checkpoint / "config.json", **changes)
    refused(checkpoint, message)


def test_scaled_already(checkpoint, edit):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    changes = {"rope_scaling": scaling, "rope_theta": 1e4, "rope_parameters": ...}
    edit(checkpoint / "config.json", **changes, max_position_embeddings=2048)
    refused(checkpoint, "already scaled (yarn)", "base.original_context_tokens")
    assert inspect_checkpoint(checkpoint, source="base", only_read=True).context_tokens == 2048
    assert inspect_checkpoint(checkpoint, source="base", original_context_tokens=512).context_tokens == 512
    edit(checkpoint / "config.json", rope_scaling={"factor": 4.0, "type": "yarn"})
    with pytest.raises(BaseModelError, match="original_max_position_embeddings: missing"):
        inspect_checkpoint(checkpoint, source="base", original_context_tokens=512)


def test_weights_that_are_no_floats(checkpoint, replace_weights):
    name = "model.layers.0.mlp.up_proj.weight"
    replace_weights(checkpoint, lambda tensors: tensors.update({name: tensors[name].char()}))
    refused(checkpoint, f"{name} is I8: quantised")


@pytest.mark.parametrize("size_bytes", [0, 4, 100, 5_000_000, -1])
def test_truncated_safetensors(size_bytes, checkpoint):
    data = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors").write_bytes(data[:size_bytes])
    refused(checkpoint, "model.safetensors: truncated or corrupt")


def test_safetensors_with_something_appended(checkpoint):
    data = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors").write_bytes(data + b"more")
    refused(checkpoint, "truncated or corrupt")


def test_a_large_file_pointer_in_place_of_weights(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 10\n")
    refused(checkpoint, "truncated or corrupt")


def test_a_missing_shard(checkpoint, shard):
    shard(checkpoint)
    (checkpoint / "model-00002-of-00002.safetensors").unlink()
    refused(checkpoint, "model-00002-of-00002.safetensors: missing")


def test_a_tensor_listed_but_in_no_shard(checkpoint, shard, edit):
    index = shard(checkpoint)
    weight_map = {**index["weight_map"], "model.extra.weight": "model-00001-of-00002.safetensors"}
    edit(checkpoint / "model.safetensors.index.json", weight_map=weight_map)
    refused(checkpoint, "model.extra.weight is in no shard")


def test_a_tensor_in_a_shard_but_not_listed(checkpoint, shard, edit):
    weight_map = shard(checkpoint)["weight_map"]
    del weight_map["model.norm.weight"]
    edit(checkpoint / "model.safetensors.index.json", weight_map=weight_map)
    refused(checkpoint, "model.norm.weight is in a shard but not listed")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/model.safetensors", "model.bin", 7])
def test_an_index_that_leads_elsewhere(name, checkpoint, shard, edit):
    weight_map = {**shard(checkpoint)["weight_map"], "model.norm.weight": name}
    edit(checkpoint / "model.safetensors.index.json", weight_map=weight_map)
    refused(checkpoint, "only safetensors beside the index")


def test_an_index_without_a_map(checkpoint, shard, edit):
    shard(checkpoint)
    edit(checkpoint / "model.safetensors.index.json", weight_map=...)
    refused(checkpoint, "no weight_map")


def test_weights_without_an_embedding(checkpoint, replace_weights):
    replace_weights(checkpoint, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    refused(checkpoint, "no token embedding")


def test_a_tied_head_is_counted_once(checkpoint, replace_weights):
    replace_weights(
        checkpoint,
        lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}),
    )
    assert inspect_checkpoint(checkpoint, source="base").parameters == 5048576


def test_a_tied_head_that_differs(checkpoint, replace_weights):
    def untie(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["lm_head.weight"][-1, -1] += 1

    replace_weights(checkpoint, untie)
    refused(checkpoint, "tie_word_embeddings is true but lm_head.weight is not model.embed_tokens.weight")


def test_a_tokenizer_larger_than_the_embedding(checkpoint):
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    extra = {**tokenizer["added_tokens"][0], "id": 8192, "content": "<|extra|>"}
    tokenizer["added_tokens"].append(extra)
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(checkpoint, "largest id is 8192 but the embedding has 8192 rows")


@pytest.mark.parametrize("text", ["", "{}", '{"model": {"type": "unheard-of"}}'])
def test_a_tokenizer_that_cannot_be_read(text, checkpoint):
    (checkpoint / "tokenizer.json").write_text(text)
    refused(checkpoint, "tokenizer")


def test_shapes_come_from_headers_alone(checkpoint):
    shapes = tensor_shapes(checkpoint)
    assert shapes["model.embed_tokens.weight"] == (8192, 256)
    assert shapes["model.norm.weight"] == (256,)
    assert len(shapes) == 38


def test_a_link_to_a_checkpoint_is_followed(checkpoint, tmp_path):
    (tmp_path / "link").symlink_to(checkpoint)
    assert inspect_checkpoint(tmp_path / "link", source="base").parameters == 5048576
    shutil.rmtree(checkpoint)
    refused(tmp_path / "link", "no such directory")


def test_what_transformers_said_is_kept_for_the_same_bytes(checkpoint, edit, tmp_path):
    """So that a base that was inspected before needs no import of seconds; any other byte asks again."""
    kept = tmp_path / "kept"
    first = inspect_checkpoint(checkpoint, source="base", kept=kept)
    program = (
        "import sys; from pathlib import Path; from yarn_ops.models.inspection import inspect_checkpoint;"
        f"found = inspect_checkpoint(Path({str(checkpoint)!r}), source='base', kept=Path({str(kept)!r}));"
        "assert not {'torch', 'transformers', 'tokenizers'} & {*sys.modules}; print(found.model_dump_json())"
    )
    again = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert type(first).model_validate_json(again.stdout) == first
    edit(checkpoint / "config.json", bos_token_id=3)
    inspect_checkpoint(checkpoint, source="base", kept=kept)
    assert len([*kept.iterdir()]) == 2
    edit(checkpoint / "tokenizer.json", model=None)
    with pytest.raises(BaseModelError, match="the tokenizer cannot be read"):
        inspect_checkpoint(checkpoint, source="base", kept=kept)


@pytest.mark.parametrize("left", [b"", b"[true, 64]", b'["no", "number", null]'])
def test_a_kept_file_that_is_damaged_is_made_again(checkpoint, tmp_path, left):
    kept = tmp_path / "kept"
    first = inspect_checkpoint(checkpoint, source="base", kept=kept)
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    file.write_bytes(left)
    assert inspect_checkpoint(checkpoint, source="base", kept=kept) == first
    assert file.read_bytes() == whole
