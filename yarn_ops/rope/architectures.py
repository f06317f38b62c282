"""Which architectures (`model_type`) can be patched, what their configs leave unsaid, which are refused.

The defaults are those of the transformers config classes: a config.json may leave them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from yarn_ops.errors import RopeError, UnprovenRope

Sliding = Literal["never", "every layer", "all by default", "some by default", "from max_window_layers"]
"""which layers attend within a window; but for the first two, a config's `layer_types` says it"""
FULL = "full_attention"
MAX_WINDOW_LAYERS = 28
"""when a config names none"""


@dataclass(frozen=True)
class Architecture:
    """How one model_type rotates its heads."""

    head_dim: int | None = None
    """when the config names none; None: hidden_size // num_attention_heads"""
    rotary_fraction: float = 1.0
    """share of a head that is rotated, when the config names none"""
    width_key: str = "head_dim"
    """of a head's size, or of its rotated part where only that is turned (multi-head latent attention)"""
    theta_key: str = "rope_theta"
    fraction_key: str = "partial_rotary_factor"
    sliding: Sliding = "never"
    switched: bool = False
    """whether windows act only where the config says `use_sliding_window`"""
    sliding_window: int | None = None
    """when the config names none"""
    by_layer_type: bool = False
    """its `rope_parameters` hold one RoPE a layer type; a method is for full attention alone"""
    local_theta_key: str | None = None
    """of the other layers' θ where a config has one RoPE (transformers 4)"""


def _latent(width: int) -> Architecture:
    """Multi-head latent attention: each head has a part of its own that rotates."""
    return Architecture(head_dim=width, width_key="qk_rope_head_dim")


def _sliding(window: int, head_dim: int | None = None) -> Architecture:
    return Architecture(head_dim=head_dim, sliding="some by default", sliding_window=window)


PLAIN = (
    *("llama", "apertus", "arcee", "aria_text", "bitnet", "cohere", "diffllama", "ernie4_5_moe", "flex_olmo"),
    *("granite", "granitemoe", "granitemoeshared", "hunyuan_v1_dense", "hunyuan_v1_moe", "hyperclovax"),
    *("jais2", "lfm2", "lfm2_moe", "nanochat", "olmo", "olmo2", "olmo_hybrid", "olmoe"),
)
"""full attention, every head rotated whole, hidden_size // num_attention_heads wide unless head_dim says it.
transformers 4 raises on any scaling of olmo and olmo2."""
ARCHITECTURES: dict[str, Architecture] = {
    **dict.fromkeys(PLAIN, Architecture()),
    **dict.fromkeys(
        ("ernie4_5", "helium", "hy_v3", "minimax_m2", "minimax_m3_vl_text", "seed_oss", "solar_open"),
        Architecture(head_dim=128),
    ),
    **dict.fromkeys(("axk1", "deepseek_v3", "glm4_moe_lite", "youtu"), _latent(64)),
    **dict.fromkeys(
        ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"), Architecture(head_dim=256, rotary_fraction=0.25)
    ),
    "minicpm3": _latent(32),
    "jetmoe": Architecture(head_dim=128, width_key="kv_channels"),
    "qwen2": Architecture(sliding="from max_window_layers", switched=True, sliding_window=4096),
    "qwen2_moe": Architecture(sliding="some by default", switched=True, sliding_window=4096),
    "qwen3": Architecture(
        head_dim=128, sliding="from max_window_layers", switched=True, sliding_window=4096
    ),
    "qwen3_moe": Architecture(sliding="every layer", switched=True, sliding_window=4096),
    "smollm3": Architecture(sliding="some by default", switched=True),
    "mistral": Architecture(sliding="every layer", sliding_window=4096),
    "mixtral": Architecture(sliding="every layer"),
    "ministral": Architecture(sliding="all by default", sliding_window=4096),
    "minimax": Architecture(sliding="every layer"),
    "starcoder2": Architecture(sliding="every layer"),
    "gemma": Architecture(head_dim=256),
    "gemma2": Architecture(head_dim=256, sliding="some by default", sliding_window=4096),
    "gemma3_text": Architecture(
        head_dim=256, sliding="some by default", sliding_window=4096, by_layer_type=True,
        local_theta_key="rope_local_base_freq",
    ),
    "olmo3": Architecture(
        sliding="some by default", sliding_window=4096, by_layer_type=True, local_theta_key="rope_theta"
    ),
    "mellum": Architecture(head_dim=128, sliding="some by default", sliding_window=1024, by_layer_type=True),
    "laguna": Architecture(
        head_dim=128, rotary_fraction=0.5, sliding="some by default", sliding_window=512, by_layer_type=True
    ),
    "vaultgemma": _sliding(4096, 256),
    "gpt_oss": _sliding(128, 64),  # all its layers rotate alike
    "cwm": _sliding(8192, 128),
    "dots1": _sliding(4096),
    "gpt_neox": Architecture(rotary_fraction=0.25, theta_key="rotary_emb_base", fraction_key="rotary_pct"),
    "phi": Architecture(rotary_fraction=0.5),
    "persimmon": Architecture(rotary_fraction=0.5),
    "stablelm": Architecture(rotary_fraction=0.25),
    "glm": Architecture(head_dim=128, rotary_fraction=0.5),
    "glm4": Architecture(head_dim=128, rotary_fraction=0.5),
    "glm4_moe": Architecture(rotary_fraction=0.5),
}  # fmt: skip
ROTATES_AFTER_CACHE = ("llama", "qwen2", "qwen3", "mistral")
"""classes whose attention is queries, keys, a rotation of both, the cache, and an attention function"""

