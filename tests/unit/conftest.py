"""Config.json dicts as bases publish them, shrunk to a few thousand parameters."""

from __future__ import annotations

import pytest

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
ALL_HEADS = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
CONFIGS = {
    "llama": {**SMALL, "architectures": ["LlamaForCausalLM"]},
    "qwen2": {**SMALL, "architectures": ["Qwen2ForCausalLM"], "sliding_window": 64},
    "qwen2_moe": {**SMALL, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
                  "num_experts": 2, "num_experts_per_tok": 1},
    "qwen3": {**SMALL, "head_dim": 48},
    "qwen3_moe": {**SMALL, "moe_intermediate_size": 32, "num_experts": 2, "num_experts_per_tok": 1},
    "olmo": SMALL,
    "olmo2": SMALL,
    "granite": {**SMALL, "attention_multiplier": 0.0078125},
    "granitemoe": {**SMALL, "num_local_experts": 2, "num_experts_per_tok": 1},
    "smollm3": {**SMALL, "no_rope_layers": [1, 0]},
    "mistral": {**SMALL, "sliding_window": None},
    "mixtral": {**SMALL, "num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": None},
    "ministral": {**SMALL, "head_dim": None, "sliding_window": None},
    "minimax": {**SMALL, "num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": None,
                "layer_types": ["full_attention", "linear_attention"], "block_size": 16},
    "hunyuan_v1_dense": {**SMALL, "head_dim": None},
    "gemma": {**SMALL, "head_dim": 32},
    "gemma2": {**SMALL, "head_dim": 32, "sliding_window": 64, "query_pre_attn_scalar": 32},
    "gpt_neox": {**{key: value for key, value in ALL_HEADS.items() if key != "rope_theta"},
                 "rotary_emb_base": 10000, "rotary_pct": 0.25},
    "phi": {**ALL_HEADS, "partial_rotary_factor": 0.5},
    "stablelm": {**SMALL, "partial_rotary_factor": 0.25},
    "glm": {**SMALL, "head_dim": 32, "partial_rotary_factor": 0.5},
    "glm4": {**SMALL, "head_dim": 32, "partial_rotary_factor": 0.5},
}  # fmt: skip


def published_config(model_type: str) -> dict[str, object]:
    return {"model_type": model_type, **CONFIGS[model_type]}


@pytest.fixture
def config_of():
    return published_config


@pytest.fixture(params=sorted(CONFIGS))
def every_config(request):
    return published_config(request.param)
