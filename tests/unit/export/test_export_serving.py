"""The command line of every engine, translated where it is exact, refused with the reason where it is not."""

from __future__ import annotations

import copy
import shlex

import numpy as np
import pytest

from yarn_ops.errors import RopeError
from yarn_ops.export.engines import REQUIRES
from yarn_ops.export.serving import serving_settings
from yarn_ops.recipe import Rope
from yarn_ops.rope.config import patch_config, rope_spec_of
from yarn_ops.rope.methods import inverse_frequencies

ENGINES = tuple(REQUIRES)
OWN = 0.1 * np.log(4) + 1  # YaRN's attention factor at factor 4


@pytest.fixture
def extended(config_of):
    """extended(model_type, **rope): a 256-token config, extended ×4 to 1024."""

    def patch(model_type: str = "llama", **rope):
        asked = Rope(**{"method": "yarn", "factor": 4.0, **rope})
        config = {**config_of(model_type), "sliding_window": None}
        return patch_config(config, asked, factor=4.0, original_context_tokens=256)[0]

    return patch


def with_scaling(config, **changes):
    """The config with keys of both RoPE objects changed; None removes one."""
    changed = copy.deepcopy(config)
    for name in ("rope_scaling", "rope_parameters"):
        changed[name].update(changes)
        changed[name] = {key: value for key, value in changed[name].items() if value is not None}
    return changed


COMMANDS = {
    "transformers": "transformers serve model",
    "vllm": "vllm serve model --max-model-len 1024",
    "vllm-0.29": "vllm serve model --max-model-len 1024",
    "sglang": "python -m sglang.launch_server --model-path model --context-length 1024",
    "llama.cpp": "llama-server --model model --ctx-size 1024 --parallel 1",
    "ollama": "ollama create model --file model.Modelfile",
    "lm-studio": "lms import --hard-link --user-repo yarn-ops/model model && "
    "lms load --exact yarn-ops/model/model --context-length 1024",
    "mlx": "mlx_lm.server --model model",
    "tgi": "text-generation-launcher --model-id model --max-total-tokens 1024 --max-input-tokens 1023",
}


@pytest.mark.parametrize("engine", ENGINES)
def test_plain_yarn_is_served_by_every_engine_as_it_is(extended, engine):
    settings = serving_settings(extended(), engine)
    assert settings.command("model") == COMMANDS[engine]
    assert settings.config is None
    assert settings.requires == REQUIRES[engine]


@pytest.mark.parametrize(
    ("model_type", "floor", "sglang"),
    [
        ("mistral", "vllm>=0.10,<0.30", True),
        ("olmo2", "vllm>=0.11.2,<0.30", True),
        ("mixtral", "vllm>=0.12,<0.30", False),
        ("gemma", "vllm>=0.12,<0.30", False),
        ("gemma2", "vllm>=0.12,<0.30", False),
        ("olmo", "vllm>=0.12,<0.30", False),
        ("stablelm", "vllm>=0.12,<0.30", False),
    ],
)
def test_a_class_is_served_by_versions_that_read_its_scaling(extended, model_type, floor, sglang):
    config = extended(model_type)
    assert serving_settings(config, "vllm-0.29").requires == floor
    assert serving_settings(config, "vllm").requires == REQUIRES["vllm"]
    if sglang:
        assert serving_settings(config, "sglang").requires == REQUIRES["sglang"]
    else:
        with pytest.raises(RopeError, match="sglang reads no scaling of this class; serve with vllm"):
            serving_settings(config, "sglang")


def test_chunked_attention_is_never_served_as_if_it_were_scaled(extended):
    config = {**extended("qwen2"), "dual_chunk_attention_config": {"chunk_size": 64}}
    for engine in ("vllm", "vllm-0.29", "sglang"):
        with pytest.raises(RopeError, match="ignores any scaling"):
            serving_settings(config, engine)