_OWN_YARN = "its published models are extended by a YaRN of their own, with other attention factors"
_FULL_UNROTATED = "its layers that see the whole text do not rotate, so no RoPE extends them"
_INDEXED = "an indexer that learns by a loss of its own chooses what its layers attend to"
_PROPORTIONAL = "its full attention rotates a share of the whole spectrum, for which no method is known"
_LAYERS_SHARED = "its layers read more than what the layer before them wrote"
_STATE_SPACE = "many of its layers are state-space layers, whose reach no RoPE extends"
_UNROTATED = "its attention does not rotate, so no RoPE extends it"
_FIXED = "its sinusoids are computed without rope_parameters, so no config can scale them"

REFUSED: dict[str, str] = {
    "phi3": "transformers renames yarn to longrope for it and then fails",
    "phimoe": "transformers reads its scaling as longrope alone",
    **dict.fromkeys(("deepseek_v2", "ministral3"), _OWN_YARN),
    **dict.fromkeys((
        "afmoe", "beam", "cohere2", "cohere2_moe", "cohere_compass_text", "exaone4", "exaone_moe", "flint",
        "kolibri1", "llama4_text",
    ), _FULL_UNROTATED),
    **dict.fromkeys(("axk2", "deepseek_v32", "deepseek_v4", "glm_moe_dsa", "hy_v4"), _INDEXED),
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text", "lfm3"), _PROPORTIONAL),
    **dict.fromkeys(("gemma3n_text", "hrm_text"), _LAYERS_SHARED),
    "nemotron": "transformers 4 drops its scaling without a word",  # seen in 4.51.3, 4.55.4 and 4.57.6
    "modernbert-decoder": "transformers 4 has no scaling of it",
    **dict.fromkeys(("granite_swa", "granitemoe_swa"), "each of its layers has a θ of its own"),
    "doge": "parts of it get no gradient",
    "gpt_neox_japanese": "its layers give more than hidden states, so that no part of it can be merged alone",
    "recurrent_gemma": "all its attention lies within a window",
    "falcon": "it uses ALiBi, or a RoPE whose scaling no converter carries over",
    **dict.fromkeys(("bamba", "falcon_h1", "granitemoehybrid", "zamba2"), _STATE_SPACE),
    **dict.fromkeys(("jamba", "nemotron_h"), _UNROTATED),
    **dict.fromkeys(("codegen", "gptj", "roformer"), _FIXED),
    "xlnet": "its positions are relative and do not rotate",
    "bailing_hybrid": "its config names its length model_max_length, which nothing here reads or moves",
    "zaya": "its queries and keys pass convolutions, which nothing here proves",
    "inkling2_text": "its positions are learned biases of a fixed extent and do not rotate",
    "emu3": "its config is of text and images, and transformers loads its text alone under no name",
    "moshi": "it was trained on text summed with streams of audio, which documents do not hold",
    "phi4_multimodal": "transformers reads its scaling as longrope alone",
    **dict.fromkeys(("dots3_note", "dots3_note_text", "qwen4_exp", "qwen4_exp_text"), _INDEXED),
    "blt": "it reads bytes through an encoder and a decoder with cross-attention of their own",
    "dbrx": "its experts are stacked in parameters of their own layout, whose merge nothing here proves",
    "longcat_flash": "each of its layers attends twice, and nothing here proves such layers",
    "mimo_v2_flash": "its windowed layers have heads and keys of other sizes, which nothing here proves",
    **dict.fromkeys(
        ("gemma3", "gemma3n", "gemma4", "gemma4_unified", "llama4", "mllama", "qwen3_5", "qwen3_5_moe"),
        "its config is of text and images; give the text model alone",
    ),
}  # fmt: skip


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The entry for a config's model_type; UnprovenRope with the reason where there is none."""
    model_type = str(config.get("model_type", ""))
    if model_type in REFUSED:
        raise UnprovenRope(
            f"model_type: {model_type} cannot be extended: {REFUSED[model_type]}; choose another base"
        )
    if model_type not in ARCHITECTURES:
        raise UnprovenRope(
            f"model_type: {model_type!r} is not known to extend safely: nothing has proven how it rotates; "
            f"choose a base of {', '.join(sorted(ARCHITECTURES))}"
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
    if _windowed_layers(config)[0] != "none":
        raise RopeError("sliding_window: dynamic-yarn needs the whole context; choose a base without it")


def require_full_attention(config: Mapping[str, Any], target_context_tokens: int) -> None:
    """RopeError where a sliding window on every layer would hide the longer context."""
    layers, window = _windowed_layers(config)
    if layers == "all" and window < target_context_tokens:
        raise RopeError(
            f"sliding_window: attention reaches back {window} tokens only, so a context of "
            f"{target_context_tokens} cannot be used; choose a base without it (sliding_window null)"
        )


def require_window(config: Mapping[str, Any]) -> None:
    """RopeError where transformers makes a mask of a window that the config takes away."""
    architecture = architecture_of(config)
    makes_mask = architecture.sliding in ("all by default", "some by default") and not architecture.switched
    if makes_mask and not isinstance(config.get("sliding_window", architecture.sliding_window), int):
        raise RopeError("sliding_window: null, which this class does not run with; write the base's own")


def _windowed_layers(config: Mapping[str, Any]) -> tuple[Literal["none", "some", "all"], int]:
    """Which layers attend within a window only, and how many tokens that is."""
    architecture = architecture_of(config)
    sliding, window = architecture.sliding, config.get("sliding_window", architecture.sliding_window)
    off = architecture.switched and not config.get("use_sliding_window", False)
    if sliding == "never" or off or not isinstance(window, int):
        return "none", 0
    if sliding == "every layer":
        return "all", window
    if isinstance(kinds := config.get("layer_types"), list) and kinds:
        widened = sum(kind != "sliding_attention" for kind in kinds)
        return ("none" if widened == len(kinds) else "some" if FULL in kinds else "all"), window
    layers, full = config.get("num_hidden_layers"), config.get("max_window_layers", MAX_WINDOW_LAYERS)
    if sliding == "from max_window_layers" and isinstance(layers, int) and isinstance(full, int):
        return ("none" if full >= layers else "some" if full > 0 else "all"), window
    return ("some" if sliding == "some by default" else "all"), window
