"""Which architectures (`model_type`) can be patched, what their configs leave unsaid, which are refused.

The defaults are those of the transformers config classes: a config.json may leave them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from yarn_ops.errors import RopeError

Sliding = Literal["never", "every layer", "if use_sliding_window", "some layers"]


@dataclass(frozen=True)
class Architecture:
    """How one model_type rotates its heads."""

    head_dim: int | None = None
    """when the config names none; None: hidden_size // num_attention_heads"""
    rotary_fraction: float = 1.0
    """share of a head that is rotated, when the config names none"""
    theta_key: str = "rope_theta"
    fraction_key: str = "partial_rotary_factor"
    sliding: Sliding = "never"
    sliding_window: int | None = None
    """when the config names none"""


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(),
    "qwen2": Architecture(sliding="if use_sliding_window", sliding_window=4096),
    "qwen2_moe": Architecture(sliding="if use_sliding_window", sliding_window=4096),
    "qwen3": Architecture(head_dim=128, sliding="if use_sliding_window", sliding_window=4096),
    "qwen3_moe": Architecture(sliding="if use_sliding_window", sliding_window=4096),
    "olmo": Architecture(),  # both need transformers 5: 4 raises on any scaling of theirs
    "olmo2": Architecture(),
    "granite": Architecture(),
    "granitemoe": Architecture(),
    "smollm3": Architecture(sliding="if use_sliding_window"),
    "mistral": Architecture(sliding="every layer", sliding_window=4096),
    "mixtral": Architecture(sliding="every layer"),
    "ministral": Architecture(sliding="every layer", sliding_window=4096),
    "minimax": Architecture(sliding="every layer"),
    "hunyuan_v1_dense": Architecture(),
    "gemma": Architecture(head_dim=256),
    "gemma2": Architecture(head_dim=256, sliding="some layers"),
    "gpt_neox": Architecture(rotary_fraction=0.25, theta_key="rotary_emb_base", fraction_key="rotary_pct"),
    "phi": Architecture(rotary_fraction=0.5),
    "stablelm": Architecture(rotary_fraction=0.25),
    "glm": Architecture(head_dim=128, rotary_fraction=0.5),
    "glm4": Architecture(head_dim=128, rotary_fraction=0.5),
}
ROTATES_AFTER_CACHE = ("llama", "qwen2", "qwen3", "mistral")
"""classes whose attention is queries, keys, a rotation of both, the cache, and an attention function"""

_NESTED = "it keeps one RoPE a layer type, and only some of them may be scaled"
_OWN_YARN = "it is already extended by a YaRN of its own, with other attention factors"
_MIXED = "its layers differ in whether and how they rotate"

REFUSED: dict[str, str] = {
    "phi3": "transformers renames yarn to longrope for it and then fails",
    "deepseek_v2": _OWN_YARN,
    "deepseek_v3": _OWN_YARN,
    "gpt_oss": _OWN_YARN,
    "ministral3": _OWN_YARN,
    "gemma3": _NESTED,
    "gemma3_text": _NESTED,
    "modernbert": _NESTED,
    "olmo3": _NESTED,
    "nemotron": "transformers 4 drops its scaling without a word",  # seen in 4.51.3, 4.55.4 and 4.57.6
    "gemma4": _MIXED,
    "gemma4_text": _MIXED,
    "cohere2": _MIXED,
    "exaone4": _MIXED,
    "llama4": _MIXED,
    "llama4_text": _MIXED,
    "falcon": "it uses ALiBi, or a RoPE whose scaling no converter carries over",
}


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The entry for a config's model_type; RopeError with the reason where there is none."""
    model_type = config.get("model_type")
    if model_type in REFUSED:
        raise RopeError(
            f"model_type: {model_type} cannot be extended: {REFUSED[model_type]}; choose another base"
        )
    if model_type not in ARCHITECTURES:
        raise RopeError(
            f"model_type: {model_type!r} is not known to extend safely; "
            f"known are {', '.join(sorted(ARCHITECTURES))}"
        )
    return ARCHITECTURES[model_type]


def require_rotation_after_cache(config: Mapping[str, Any]) -> None:
    """RopeError where our own attention, which turns keys as they are read, does not fit."""
    model_type = config.get("model_type")
    if model_type not in ROTATES_AFTER_CACHE:
        raise RopeError(
            f"model_type: {model_type} cannot run dynamic-yarn, which turns keys after the cache; "
            f"{', '.join(ROTATES_AFTER_CACHE)} can; use yarn"
        )
    architecture = ARCHITECTURES[model_type]
    acts = architecture.sliding == "every layer" or config.get("use_sliding_window", False)
    if acts and config.get("sliding_window", architecture.sliding_window) is not None:
        raise RopeError("sliding_window: dynamic-yarn needs the whole context; choose a base without it")


def require_full_attention(config: Mapping[str, Any], target_context_tokens: int) -> None:
    """RopeError where a sliding window on every layer would hide the longer context."""
    architecture = architecture_of(config)
    window = config.get("sliding_window", architecture.sliding_window)
    match architecture.sliding:
        case "never" | "some layers":
            return
        case "if use_sliding_window":
            acts = bool(config.get("use_sliding_window", False))
        case "every layer":
            acts = "full_attention" not in (config.get("layer_types") or ())
    if acts and window is not None and window < target_context_tokens:
        raise RopeError(
            f"sliding_window: attention reaches back {window} tokens only, so a context of "
            f"{target_context_tokens} cannot be used; choose a base without it (sliding_window null)"
        )
