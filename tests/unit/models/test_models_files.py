"""Which files make up a checkpoint, and its tokenizer."""

import pytest

from yarn_ops.errors import BaseModelError
from yarn_ops.models.checkpoints import checkpoint_files, load_tokenizer
from yarn_ops.rope.fields import rope_thetas, rope_type


def test_only_what_belongs_to_a_checkpoint(checkpoint):
    for name in ("README.md", "training_args.bin", "optimizer.pt", "other.safetensors", ".gitattributes"):
        (checkpoint / name).write_text("")
    (checkpoint / "chat_template.jinja").write_text("")
    (checkpoint / "special_tokens_map.json").write_text("{}")
    assert checkpoint_files(checkpoint) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_shards_and_their_index(checkpoint, shard):
    shard(checkpoint)
    assert [name for name in checkpoint_files(checkpoint) if "safetensors" in name] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


def test_a_checkpoint_without_weights(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match="no weights"):
        checkpoint_files(checkpoint)


def test_tokenizer(checkpoint):
    tokenizer = load_tokenizer(checkpoint)
    assert tokenizer.decode(tokenizer("def answer():")["input_ids"]) == "def answer():"


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({}, "default"),
        ({"rope_scaling": None, "rope_parameters": {"rope_type": "default"}}, "default"),
        ({"rope_scaling": {"type": "linear"}}, "linear"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
    ],
)
def test_rope_type(config, kind):
    assert rope_type(config) == kind


def test_rope_thetas_name_their_places():
    config = {"rope_theta": 1e4, "rotary_emb_base": 10000, "rope_parameters": {"rope_theta": 5e5}}
    assert rope_thetas(config) == {
        "rope_theta": 1e4,
        "rotary_emb_base": 1e4,
        "rope_parameters.rope_theta": 5e5,
    }