@pytest.mark.parametrize("method", ["none", "linear", "ntk", "abf", "by-parts", "llama3"])
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_every_method_of_fixed_frequencies_is_served_by_what_reads_configs_as_written(
    extended, method, engine
):
    config = extended(method=method, theta=5e5 if method == "abf" else None)
    settings = serving_settings(config, engine)
    assert (settings.command("model"), settings.config) == (COMMANDS[engine], None)


def test_a_path_is_quoted_for_the_shell(extended):
    command = serving_settings(extended(), "vllm").command("my models/a")
    assert command == "vllm serve 'my models/a' --max-model-len 1024"


@pytest.mark.parametrize("engine", ENGINES)
def test_no_path_is_taken_for_an_option(extended, engine):
    words = shlex.split(serving_settings(extended(), engine).command("-mine/m.gguf"))
    assert any(word.startswith("./-mine/m.") for word in words)
    assert not [word for word in words if word.startswith("-mine")]


def test_an_adapter_is_named_with_its_rank(extended):
    vllm, sglang = (serving_settings(extended(), engine) for engine in ("vllm", "sglang"))
    assert vllm.command("base", adapter="a", rank=16) == (
        "vllm serve base --max-model-len 1024 --enable-lora --max-lora-rank 16 --lora-modules adapter=a"
    )
    assert sglang.command("base", adapter="a", rank=12) == (
        "python -m sglang.launch_server --model-path base --context-length 1024 "
        "--enable-lora --max-lora-rank 12 --lora-paths adapter=a"
    )


def test_the_served_context_is_the_config_s_where_it_is_less_than_factor_times_original(extended):
    config = {**extended(method="llama3"), "max_position_embeddings": 512}
    assert serving_settings(config, "vllm").context_tokens == 512


# an attention factor of its own


def test_vllm_up_to_029_multiplies_so_it_is_given_the_quotient(extended):
    config = extended(attention_factor=1.25)
    before = copy.deepcopy(config)
    served = serving_settings(config, "vllm-0.29").config
    for name in ("rope_scaling", "rope_parameters"):
        assert "attention_factor" not in served[name]
        assert served[name]["attn_factor"] * OWN == pytest.approx(1.25, rel=1e-12)
    assert config == before


def test_vllm_up_to_029_is_given_the_ratio_of_an_mscale_pair(extended):
    config = with_scaling(extended(), mscale=2.0, mscale_all_dim=0.5)
    served = serving_settings(config, "vllm-0.29").config
    assert not {"mscale", "mscale_all_dim"} & served["rope_parameters"].keys()
    ratio = (0.2 * np.log(4) + 1) / (0.05 * np.log(4) + 1)
    assert served["rope_parameters"]["attn_factor"] * OWN == pytest.approx(ratio, rel=1e-12)


@pytest.mark.parametrize("engine", ["vllm-0.29", "sglang", "mlx", "tgi"])
def test_an_attention_factor_that_is_yarn_s_own_needs_nothing(extended, engine):
    config = with_scaling(extended(), attention_factor=float(OWN))
    assert serving_settings(config, engine).config is None


@pytest.mark.parametrize("engine", ["sglang", "mlx", "tgi"])
def test_an_attention_factor_is_refused_where_it_is_ignored(extended, engine):
    with pytest.raises(RopeError, match=rf"attention_factor: 1.25 is ignored by {engine}.* take 1.13863"):
        serving_settings(extended(attention_factor=1.25), engine)


@pytest.mark.parametrize("engine", ["sglang", "mlx", "tgi"])
def test_by_parts_which_is_yarn_without_its_attention_factor_is_refused_there(extended, engine):
    with pytest.raises(RopeError, match=f"attention_factor: 1 is ignored by {engine}"):
        serving_settings(extended(method="by-parts"), engine)


@pytest.mark.parametrize("engine", ["sglang", "mlx", "tgi"])
def test_an_mscale_pair_is_read(extended, engine):
    config = with_scaling(extended(), mscale=2.0, mscale_all_dim=0.5)
    assert serving_settings(config, engine).command("model") == COMMANDS[engine]


