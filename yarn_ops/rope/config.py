"""A Hugging Face config.json, as a plain dict, to a RoPE specification; and patched for a longer context.

transformers 4 keeps RoPE in `rope_theta` and `rope_scaling`, transformers 5 in `rope_parameters`. On load
5 prefers rope_scaling and replaces, never merges; 4 does not know rope_parameters. A config that says
different things in the two places therefore means different models, and is refused.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from yarn_ops import recipe
from yarn_ops.checkpoints import rope_type
from yarn_ops.errors import RopeError
from yarn_ops.rope.architectures import Architecture, architecture_of, require_full_attention
from yarn_ops.rope.methods import BETA_FAST, BETA_SLOW, RopeSpec, yarn_scale

METHOD_OF_TYPE: dict[str, recipe.RopeMethod] = {
    "default": "none",
    "linear": "linear",
    "dynamic": "dynamic-ntk",
    "yarn": "yarn",
    "llama3": "llama3",
    "longrope": "longrope",
}
NEEDS_ORIGINAL = ("yarn", "llama3", "longrope")
RECOMPUTED_FACTOR = ("yarn", "longrope")
"""where transformers 4.51 to 4.55 take max_position_embeddings / original for the factor"""
BASE_KEYS = frozenset({"rope_theta", "partial_rotary_factor"})
SCALING_KEYS = frozenset(
    ("rope_type", "factor", "original_max_position_embeddings", "attention_factor")
    + ("beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim")
    + ("low_freq_factor", "high_freq_factor", "short_factor", "long_factor")
)


def rope_spec_of(config: Mapping[str, Any]) -> RopeSpec:
    """The rotary embedding that a config on disk asks for, in every transformers from 4.51.

    Methods that only move θ (ntk, abf) read as `none` with that θ; by-parts as yarn with factor 1.
    Raises RopeError where the config is incomplete, contradicts itself or needs what is not known here.
    """
    architecture = architecture_of(config)
    scaling = _scaling(config)
    kind = scaling.get("rope_type", "default")
    if kind not in METHOD_OF_TYPE:
        raise RopeError(f"rope_type: {kind!r} is unknown; known are {', '.join(METHOD_OF_TYPE)}")
    context_tokens = _context_tokens(config)
    factor = 1.0 if kind == "default" else _number(scaling, "factor")
    attention_factor = _optional_number(scaling, "attention_factor")
    if attention_factor is None and kind == "yarn":
        attention_factor = _mscale_ratio(scaling, factor)
    return RopeSpec(
        method=METHOD_OF_TYPE[kind],
        dim=_rotary_dim(config, architecture),
        theta=_theta(config, architecture),
        factor=factor,
        original_context_tokens=_original_context_tokens(config, scaling, kind, factor, context_tokens),
        beta_fast=_optional_number(scaling, "beta_fast") or BETA_FAST,
        beta_slow=_optional_number(scaling, "beta_slow") or BETA_SLOW,
        attention_factor=attention_factor,
        truncate=bool(scaling.get("truncate", True)),
        low_freq_factor=_number(scaling, "low_freq_factor") if kind == "llama3" else 1.0,
        high_freq_factor=_number(scaling, "high_freq_factor") if kind == "llama3" else 4.0,
        short_factors=tuple(scaling.get("short_factor") or ()),
        long_factors=tuple(scaling.get("long_factor") or ()),
    )


def patch_config(
    config: Mapping[str, Any], rope: recipe.Rope, *, factor: float, original_context_tokens: int | None
) -> tuple[dict[str, Any], RopeSpec]:
    """A copy of a config that asks for `rope`, right in transformers from 4.51 to 5, and its specification.

    `original_context_tokens` None: the config's max_position_embeddings, and a config that is already
    scaled is refused; given: scaling that is there is replaced, never stacked.
    Raises RopeError where the architecture, the config or the request does not allow it.
    """
    architecture = architecture_of(config)
    kind = _scaling(config).get("rope_type", "default")
    if original_context_tokens is None:
        if kind != "default":
            raise RopeError(
                f"rope_scaling: the config is already scaled ({kind}); "
                "give base.original_context_tokens, what the base was trained on before that"
            )
        original_context_tokens = _context_tokens(config)
    spec = _wanted(
        rope, factor, original_context_tokens, _rotary_dim(config, architecture), _theta(config, architecture)
    )
    _require_whole_target(spec)
    require_full_attention(config, spec.target_context_tokens)
    return _written(config, architecture, spec), spec


def _wanted(
    rope: recipe.Rope, factor: float, original_context_tokens: int, dim: int, theta: float
) -> RopeSpec:
    return RopeSpec(
        method=rope.method,
        dim=dim,
        theta=rope.theta if rope.method == "abf" and rope.theta is not None else theta,
        factor=factor,
        original_context_tokens=original_context_tokens,
        beta_fast=rope.beta_fast,
        beta_slow=rope.beta_slow,
        attention_factor=rope.attention_factor,
        low_freq_factor=rope.low_freq_factor,
        high_freq_factor=rope.high_freq_factor,
        short_factors=rope.short_factors,
        long_factors=rope.long_factors,
    )


def _require_whole_target(spec: RopeSpec) -> None:
    exact = spec.factor * spec.original_context_tokens
    if not math.isclose(exact, spec.target_context_tokens, rel_tol=1e-9):
        raise RopeError(
            f"factor: {spec.factor:g} times {spec.original_context_tokens} is {exact:g}, no whole number of "
            "tokens; give target_context_tokens instead"
        )


def _written(config: Mapping[str, Any], architecture: Architecture, spec: RopeSpec) -> dict[str, Any]:
    theta = float(spec.theta)
    if spec.method == "ntk":
        theta = float(theta * spec.factor ** (spec.dim / (spec.dim - 2)))
    scaling = _scaling_of(spec)
    head_dim = _head_dim(config, architecture)
    fraction = _rotary_fraction(config, architecture)
    partial = {} if fraction == 1.0 else {"partial_rotary_factor": fraction}

    patched = copy.deepcopy(dict(config))
    for key in ("rope_scaling", "original_max_position_embeddings"):
        patched.pop(key, None)
    patched["head_dim"] = head_dim
    # transformers derives dynamic NTK's growth from this field, so that there it must stay the original
    dynamic = spec.method == "dynamic-ntk"
    patched["max_position_embeddings"] = (
        spec.original_context_tokens if dynamic else spec.target_context_tokens
    )
    patched["rope_theta"] = theta
    patched.update(partial)
    if architecture.theta_key != "rope_theta":
        patched[architecture.theta_key] = theta
    if architecture.fraction_key != "partial_rotary_factor":
        patched[architecture.fraction_key] = fraction
    if scaling["rope_type"] != "default":
        patched["rope_scaling"] = scaling
    if spec.method == "longrope":  # where transformers 4 looks for it
        patched["original_max_position_embeddings"] = spec.original_context_tokens
    patched["rope_parameters"] = {**copy.deepcopy(scaling), "rope_theta": theta, **partial}
    return patched


def _scaling_of(spec: RopeSpec) -> dict[str, Any]:
    factor, original = float(spec.factor), spec.original_context_tokens
    match spec.method:
        case "none" | "ntk" | "abf":
            return {"rope_type": "default"}
        case "linear":
            return {"rope_type": "linear", "factor": factor}
        case "dynamic-ntk":
            return {"rope_type": "dynamic", "factor": factor}
        case "yarn" | "by-parts":
            own = 1.0 if spec.method == "by-parts" else spec.attention_factor
            return {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original,
                "beta_fast": float(spec.beta_fast),
                "beta_slow": float(spec.beta_slow),
                **({} if own is None else {"attention_factor": float(own)}),
            }
        case "llama3":
            return {
                "rope_type": "llama3",
                "factor": factor,
                "original_max_position_embeddings": original,
                "low_freq_factor": float(spec.low_freq_factor),
                "high_freq_factor": float(spec.high_freq_factor),
            }
        case "longrope":
            own = spec.attention_factor
            return {
                "rope_type": "longrope",
                "factor": factor,
                "original_max_position_embeddings": original,
                "short_factor": [float(value) for value in spec.short_factors],
                "long_factor": [float(value) for value in spec.long_factors],
                **({} if own is None else {"attention_factor": float(own)}),
            }


def _scaling(config: Mapping[str, Any]) -> dict[str, Any]:
    """The scaling keys of rope_scaling and rope_parameters, which must agree where both are there."""
    found = {
        name: _flat(name, config[name])
        for name in ("rope_scaling", "rope_parameters")
        if config.get(name) is not None
    }
    if len(found) == 2 and found["rope_scaling"] != found["rope_parameters"]:
        differing = {
            key for key, value in found["rope_scaling"].items() if found["rope_parameters"].get(key) != value
        }
        differing |= found["rope_parameters"].keys() - found["rope_scaling"].keys()
        raise RopeError(
            f"rope_scaling and rope_parameters differ in {', '.join(sorted(differing))}; "
            "transformers 4 and 5 would build different models; correct config.json"
        )
    return next(iter(found.values()), {})


def _flat(name: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise RopeError(f"{name}: expected an object, found {values!r}")
    if any(isinstance(value, Mapping) for value in values.values()):
        raise RopeError(f"{name}: one RoPE a layer type is not supported; choose a base with a single RoPE")
    flat = {
        key: value
        for key, value in values.items()
        if key not in BASE_KEYS and key != "type" and value is not None
    }
    flat["rope_type"] = rope_type({name: values})
    if unknown := flat.keys() - SCALING_KEYS:
        raise RopeError(
            f"{name}: {', '.join(sorted(unknown))}: not understood, and not read alike by all loaders"
        )
    return flat


def _theta(config: Mapping[str, Any], architecture: Architecture) -> float:
    """θ, wherever it is written. Beside rope_scaling, transformers 5 never looks into rope_parameters."""
    scaling, parameters = config.get("rope_scaling") or {}, config.get("rope_parameters") or {}
    top = {key: config[key] for key in {"rope_theta", architecture.theta_key} if config.get(key) is not None}
    stated = {
        **top,
        **_stated(scaling, "rope_scaling", "rope_theta"),
        **_stated(parameters, "rope_parameters", "rope_theta"),
    }
    read = [
        architecture.theta_key,
        "rope_scaling.rope_theta",
        *(() if scaling else ("rope_parameters.rope_theta",)),
    ]
    if not any(name in stated for name in read):
        hidden = f" ({', '.join(stated)} is not read)" if stated else ""
        raise RopeError(
            f"{architecture.theta_key}: missing{hidden}, and loaders would take their own default; "
            f"write the base's into config.json (10000.0 for Llama 1 and 2)"
        )
    return _agreed(stated)


def _rotary_fraction(config: Mapping[str, Any], architecture: Architecture) -> float:
    keys = {"partial_rotary_factor", architecture.fraction_key}
    stated = {key: config[key] for key in keys if config.get(key) is not None}
    for name in ("rope_scaling", "rope_parameters"):
        stated.update(_stated(config.get(name) or {}, name, "partial_rotary_factor"))
    return _agreed(stated) if stated else architecture.rotary_fraction


def _head_dim(config: Mapping[str, Any], architecture: Architecture) -> int:
    if "head_dim" not in config and architecture.head_dim is not None:
        return architecture.head_dim
    if config.get("head_dim") is not None:
        return int(_number(config, "head_dim"))
    return int(_number(config, "hidden_size")) // int(_number(config, "num_attention_heads"))


def _rotary_dim(config: Mapping[str, Any], architecture: Architecture) -> int:
    return int(_head_dim(config, architecture) * _rotary_fraction(config, architecture))


def _context_tokens(config: Mapping[str, Any]) -> int:
    return int(_number(config, "max_position_embeddings"))


def _original_context_tokens(
    config: Mapping[str, Any], scaling: Mapping[str, Any], kind: str, factor: float, context_tokens: int
) -> int:
    if kind == "dynamic":
        return context_tokens
    stated = _stated(scaling, "rope_scaling", "original_max_position_embeddings")
    if config.get("original_max_position_embeddings") is not None:
        stated["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    if stated:
        original = _agreed(stated)
        if original > context_tokens:
            raise RopeError(
                f"max_position_embeddings: the target {context_tokens} is below the original {original:g}; "
                "correct config.json"
            )
        if kind in RECOMPUTED_FACTOR and not math.isclose(context_tokens / original, factor, rel_tol=1e-6):
            raise RopeError(
                f"max_position_embeddings: {context_tokens} is not factor {factor:g} times the original "
                f"{original:g}; loaders disagree on which of the two holds; correct config.json"
            )
        return int(original)
    if kind in NEEDS_ORIGINAL:
        raise RopeError(
            f"original_max_position_embeddings: missing beside rope_type {kind}; loaders would take the "
            "extended length for it and bend the frequencies; write the original context into config.json"
        )
    return max(1, round(context_tokens / factor)) if kind == "linear" and factor >= 1 else context_tokens


def _mscale_ratio(scaling: Mapping[str, Any], factor: float) -> float | None:
    """DeepSeek's pair: attention factor g(s, mscale) / g(s, mscale_all_dim); ignored unless both are set."""
    above, below = _optional_number(scaling, "mscale"), _optional_number(scaling, "mscale_all_dim")
    if not above or not below:
        return None
    return yarn_scale(factor, above) / yarn_scale(factor, below)


def _stated(values: Mapping[str, Any], name: str, key: str) -> dict[str, Any]:
    return {f"{name}.{key}": values[key]} if values.get(key) is not None else {}


def _agreed(stated: Mapping[str, Any]) -> float:
    """The one value that all places state."""
    numbers = {name: _number(stated, name) for name in stated}
    if len(set(numbers.values())) > 1:
        places = ", ".join(f"{name} {value:g}" for name, value in sorted(numbers.items()))
        raise RopeError(
            f"{places}: they must be equal, or loaders build different models; correct config.json"
        )
    return next(iter(numbers.values()))


def _optional_number(values: Mapping[str, Any], key: str) -> float | None:
    return None if values.get(key) is None else _number(values, key)


def _number(values: Mapping[str, Any], key: str) -> float:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RopeError(
            f"{key}: {'missing' if value is None else repr(value)} where config.json needs a number"
        )
    return value
