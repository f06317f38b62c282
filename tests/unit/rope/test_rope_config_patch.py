"""Patched configs: right in transformers 4 and 5, never stacked, the caller's dict untouched."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from transformers import CONFIG_MAPPING, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from yarn_ops.errors import RopeError
from yarn_ops.recipe import Rope
from yarn_ops.rope.config import patch_config, rope_spec_of
from yarn_ops.rope.methods import attention_factor, inverse_frequencies

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/rope_yarn.json").read_text())["vectors"]
PAIRS = 16  # of the llama below: head_dim 32
METHODS = {
    "none": Rope(method="none", factor=4.0),
    "linear": Rope(method="linear", factor=4.0),
    "ntk": Rope(method="ntk", factor=4.0),
    "dynamic-ntk": Rope(method="dynamic-ntk", factor=4.0),
    "by-parts": Rope(method="by-parts", factor=4.0),
    "yarn": Rope(method="yarn", factor=4.0),
    "yarn, own attention": Rope(method="yarn", factor=4.0, attention_factor=1.25, beta_fast=16, beta_slow=2),
    "llama3": Rope(method="llama3", factor=4.0),
    "longrope": Rope(
        method="longrope", factor=4.0,
        short_factors=(1.0,) * PAIRS, long_factors=tuple(np.linspace(1, 4, PAIRS)),
    ),
    "abf": Rope(method="abf", factor=4.0, theta=5e5),
}  # fmt: skip
ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings")


def patched(config, rope, factor=4.0, original=None):
    return patch_config(config, rope, factor=factor, original_context_tokens=original)


@pytest.mark.parametrize("vector", GOLDEN, ids=lambda vector: vector["name"])
def test_golden_through_transformers(vector):
    """What transformers builds from our config is the golden vector, to a millionth."""
    config = {
        "model_type": "llama",
        "hidden_size": vector["dim"] * 2,
        "num_attention_heads": 2,
        "max_position_embeddings": vector["original_context_tokens"],
        "rope_theta": vector["theta"],
    }
    rope = Rope(
        method="yarn",
        factor=vector["factor"],
        beta_fast=vector["beta_fast"],
        beta_slow=vector["beta_slow"],
    )
    written, _ = patched(config, rope, vector["factor"])
    rotary = LlamaRotaryEmbedding(LlamaConfig.from_dict(written))
    live = rotary.inv_freq.double().numpy()[vector["indices"]]
    assert_allclose(live, vector["inverse_frequencies"], rtol=1e-6, atol=0)
    assert_allclose(rotary.attention_scaling, vector["attention_factor"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", METHODS)
def test_either_generation_of_readers_sees_the_same_rope(name, config_of):
    """transformers 4 reads the top level, 5 rope_scaling first, and 5 alone rope_parameters."""
    written, spec = patched(config_of("llama"), METHODS[name])
    for hidden in ((), ("rope_parameters",), ("rope_theta", "rope_scaling")):
        read = rope_spec_of({key: value for key, value in written.items() if key not in hidden})
        lengths = (None, 1024) if spec.method in ("dynamic-ntk", "longrope") else (None,)
        for length_tokens in lengths:
            assert_allclose(
                inverse_frequencies(read, length_tokens), inverse_frequencies(spec, length_tokens), rtol=1e-14
            )
        assert attention_factor(read) == attention_factor(spec)


@pytest.mark.parametrize("name", METHODS)
def test_transformers_validates_without_a_word(name, config_of, caplog):
    written, _ = patched(config_of("llama"), METHODS[name])
    CONFIG_MAPPING["llama"].from_dict(copy.deepcopy(written))
    assert not [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_yarn_is_written_as_every_server_reads_it(config_of):
    written, _ = patched(config_of("llama"), METHODS["yarn"])
    scaling = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 256,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    }
    assert written["rope_scaling"] == scaling
    assert written["rope_parameters"] == {**scaling, "rope_theta": 10000.0}
    assert (written["rope_theta"], written["max_position_embeddings"], written["head_dim"]) == (
        10000.0,
        1024,
        32,
    )
    assert all(isinstance(scaling[key], float) for key in ("factor", "beta_fast", "beta_slow"))
    assert isinstance(written["max_position_embeddings"], int)


def test_methods_that_move_theta_need_no_scaling(config_of):
    for name, theta in (("none", 1e4), ("abf", 5e5), ("ntk", 1e4 * 4 ** (32 / 30))):
        written, _ = patched(config_of("llama"), METHODS[name])
        assert "rope_scaling" not in written
        assert written["rope_parameters"] == {"rope_type": "default", "rope_theta": pytest.approx(theta)}
        assert written["max_position_embeddings"] == 1024


def test_by_parts_is_yarn_with_attention_factor_one(config_of):
    written, _ = patched(config_of("llama"), METHODS["by-parts"])
    assert written["rope_scaling"]["rope_type"] == "yarn"
    assert written["rope_scaling"]["attention_factor"] == 1.0


def test_dynamic_ntk_keeps_max_position_embeddings(config_of):
    written, spec = patched(config_of("llama"), METHODS["dynamic-ntk"])
    assert (written["max_position_embeddings"], spec.target_context_tokens) == (256, 1024)


def test_method_none_at_factor_one_moves_nothing(config_of):
    config = config_of("llama")
    written, _ = patched(config, Rope(method="none"), 1.0)
    assert {key: value for key, value in written.items() if key in config} == config


@pytest.mark.parametrize("name", METHODS)
def test_the_callers_config_is_untouched_and_the_rest_kept(name, config_of):
    config = {**config_of("llama"), "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    before = copy.deepcopy(config)
    written, _ = patched(config, METHODS[name])
    written["rope_parameters"]["rope_theta"] = 1.0
    written.setdefault("rope_scaling", {})["factor"] = 1.0
    assert config == before
    kept = set(config) - {*ROPE_KEYS, "max_position_embeddings"}
    assert {key: written[key] for key in kept} == {key: config[key] for key in kept}


def test_scaling_is_never_stacked(config_of):
    once, _ = patched(config_of("llama"), METHODS["yarn"])
    with pytest.raises(RopeError, match=r"already scaled \(yarn\)"):
        patched(once, METHODS["yarn"])
    twice, spec = patched(once, METHODS["linear"], 8.0, original=256)
    assert twice["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert (twice["max_position_embeddings"], spec.original_context_tokens) == (2048, 256)
    with pytest.raises(RopeError, match="scaled from 256"):
        patched(once, METHODS["yarn"], original=512)
    with pytest.raises(RopeError, match="less than the 1024 that the base reads"):
        patched(once, METHODS["yarn"], 2.0, original=256)


def test_what_a_scaled_base_reads_is_extended_from_its_true_original(config_of):
    """Llama 3.1, 128k to 512k: the factor counts from what it reads, the frequencies from the original."""
    bands = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling = {**bands, "original_max_position_embeddings": 256}
    base = {**config_of("llama"), "max_position_embeddings": 4096, "rope_scaling": scaling}
    written, spec = patched(base, METHODS["yarn"], 4.0, original=4096)
    assert (spec.factor, spec.original_context_tokens, spec.target_context_tokens) == (64.0, 256, 16384)
    assert written["max_position_embeddings"] == 16384
    assert written["rope_scaling"]["original_max_position_embeddings"] == 256
    assert patched(base, METHODS["yarn"], 64.0, original=256)[1] == spec
    with pytest.raises(RopeError, match="less than the 4096"):
        patched(base, METHODS["yarn"], 4.0, original=256)


def test_a_linear_factor_beside_an_unmoved_limit(config_of):
    """Only max_sequence_length, or its user, says whether the limit was multiplied."""
    base = {**config_of("llama"), "rope_scaling": {"type": "linear", "factor": 4.0}}
    assert patched(base, METHODS["yarn"], original=256)[1].target_context_tokens == 1024
    longer = {**base, "max_sequence_length": 1024}
    with pytest.raises(RopeError, match="scaled from 256, and reads 256"):
        patched(longer, METHODS["yarn"], 16.0, original=64)
    written, _ = patched(longer, METHODS["yarn"], 8.0, original=256)
    assert written["max_position_embeddings"] == 2048 and "max_sequence_length" not in written


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "type": "linear", "factor": 4.0}}, "type and rope_type are"),
        ({"dual_chunk_attention_config": {"chunk_size": 64}}, "dual_chunk_attention_config: inference"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
                           "mscale": 1.0, "mscale_all_dim": 1.0}}, "attention_factor: the base was trained"),
    ],
)  # fmt: skip
def test_bases_that_no_patch_makes_right(config_of, changes, message):
    with pytest.raises(RopeError, match=message):
        patched({**config_of("llama"), **changes}, METHODS["yarn"], 16.0, original=64)


def test_scaling_whose_original_is_missing_can_be_replaced(config_of):
    config = {**config_of("llama"), "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    written, _ = patched(config, METHODS["yarn"], original=256)
    assert written["rope_scaling"]["rope_type"] == "yarn"


def test_leftovers_of_longrope_are_removed(config_of):
    once, _ = patched(config_of("llama"), METHODS["longrope"])
    assert once["original_max_position_embeddings"] == 256
    again, _ = patched(once, METHODS["yarn"], original=256)
    assert "original_max_position_embeddings" not in again
    assert "long_factor" not in again["rope_scaling"]


def test_gpt_neox_keeps_its_own_names(config_of):
    written, spec = patched(config_of("gpt_neox"), METHODS["ntk"])
    theta = 10000.0 * 4 ** (8 / 6)
    assert spec.dim == 8
    assert written["rotary_emb_base"] == written["rope_theta"] == pytest.approx(theta, rel=1e-12)
    assert written["rotary_pct"] == written["partial_rotary_factor"] == 0.25


def test_a_full_share_is_written_where_the_class_assumes_less(config_of):
    written, spec = patched({**config_of("stablelm"), "partial_rotary_factor": 1.0}, METHODS["yarn"])
    assert spec.dim == 32
    assert written["partial_rotary_factor"] == written["rope_parameters"]["partial_rotary_factor"] == 1.0


@pytest.mark.parametrize("factor", [0.5, 0.0, -4.0, float("nan"), float("inf"), "4"])
def test_a_factor_that_is_none(factor, config_of):
    with pytest.raises(RopeError, match=r"^factor"):
        patched(config_of("llama"), METHODS["yarn"], factor)


def test_a_target_between_two_tokens_is_refused(config_of):
    with pytest.raises(RopeError, match="no whole number of tokens"):
        patched(config_of("llama"), METHODS["yarn"], 1.3)
    written, _ = patched(config_of("llama"), METHODS["yarn"], 1000 / 256)
    assert written["max_position_embeddings"] == 1000


def test_every_architecture_is_patched_alike_for_transformers(every_config):
    """The rotary class of each architecture, built from the written config, holds our frequencies."""
    written, spec = patched(every_config, METHODS["yarn"])
    config = CONFIG_MAPPING[every_config["model_type"]].from_dict(copy.deepcopy(written))
    assert config.rope_parameters["rope_theta"] == spec.theta
    assert config.head_dim == written["head_dim"]
    assert rope_spec_of(written) == spec