def test_half_a_pair_is_none_to_transformers_and_sglang_and_a_pair_to_mlx_and_tgi(extended):
    """These take the other's default: another factor than the reference's."""
    config = with_scaling(extended(), mscale=2.0)
    for engine in ("transformers", "sglang"):
        assert serving_settings(config, engine).command("model") == COMMANDS[engine]
    for engine in ("mlx", "tgi"):
        with pytest.raises(RopeError, match=f"is ignored by {engine}, which would take 1.27726"):
            serving_settings(config, engine)


def test_llama_cpp_multiplies_so_it_is_given_the_quotient(extended):
    gguf = serving_settings(extended("qwen2", attention_factor=1.25), "llama.cpp").gguf
    assert (gguf.scaling, gguf.frequency_factors) == ("yarn", None)
    assert gguf.attn_factor * OWN == pytest.approx(1.25, rel=1e-12)


# the ramp


def test_truncate_needs_vllm_013(extended):
    config = with_scaling(extended(), truncate=False)
    assert serving_settings(config, "vllm-0.29").requires == "vllm>=0.13,<0.30"
    for engine in ("transformers", "vllm", "sglang"):
        assert serving_settings(config, engine).requires == REQUIRES[engine]


@pytest.mark.parametrize("changes", [{"truncate": False}, {"beta_fast": 16.0}, {"beta_slow": 2.0}])
@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_llama_cpp_is_given_divisors_of_the_frequencies_where_it_cannot_be_given_the_ramp(
    extended, changes, model_type
):
    config = with_scaling(extended(model_type), **changes, attention_factor=1.25)
    gguf = serving_settings(config, "llama.cpp").gguf
    assert (gguf.architecture, gguf.scaling, gguf.attn_factor) == ("llama", "none", 1.25)
    plain = 10000.0 ** (-np.arange(0, gguf.dim, 2) / gguf.dim)
    np.testing.assert_allclose(
        plain / gguf.frequency_factors, inverse_frequencies(rope_spec_of(config)), rtol=1e-12
    )


def test_llama_cpp_is_given_divisors_for_llama3(extended):
    gguf = serving_settings(extended(method="llama3"), "llama.cpp").gguf
    assert (gguf.scaling, gguf.attn_factor) == ("none", 1.0)
    assert (gguf.frequency_factors.min(), gguf.frequency_factors.max()) == pytest.approx((1.0, 4.0))


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"beta_fast": 16.0}, "beta_fast 16 and beta_slow 1: llama.cpp reads neither"),
        ({"truncate": False}, "truncate false: llama.cpp reads neither"),
    ],
)
def test_llama_cpp_refuses_another_ramp_where_it_has_no_divisors(extended, model_type, changes, named):
    with pytest.raises(RopeError, match=named):
        serving_settings(with_scaling(extended(model_type), **changes), "llama.cpp")


def test_llama_cpp_refuses_llama3_where_it_has_no_divisors(extended):
    with pytest.raises(RopeError, match=r"llama3: llama\.cpp reads neither"):
        serving_settings(extended("qwen2", method="llama3"), "llama.cpp")


@pytest.mark.parametrize(
    ("method", "scaling"), [("none", "none"), ("ntk", "none"), ("linear", "linear"), ("by-parts", "yarn")]
)
def test_llama_cpp_names_the_methods_it_has(extended, method, scaling):
    gguf = serving_settings(extended(method=method), "llama.cpp").gguf
    assert (gguf.scaling, gguf.frequency_factors) == (scaling, None)


