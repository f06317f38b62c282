"""Whatever a config.json says of RoPE: the model that transformers builds is proven, or one line refuses."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yarn_ops.errors import YarnOpsError
from yarn_ops.models.patch import patch, prove_directory
from yarn_ops.recipe import Rope
from yarn_ops.records import BaseModel, Local
from yarn_ops.rope.config import rope_spec_of

SMALL: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 128, "max_position_embeddings": 256, "rope_theta": 10000.0,
    "pad_token_id": 0, "head_dim": 32,
}  # fmt: skip
MOE = {"num_local_experts": 2, "num_experts_per_tok": 1}
NAMES = (
    *("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "olmo2", "cohere", "granite", "gemma3_text"),
    *("olmo3", "smollm3", "starcoder2", "glm4", "phi", "stablelm", "mixtral", "gpt_oss", "gpt_neox"),
    *("phi3", "llama4_text", "bert", "mamba"),
)
OWN = {"mixtral": MOE, "gpt_oss": MOE, "gpt_neox": {"rotary_emb_base": 10000, "rotary_pct": 0.25}}
numbers = st.sampled_from([4.0, 2, 1.0, 0.5, 0, -1, 1e9, 8, 32.0, "4", None, True, [4.0], {}, 10**6])
lengths = st.sampled_from([256, 64, 128, 1024, 512, 0, -1, None, "256", 256.0, 2**31])
kinds = st.sampled_from(
    ["yarn", "linear", "llama3", "dynamic", "default", "longrope", "su", "mrope", "", None, 3]
)
scalings = st.one_of(
    st.none(),
    st.sampled_from([{}, "yarn", [], 4, {"rope_type": "yarn", "factor": 4.0}]),
    st.fixed_dictionaries(
        {},
        optional={
            "rope_type": kinds, "type": kinds, "factor": numbers, "original_max_position_embeddings": lengths,
            "beta_fast": numbers, "beta_slow": numbers, "attention_factor": numbers, "mscale": numbers,
            "mscale_all_dim": numbers, "truncate": st.booleans(), "low_freq_factor": numbers,
            "high_freq_factor": numbers, "rope_theta": st.sampled_from([10000.0, 5e5, 1, None, "1e4"]),
            "short_factor": st.sampled_from([[1.0] * 16, [1.0], None]),
            "long_factor": st.sampled_from([[4.0] * 16, [0.0] * 16, None]), "finetuned": st.just(True),
            "partial_rotary_factor": st.sampled_from([0.5, 1.0, 2.0]),
        },
    ),
)  # fmt: skip
plain_yarn = st.builds(
    lambda factor, original, kind: {
        kind: "yarn", "factor": factor, "original_max_position_embeddings": original
    },
    st.sampled_from([1.0, 2.0, 4.0]), st.sampled_from([64, 128, 256]), st.sampled_from(["type", "rope_type"]),
)  # fmt: skip
nested = st.fixed_dictionaries(
    {"full_attention": st.one_of(scalings, plain_yarn), "sliding_attention": scalings},
)
changes = st.fixed_dictionaries(
    {},
    optional={
        "rope_scaling": st.one_of(scalings, plain_yarn), "rope_parameters": st.one_of(scalings, nested),
        "rope_theta": st.sampled_from([10000.0, 5e5, None, 1, 0.5, "1e4", 1000000]),
        "rope_local_base_freq": st.sampled_from([10000.0, None, "x"]), "max_position_embeddings": lengths,
        "max_sequence_length": lengths, "original_max_position_embeddings": lengths,
        "sliding_window": st.sampled_from([None, 32, 4096, "32"]), "use_sliding_window": st.booleans(),
        "max_window_layers": st.sampled_from([0, 1, 2, 28]),
        "head_dim": st.sampled_from([None, 32, 31, 2, 0, "32"]),
        "layer_types": st.sampled_from([None, ["full_attention"] * 2, ["sliding_attention"] * 2,
                                        ["sliding_attention", "full_attention"], ["full_attention"], "full"]),
        "partial_rotary_factor": st.sampled_from([1.0, 0.5, 0.25, 0.0, 3, None]),
        "num_attention_heads": st.sampled_from([2, 0, 3, None]),
        "hidden_act": st.sampled_from(["silu", "swishglu"]),
        "dual_chunk_attention_config": st.just({"chunk_size": 64}), "no_rope_layers": st.just([1, 0]),
    },
)  # fmt: skip
methods = st.sampled_from(["yarn", "linear", "ntk", "llama3", "dynamic-ntk", "by-parts"])


def draw_is_proven_or_refused(shape: str, changed: dict[str, Any], given_tokens: Any, method: str) -> str:
    config = {**SMALL, "model_type": shape, **OWN.get(shape, {}), **changed}
    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "base"
        base.mkdir()
        (base / "config.json").write_text(json.dumps(config))
        try:
            prove_directory(base, rope_spec_of(config))
            context = given_tokens or config["max_position_embeddings"]
            record = BaseModel(
                source="drawn", architecture="X", model_type=shape, parameters=1, vocab_size=128,
                context_tokens=context, head_dim=32, rope_theta=1e4,
            )  # fmt: skip
            patch(Rope(method=method, factor=4.0), Local(record, base), Path(name) / "patched", factor=4.0)
        except YarnOpsError as error:
            assert "\n" not in str(error) and str(error)
            assert not (Path(name) / "patched").exists()
            return "refused"
    return "proven"


drawn = given(st.sampled_from(NAMES), changes, st.sampled_from([None, 64, 256, 1024]), methods)
patient = {"suppress_health_check": list(HealthCheck), "database": None}


@settings(max_examples=40, **patient)
@drawn
def test_forty_configs(shape: str, changed: dict[str, Any], given_tokens: Any, method: str) -> None:
    draw_is_proven_or_refused(shape, changed, given_tokens, method)


@pytest.mark.slow
def test_two_thousand_configs() -> None:
    found: list[str] = []

    @settings(max_examples=2000, **patient)
    @drawn
    def draw(shape: str, changed: dict[str, Any], given_tokens: Any, method: str) -> None:
        found.append(draw_is_proven_or_refused(shape, changed, given_tokens, method))

    draw()
    assert len(found) >= 2000 and found.count("proven") > 100, found.count("proven")
    print(f"{len(found)} draws, {found.count('proven')} proven, {found.count('refused')} refused")
