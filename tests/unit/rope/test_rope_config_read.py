"""What a config on disk asks for, in both styles; incomplete and contradictory ones are refused."""

import pytest

from yarn_ops.errors import RopeError
from yarn_ops.rope.config import rope_spec_of

YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
PLAIN = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_attention_heads": 4,
    "max_position_embeddings": 16384,
    "rope_theta": 500000.0,
}
LONGROPE = {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 4096}
V4 = {**PLAIN, "rope_scaling": YARN}
V5 = {
    **{key: value for key, value in PLAIN.items() if key != "rope_theta"},
    "rope_parameters": {**YARN, "rope_theta": 500000.0},
}


def without(values, *keys):
    return {key: value for key, value in values.items() if key not in keys}


def test_both_styles_and_both_together_read_alike():
    spec = rope_spec_of(V4)
    assert (spec.method, spec.dim, spec.theta, spec.factor) == ("yarn", 64, 500000.0, 4.0)
    assert spec.original_context_tokens == 4096
    assert spec == rope_spec_of(V5)
    assert spec == rope_spec_of({**V4, "rope_parameters": V5["rope_parameters"]})


def test_an_unscaled_config_has_its_own_context():
    spec = rope_spec_of(PLAIN)
    assert (spec.method, spec.factor, spec.original_context_tokens) == ("none", 1.0, 16384)


def test_the_old_name_of_rope_type_is_read():
    old = {**PLAIN, "rope_scaling": {"type": "linear", "factor": 4}}
    assert rope_spec_of(old).method == "linear"


def test_dynamic_keeps_its_original_in_max_position_embeddings():
    dynamic = {**PLAIN, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    assert rope_spec_of(dynamic).original_context_tokens == 16384


def test_llama3():
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    spec = rope_spec_of({**PLAIN, "max_position_embeddings": 131072, "rope_scaling": scaling})
    assert (spec.method, spec.factor, spec.original_context_tokens) == ("llama3", 8.0, 8192)


def test_the_mscale_pair_becomes_the_final_attention_factor():
    spec = rope_spec_of({**PLAIN, "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}})
    assert spec.attention_factor == pytest.approx(1.1386294361 / 1.0693147181, rel=1e-9)
    assert rope_spec_of({**PLAIN, "rope_scaling": {**YARN, "mscale": 1.0}}).attention_factor is None


def test_head_dim_null_is_derived():
    assert rope_spec_of({**V4, "head_dim": None}).dim == 64


def test_names_of_gpt_neox():
    config = {
        **without(PLAIN, "rope_theta"),
        "model_type": "gpt_neox",
        "rotary_emb_base": 10000,
        "rotary_pct": 0.5,
    }
    spec = rope_spec_of(config)
    assert (spec.theta, spec.dim) == (10000.0, 32)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**PLAIN, "rope_scaling": without(YARN, "original_max_position_embeddings")}, "original_max_pos"),
        ({**V4, "original_max_position_embeddings": 8192}, "original_max_position_embeddings 8192"),
        # saved by 5, then by 4, which knows no rope_parameters and writes its own defaults beside them
        ({**V5, "rope_theta": 10000.0, "rope_scaling": None}, "rope_theta 10000"),
        ({**V4, "rope_parameters": {**YARN, "rope_theta": 10000.0}}, "rope_parameters.rope_theta 10000"),
        ({**V4, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}, "differ in"),
        ({**V4, "rope_parameters": {**YARN, "factor": 8.0, "rope_theta": 5e5}}, "differ in factor"),
        # theta only where loaders do not look
        ({**V5, "rope_scaling": YARN}, "rope_parameters.rope_theta is not read"),
        ({**V5, "rope_parameters": {"full_attention": {**YARN, "truncate": False}}}, "one RoPE a layer type"),
        ({**PLAIN, "rope_scaling": {**YARN, "factor": 0.5}}, "factor"),
        ({**PLAIN, "rope_scaling": {**YARN, "factor": "4"}}, "factor: '4'"),
        ({**PLAIN, "rope_scaling": {**YARN, "factor": True}}, "factor: True"),
        ({**PLAIN, "rope_scaling": without(YARN, "factor")}, "factor: missing"),
        ({**V4, "max_position_embeddings": 2048}, "below the original 4096"),
        ({**V4, "max_position_embeddings": 8192}, "is not factor 4 times"),
        (without(PLAIN, "rope_theta"), "rope_theta: missing"),
        (without(V4, "rope_theta"), "rope_theta: missing"),
        (without(PLAIN, "max_position_embeddings"), "max_position_embeddings: missing"),
        ({**PLAIN, "rope_theta": "big"}, "rope_theta: 'big'"),
        ({**PLAIN, "rope_scaling": {"rope_type": "su", "factor": 4.0}}, "'su' is unknown"),
        ({**PLAIN, "rope_scaling": {**YARN, "attn_factor": 1.0}}, "attn_factor"),
        ({**PLAIN, "rope_scaling": {"rope_type": "dynamic", "factor": 1.0, "alpha": 1000.0}}, "alpha"),
        ({**PLAIN, "rope_scaling": "yarn"}, "expected an object"),
        ({**PLAIN, "rope_scaling": {**YARN, "beta_fast": 1.0}}, "beta_fast"),
        (
            {**V5, "partial_rotary_factor": 0.5,
             "rope_parameters": {**V5["rope_parameters"], "partial_rotary_factor": 1.0}},
            "partial_rotary_factor",
        ),
        (without(PLAIN, "hidden_size"), "hidden_size: missing"),
        ({**PLAIN, "model_type": ["llama"]}, "is not known to extend safely"),
        ({**PLAIN, "rope_scaling": LONGROPE | {"short_factor": 5}}, "short_factor: 5"),
        ({**PLAIN, "rope_scaling": LONGROPE | {"long_factor": True}}, "long_factor: True"),
    ],
)  # fmt: skip
def test_refused(config, message):
    with pytest.raises(RopeError) as caught:
        rope_spec_of(config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
