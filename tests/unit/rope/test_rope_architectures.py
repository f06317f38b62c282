"""Which architectures are patched, which refused; defaults are those of the transformers classes."""

import pytest
from transformers import CONFIG_MAPPING

from yarn_ops.errors import RopeError
from yarn_ops.recipe import Rope
from yarn_ops.rope.architectures import ARCHITECTURES, REFUSED
from yarn_ops.rope.config import patch_config

YARN = Rope(method="yarn", factor=4.0)


def patched(config):
    return patch_config(config, YARN, factor=4.0, original_context_tokens=None)[0]


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_defaults_are_those_of_the_class(model_type):
    architecture, config_class = ARCHITECTURES[model_type], CONFIG_MAPPING[model_type]
    assert architecture.head_dim == getattr(config_class, architecture.width_key, None)
    rope = config_class().rope_parameters
    stated = (rope.get("full_attention") or rope).get("partial_rotary_factor", 1.0)
    assert architecture.rotary_fraction == stated
    assert architecture.by_layer_type == ("full_attention" in rope)
    window = getattr(config_class, "sliding_window", None)
    if architecture.sliding == "never":
        assert window is None
    elif architecture.sliding != "some by default":
        assert architecture.sliding_window == window


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_refused_with_a_reason(model_type, config_of):
    config = {**config_of("llama"), "model_type": model_type}
    if model_type == "falcon":
        config["alibi"] = True
    with pytest.raises(RopeError) as caught:
        patched(config)
    text = str(caught.value)
    assert text.startswith(f"model_type: {model_type} cannot be extended: ") and "\n" not in text


def test_the_refused_page():
    refused = {"phi3", "deepseek_v2", "ministral3", "gemma3", "falcon", "nemotron", "gemma4", "cohere2"}
    assert refused | {"exaone4", "llama4"} <= REFUSED.keys()
    assert not REFUSED.keys() & ARCHITECTURES.keys()


@pytest.mark.parametrize("model_type", ["bert", None, "LLaMA"])
def test_unknown_architectures_are_refused(model_type, config_of):
    with pytest.raises(RopeError, match="not known to extend safely"):
        patched({**config_of("llama"), "model_type": model_type})


@pytest.mark.parametrize(
    ("model_type", "window"),
    [
        ("mistral", {"sliding_window": 512}),
        ("mistral", {}),  # the class slides over 4096 tokens when nothing is said
        ("mixtral", {"sliding_window": 512}),
        ("ministral", {"sliding_window": 512}),
        ("qwen2", {"sliding_window": 512, "use_sliding_window": True, "max_window_layers": 0}),
        ("qwen3", {"use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}),
        ("qwen3_moe", {"use_sliding_window": True}),
    ],
)
def test_a_sliding_window_below_the_target_is_refused(model_type, window, config_of):
    config = {**config_of(model_type), "max_position_embeddings": 2048}
    config.pop("sliding_window", None)
    with pytest.raises(RopeError, match=r"^sliding_window"):
        patched({**config, **window})


@pytest.mark.parametrize(
    ("model_type", "window"),
    [
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 1024}),
        ("ministral", {"sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"]}),
        ("qwen2", {"sliding_window": 64, "use_sliding_window": False}),
        ("qwen2", {"sliding_window": 64}),
        ("qwen2", {"sliding_window": 64, "use_sliding_window": True}),  # only from layer 28 on
        ("qwen3", {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 1}),
        ("gemma2", {"sliding_window": 64}),
    ],
)
def test_a_window_that_is_wide_enough_or_off_is_accepted(model_type, window, config_of):
    assert patched({**config_of(model_type), **window})["max_position_embeddings"] == 1024