@pytest.mark.parametrize(
    ("engine", "changes", "named"),
    [
        ("mlx", {"truncate": False}, "truncate false: ignored by mlx"),
        ("tgi", {"truncate": False}, "truncate false: ignored by tgi"),
        ("tgi", {"beta_fast": 16.0}, "beta_fast 16 and beta_slow 1: ignored by tgi"),
    ],
)
def test_another_ramp_is_refused_where_it_is_ignored(extended, engine, changes, named):
    with pytest.raises(RopeError, match=named):
        serving_settings(with_scaling(extended(), **changes), engine)


def test_tgi_refuses_linear_which_it_reads_as_unscaled(extended):
    with pytest.raises(RopeError, match="linear: ignored by tgi; serve with vllm or transformers"):
        serving_settings(extended(method="linear"), "tgi")
    assert serving_settings(extended(method="linear"), "mlx").command("model") == COMMANDS["mlx"]


# what no engine does, or not for this class


@pytest.mark.parametrize("method", ["yarn", "none"])
def test_tensorrt_llm_is_refused_with_the_reason(extended, method):
    with pytest.raises(RopeError, match=r"tensorrt-llm: 1\.2 hands .* not run; serve with vllm"):
        serving_settings(extended(method=method), "tensorrt-llm")


@pytest.mark.parametrize(("engine", "model_type"), [("mlx", "mixtral"), ("mlx", "gemma"), ("tgi", "qwen3")])
def test_a_class_whose_scaling_is_not_read_is_refused(extended, engine, model_type):
    with pytest.raises(RopeError, match=f"{model_type}: {engine} reads no scaling of this class"):
        serving_settings(extended(model_type), engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "rope",
    [
        {"method": "dynamic-ntk"},
        {"method": "dynamic-yarn"},
        {"method": "longrope", "short_factors": (1.0,) * 16, "long_factors": (4.0,) * 16},
    ],
    ids=lambda rope: rope["method"],
)
def test_frequencies_that_change_with_the_length_are_refused(extended, engine, rope):
    with pytest.raises(RopeError, match=rf"cannot be served by {engine}: its frequencies change with the"):
        serving_settings(extended(**rope), engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_context_that_is_not_factor_times_original_is_refused(extended, engine):
    config = {**extended(), "max_position_embeddings": 1000}
    with pytest.raises(RopeError, match="max_position_embeddings: 1000 is not factor 4 times the original"):
        serving_settings(config, engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_keys_that_only_some_engines_know_are_refused(extended, engine):
    with pytest.raises(RopeError, match="attn_factor: not understood"):
        serving_settings(with_scaling(extended(), attn_factor=1.1), engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sliding_window_that_hides_the_context_is_refused(extended, engine):
    config = {**extended("mistral"), "sliding_window": 512}
    with pytest.raises(RopeError, match="sliding_window: attention reaches back 512 tokens only"):
        serving_settings(config, engine)


@pytest.mark.parametrize("model_type", ["gpt_neox", "phi", "stablelm", "glm", "glm4"])
def test_llama_cpp_refuses_partial_rotary(extended, model_type):
    with pytest.raises(RopeError, match=r"partial_rotary_factor: .* cannot carry scaling"):
        serving_settings(extended(model_type), "llama.cpp")


@pytest.mark.parametrize(
    ("model_type", "named"),
    [
        ("gemma", "llama.cpp drops the scaling of this class"),
        ("gemma2", "llama.cpp drops the scaling of this class"),
        ("olmo2", "a GGUF is written of llama, mistral, qwen2, qwen3 only"),
        ("mixtral", "a GGUF is written of llama, mistral, qwen2, qwen3 only"),
    ],
)
def test_llama_cpp_refuses_classes_that_lose_yarn_or_are_not_written(extended, model_type, named):
    with pytest.raises(RopeError, match=named):
        serving_settings(extended(model_type), "llama.cpp")


@pytest.mark.parametrize("model_type", ["gpt_neox", "gemma2", "olmo2", "glm4"])
def test_the_others_serve_those_classes(extended, model_type):
    assert serving_settings(extended(model_type), "vllm").command("model") == COMMANDS["vllm"]
