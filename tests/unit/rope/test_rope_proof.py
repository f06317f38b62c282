"""Proofs hold through load, cast on load, PEFT, merge and reload; and catch what goes wrong."""

import copy
import json

import pytest
import torch
from numpy.testing import assert_allclose
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from yarn_ops.errors import ProofError
from yarn_ops.models.loading import load_proven
from yarn_ops.recipe import Rope
from yarn_ops.rope.config import patch_config, rope_spec_of
from yarn_ops.rope.methods import attention_factor, inverse_frequencies
from yarn_ops.rope.proof import prove, rotary_modules

YARN = Rope(method="yarn", factor=4.0)
PLANNED = ("llama", "qwen2", "qwen3", "mistral", "olmo2", "gpt_neox", "phi", "stablelm", "mixtral", "granite")


def build(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config))
    )


def patched(config, rope=YARN):
    return patch_config(config, rope, factor=4.0, original_context_tokens=None)


def saved(config, path):
    """A checkpoint directory of the unpatched base."""
    build(config).save_pretrained(path)
    return path


@pytest.fixture
def llama(config_of):
    config, spec = patched(config_of("llama"))
    return build(config), spec


def test_every_architecture_is_proven(every_config):
    config, spec = patched(every_config)
    model = build(config)
    assert prove(model, spec) < 1e-6


def test_every_architecture_rotates_as_the_reference(every_config):
    """cos and sin themselves: attention factor times the cosine of position times frequency."""
    config, spec = patched(every_config)
    _, rotary = next(rotary_modules(build(config)))
    positions = torch.tensor([[0, 1, 255, 1023]])
    cos, _ = rotary(torch.zeros(1, dtype=torch.float32), positions)
    angles = torch.tensor([0, 1, 255, 1023]).double()[:, None] * torch.from_numpy(inverse_frequencies(spec))
    pairs = spec.dim // 2
    stride = cos.shape[-1] // pairs
    halves = torch.equal(cos[..., :pairs], cos[..., -pairs:])
    live = cos[0, :, :pairs] if halves else cos[0, :, ::stride]
    assert_allclose(live.double(), attention_factor(spec) * angles.cos(), rtol=0, atol=2e-4)
    assert_allclose(cos[0, 0].double(), attention_factor(spec), rtol=1e-6)


@pytest.mark.parametrize("model_type", PLANNED)
def test_load_cast_adapt_merge_reload(model_type, config_of, tmp_path):
    base = config_of(model_type)
    weights = saved(base, tmp_path / "base")
    config, spec = patched(base)
    for dtype in (torch.bfloat16, torch.float32):
        model = load_proven(weights, config, spec, dtype=dtype, device="cpu")
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert not model.training

    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert prove(wrapped, spec) < 1e-6
    merged = wrapped.merge_and_unload()
    assert prove(merged, spec) < 1e-6

    merged.save_pretrained(tmp_path / "merged")
    (tmp_path / "merged/config.json").write_text(json.dumps(config))
    again = load_proven(tmp_path / "merged", None, spec, dtype=torch.bfloat16, device="cpu")
    assert prove(again, spec) < 1e-6


@pytest.mark.parametrize(
    "rope",
    [
        Rope(method="none", factor=4.0),
        Rope(method="linear", factor=4.0),
        Rope(method="ntk", factor=4.0),
        Rope(method="dynamic-ntk", factor=4.0),
        Rope(method="by-parts", factor=4.0),
        Rope(method="llama3", factor=4.0),
        Rope(method="longrope", factor=4.0, short_factors=(1.0,) * 16, long_factors=(4.0,) * 16),
        Rope(method="abf", factor=4.0, theta=5e5),
    ],
    ids=lambda rope: rope.method,
)
def test_every_method_is_proven_before_and_after_reading_beyond_the_original(rope, config_of):
    config, spec = patched(config_of("llama"), rope)
    model = build(config)
    assert prove(model, spec) < 1e-6
    with torch.no_grad():
        model(torch.zeros(1, 600, dtype=torch.long))
    assert prove(model, spec) < 1e-6
    with torch.no_grad():
        model(torch.zeros(1, 8, dtype=torch.long))
    assert prove(model, spec) < 1e-6


