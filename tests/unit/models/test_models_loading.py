"""A model is loaded with every tensor in its place, quietly, and with the attention that it needs."""

import copy
import json

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from yarn_ops.errors import BaseModelError
from yarn_ops.models.loading import load_proven
from yarn_ops.recipe import Rope
from yarn_ops.rope.config import patch_config
from yarn_ops.rope.methods import RopeSpec

YARN = Rope(method="yarn", factor=4.0)


def patched(config):
    return patch_config(config, YARN, factor=4.0, original_context_tokens=None)


def saved(config, path):
    """A checkpoint directory of the unpatched base."""
    torch.manual_seed(0)
    built = CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config))
    AutoModelForCausalLM.from_config(built).save_pretrained(path)
    return path


def test_load_refuses_weights_of_another_model(config_of, tmp_path):
    base = config_of("llama")
    weights = saved(base, tmp_path / "base")
    config, spec = patched(base)
    for change, fault in (
        ({"num_hidden_layers": 3}, "missing tensor model.layers.2."),
        ({"num_hidden_layers": 1}, "unexpected tensor model.layers.1."),
        ({"intermediate_size": 64}, "mismatched tensor model.layers.0.mlp.down_proj.weight (6 in all)"),
        ({"model_type": "unheard-of"}, "unknown to transformers"),
    ):
        with pytest.raises(BaseModelError) as caught:
            load_proven(weights, {**config, **change}, spec, dtype=torch.float32, device="cpu")
        assert fault in str(caught.value) and "\n" not in str(caught.value)


def test_load_refuses_pickles(config_of, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_of("llama")))
    torch.save({}, tmp_path / "pytorch_model.bin")
    spec = RopeSpec(method="none", dim=32, theta=1e4, original_context_tokens=256)
    with pytest.raises(BaseModelError, match="pickled weights"):
        load_proven(tmp_path, None, spec, dtype=torch.float32, device="cpu")


def test_load_is_quiet(config_of, tmp_path, capfd):
    base = config_of("llama")
    weights = saved(base, tmp_path / "base")
    config, spec = patched(base)
    capfd.readouterr()
    load_proven(weights, config, spec, dtype=torch.float32, device="cpu")
    assert capfd.readouterr() == ("", "")


def test_softcapped_attention_is_never_given_to_an_implementation_that_drops_the_cap(config_of, tmp_path):
    base = config_of("gemma2")
    config, spec = patched(base)
    model = load_proven(saved(base, tmp_path), config, spec, dtype=torch.float32, device="cpu")
    assert model.config._attn_implementation == "eager"