def test_what_is_written_is_what_is_proven(config_of):
    config, _ = patched(config_of("llama"))
    assert prove(build(config), rope_spec_of(config)) < 1e-6


def fails(model, spec, *fragments):
    with pytest.raises(ProofError) as caught:
        prove(model, spec)
    text = str(caught.value)
    assert all(fragment in text for fragment in fragments), text
    assert "\n" not in text


def test_another_factor_is_caught(llama):
    model, spec = llama
    fails(model, spec.model_copy(update={"factor": 8.0}), "model.rotary_emb: inv_freq[", "yarn x8 needs")


def test_an_unpatched_model_is_caught(llama, config_of):
    _, spec = llama
    fails(build(config_of("llama")), spec, "not built from the patched config")


def test_a_config_set_after_the_model_was_built_is_caught(llama, config_of):
    _, spec = llama
    model = build(config_of("llama"))
    model.config.rope_parameters = patched(config_of("llama"))[0]["rope_parameters"]
    fails(model, spec, "inv_freq[")


def test_a_cast_of_the_whole_model_is_caught(llama):
    model, spec = llama
    fails(model.to(torch.bfloat16), spec, "inv_freq is torch.bfloat16, not float32")


def test_a_cast_there_and_back_is_caught(llama):
    model, spec = llama
    fails(model.to(torch.bfloat16).to(torch.float32), spec, "inv_freq[")


def test_a_missing_original_is_caught(llama, config_of):
    """Without the original, the extended length is taken for it and the ramp moves."""
    config, spec = patched(config_of("llama"))
    for place in ("rope_scaling", "rope_parameters"):
        del config[place]["original_max_position_embeddings"]
    fails(build(config), spec, "inv_freq[")


@pytest.mark.parametrize("index", [0, 7, 15])
@pytest.mark.parametrize("scale", [1 + 1e-5, 1.5, float("nan")])
def test_one_damaged_dimension_is_caught(llama, index, scale):
    model, spec = llama
    model.model.rotary_emb.inv_freq[index] *= scale
    fails(model, spec, f"inv_freq[{index}] is", "1 of 16 pairs")


def test_a_wrong_attention_factor_is_caught(llama):
    model, spec = llama
    model.model.rotary_emb.attention_scaling = 1.0
    fails(model, spec, "attention factor is 1,", "1.13862944")


def test_another_rotary_dimension_is_caught(llama):
    model, spec = llama
    fails(model, spec.model_copy(update={"dim": 16}), "shape [16], expected [8]")


def test_a_model_without_data_is_caught(llama, config_of):
    config, spec = patched(config_of("llama"))
    with torch.device("meta"):
        fails(build(config), spec, "meta device")


def test_a_model_without_rope_is_caught(llama):
    fails(torch.nn.Linear(2, 2), llama[1], "no rotary embedding found")


def test_a_static_module_in_place_of_a_dynamic_one_is_caught(config_of):
    """Both hold the same frequencies until they read something long."""
    _, dynamic = patched(config_of("llama"), Rope(method="dynamic-ntk", factor=4.0))
    fails(build(config_of("llama")), dynamic, "rope_type is default but dynamic-ntk needs dynamic")
    config, _ = patched(config_of("llama"), Rope(method="dynamic-ntk", factor=4.0))
    _, plain = patched(config_of("llama"), Rope(method="none", factor=4.0))
    fails(build(config), plain, "rope_type is dynamic but none is static")


def test_a_dynamic_module_of_another_factor_is_caught(config_of):
    config, spec = patched(config_of("llama"), Rope(method="dynamic-ntk", factor=4.0))
    fails(build(config), spec.model_copy(update={"factor": 2.0}), "tokens: inv_freq[")


def test_rope_by_layer_type_is_caught(llama):
    config = CONFIG_MAPPING["gemma3_text"](
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, head_dim=32,
        num_key_value_heads=1, vocab_size=128,
    )  # fmt: skip
    fails(AutoModelForCausalLM.from_config(config), llama[1], "but the config says 1 RoPE")
