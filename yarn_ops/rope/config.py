"""A Hugging Face config.json, as a plain dict, read as a RoPE specification or patched to another one."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from yarn_ops import recipe
from yarn_ops.errors import RopeError, UnprovenRope
from yarn_ops.rope.architectures import FULL, require_full_attention, require_rotation_after_cache
from yarn_ops.rope.fields import (
    ORIGINAL,
    RopeFields,
    by_layer_type,
    number,
    optional_number,
    read_fields,
)
from yarn_ops.rope.methods import (
    BETA_FAST,
    BETA_SLOW,
    LENGTH_DEPENDENT,
    RopeSpec,
    attention_factor,
    ntk_theta,
    yarn_scale,
)

METHOD_OF_TYPE: dict[str, recipe.RopeMethod] = {
    "default": "none",
    "linear": "linear",
    "dynamic": "dynamic-ntk",
    "yarn": "yarn",
    "dynamic-yarn": "dynamic-yarn",  # ours: every loader but `proof.load_proven` fails on it, none misreads
    "llama3": "llama3",
    "longrope": "longrope",
}
DUAL_CHUNK = "dual_chunk_attention_config"
RECOMPUTED_FACTOR = ("yarn", "dynamic-yarn", "longrope")
"""where the factor is, or transformers 4.51 to 4.55 take it for, max_position_embeddings / original"""


def rope_spec_of(config: Mapping[str, Any]) -> RopeSpec:
    """The rotary embedding that a config on disk asks for, in every transformers from 4.51.

    Methods that only move θ (ntk, abf) read as `none` with that θ; by-parts as yarn with attention factor 1.
    Raises RopeError where the config is incomplete, contradicts itself or needs what is not known here.
    """
    return _spec(read_fields(config))


def _spec(fields: RopeFields) -> RopeSpec:
    scaling = fields.scaling
    if fields.kind not in METHOD_OF_TYPE:
        raise UnprovenRope(f"rope_type: {fields.kind!r} is unknown; known are {', '.join(METHOD_OF_TYPE)}")
    if fields.others and METHOD_OF_TYPE[fields.kind] in LENGTH_DEPENDENT:
        raise UnprovenRope(f"rope_type: {fields.kind} is not known beside other layer types; use yarn")
    factor = 1.0 if fields.kind == "default" else number(scaling, "factor")
    llama3 = fields.kind == "llama3"
    return RopeSpec(
        method=METHOD_OF_TYPE[fields.kind],
        dim=fields.rotary_dim,
        theta=fields.theta,
        factor=factor,
        original_context_tokens=_original_context_tokens(fields, factor),
        beta_fast=optional_number(scaling, "beta_fast") or BETA_FAST,
        beta_slow=optional_number(scaling, "beta_slow") or BETA_SLOW,
        attention_factor=_attention_factor(fields, factor),
        truncate=bool(scaling.get("truncate", True)),
        low_freq_factor=number(scaling, "low_freq_factor") if llama3 else 1.0,
        high_freq_factor=number(scaling, "high_freq_factor") if llama3 else 4.0,
        short_factors=_list(scaling, "short_factor"),
        long_factors=_list(scaling, "long_factor"),
        others=tuple((kind, _spec(other)) for kind, other in fields.others.items()),
    )


def _list(scaling: Mapping[str, Any], key: str) -> tuple[Any, ...]:
    """Of numbers, which RopeSpec looks at; empty where the key is missing or null."""
    if not isinstance(values := scaling.get(key) or [], list):
        raise RopeError(f"{key}: {values!r} where config.json needs a list of numbers")
    return tuple(values)


def patch_config(
    config: Mapping[str, Any], rope: recipe.Rope, *, factor: float, original_context_tokens: int | None
) -> tuple[dict[str, Any], RopeSpec]:
    """A copy of a config that asks for `rope`, right in transformers from 4.51 to 5, and its specification.

    Where a version cannot rotate so it raises; none loads the config as an unscaled model.
    `original_context_tokens` None: the config's max_position_embeddings, and a config that is already
    scaled is refused; given: scaling that is there is replaced, never stacked.
    Raises RopeError where the architecture, the config or the request does not allow it.
    """
    fields = read_fields(config)
    if fields.others and rope.method in LENGTH_DEPENDENT:
        raise RopeError(f"rope.method: {rope.method} is not known beside other layer types; use yarn")
    original, total = _true_original(config, fields, original_context_tokens, factor)
    spec = RopeSpec(
        method=rope.method,
        dim=fields.rotary_dim,
        theta=rope.theta if rope.method == "abf" and rope.theta is not None else fields.theta,
        factor=total,
        original_context_tokens=original,
        beta_fast=rope.beta_fast,
        beta_slow=rope.beta_slow,
        attention_factor=rope.attention_factor,
        low_freq_factor=rope.low_freq_factor,
        high_freq_factor=rope.high_freq_factor,
        short_factors=rope.short_factors,
        long_factors=rope.long_factors,
        truncate="yarn" not in fields.kind or bool(fields.scaling.get("truncate", True)),
        others=_spec(fields).others,
    )
    _require_whole_target(spec)
    if spec.target_context_tokens < reads_tokens(config, fields):
        raise RopeError(
            f"factor: {spec.target_context_tokens} tokens are less than the {reads_tokens(config, fields)} "
            "that the base reads already; ask for a longer context"
        )
    if DUAL_CHUNK in config:
        raise RopeError(
            f"{DUAL_CHUNK}: inference engines attend in chunks by it and ignore any scaling; "
            "take it out of a copy of the base's config.json"
        )
    require_full_attention(config, spec.target_context_tokens)
    if spec.method == "dynamic-yarn":
        require_rotation_after_cache(config)
    return _written(config, fields, spec), spec


def _original_context_tokens(fields: RopeFields, factor: float) -> int:
    original, context = fields.original_context_tokens, fields.context_tokens
    if fields.kind == "dynamic":
        return context
    if original is None:
        if fields.kind in ("default", "linear"):
            return max(1, round(context / max(factor, 1.0)))
        raise RopeError(
            f"{ORIGINAL}: missing beside rope_type {fields.kind}; loaders would take the extended length "
            "for it and bend the frequencies; write the original context into config.json"
        )
    if context < original:
        raise RopeError(
            f"max_position_embeddings: {context} is below the original {original}; correct config.json"
        )
    if fields.kind in RECOMPUTED_FACTOR and not math.isclose(context / original, factor, rel_tol=1e-6):
        raise RopeError(
            f"max_position_embeddings: {context} is not factor {factor:g} times the original {original}; "
            "loaders disagree on which of the two holds; correct config.json"
        )
    return original


def _attention_factor(fields: RopeFields, factor: float) -> float | None:
    """As written; else DeepSeek's g(s, mscale) / g(s, mscale_all_dim), ignored unless both are set."""
    written = optional_number(fields.scaling, "attention_factor")
    above, below = (optional_number(fields.scaling, key) for key in ("mscale", "mscale_all_dim"))
    if written is not None or fields.kind != "yarn" or not above or not below:
        return written
    return yarn_scale(factor, above) / yarn_scale(factor, below)


def _true_original(
    config: Mapping[str, Any], fields: RopeFields, given: int | None, factor: float
) -> tuple[int, float]:
    """What the base was trained on before any scaling, and the factor from there.

    `given`, which `factor` counts from, is that, or what an already scaled base reads now.
    """
    if fields.kind == "default":
        return given or fields.context_tokens, factor
    if given is None:
        raise RopeError(
            f"rope_scaling: the config is already scaled ({fields.kind}); give base.original_context_tokens, "
            f"what the base was trained on before that, or {fields.context_tokens}, what it reads now"
        )
    own = _spec(fields)
    is_natural = math.isclose(attention_factor(own), yarn_scale(own.factor), rel_tol=1e-6)
    if fields.kind == "yarn" and not is_natural:
        raise RopeError(
            "attention_factor: the base was trained with one of its own, which no other factor continues; "
            "choose another base"
        )
    original = _unscaled_tokens(config, fields)
    if original in (None, given):
        return given, factor
    if given == fields.context_tokens:
        return original, factor * given / original
    raise RopeError(
        f"base.original_context_tokens: {given}, but config.json was scaled from {original}, and reads "
        f"{fields.context_tokens} now; give one of the two, or correct config.json"
    )


def _unscaled_tokens(config: Mapping[str, Any], fields: RopeFields) -> int | None:
    """The context before the config's own scaling; None where only its publisher knows.

    Whether max_position_embeddings was multiplied by a linear factor is in no key but a third one's.
    """
    limit, written = fields.context_tokens, fields.original_context_tokens
    if fields.kind != "linear" or written is not None:
        return limit if fields.kind == "dynamic" else written
    longest, factor = optional_number(config, "max_sequence_length"), number(fields.scaling, "factor")
    if longest is None:
        return None
    return limit if longest == round(limit * factor) else round(limit / factor)


def reads_tokens(config: Mapping[str, Any], fields: RopeFields) -> int:
    """The context that the config says its model reads."""
    return max(fields.context_tokens, int(optional_number(config, "max_sequence_length") or 0))


def _require_whole_target(spec: RopeSpec) -> None:
    exact = spec.factor * spec.original_context_tokens
    if not math.isclose(exact, spec.target_context_tokens, rel_tol=1e-9):
        raise RopeError(
            f"factor: {spec.factor:g} times {spec.original_context_tokens} is {exact:g}, no whole number of "
            "tokens; give target_context_tokens instead"
        )


def _written(config: Mapping[str, Any], fields: RopeFields, spec: RopeSpec) -> dict[str, Any]:
    """θ, rotary share and scaling at the top level for transformers 4, in rope_parameters for 5."""
    architecture = fields.architecture
    scaling = _scaling(spec)
    theta = ntk_theta(spec, spec.factor) if spec.method == "ntk" else spec.theta
    base: dict[str, Any] = {"rope_theta": theta}
    if architecture.rotary_fraction != 1 or fields.rotary_fraction != 1:
        base["partial_rotary_factor"] = float(fields.rotary_fraction)

    patched = copy.deepcopy(dict(config))
    patched.pop("rope_scaling", None)
    patched.pop(ORIGINAL, None)
    patched.pop("max_sequence_length", None)
    local = architecture.local_theta_key
    if local is not None or not fields.others:
        patched.update(base)
    elif "rope_theta" in patched:
        patched["rope_theta"] = theta
    patched[architecture.width_key] = fields.head_dim  # some leave it None, which yarn cannot multiply
    patched["max_position_embeddings"] = spec.target_context_tokens
    if spec.method == "dynamic-ntk":  # grows from this field, so that it must stay the original
        patched["max_position_embeddings"] = spec.original_context_tokens
    if architecture.theta_key != "rope_theta":  # gpt_neox has names of its own
        patched[architecture.theta_key] = theta
        patched[architecture.fraction_key] = float(fields.rotary_fraction)
    if spec.method == "longrope":  # transformers 4 looks for it here
        patched[ORIGINAL] = spec.original_context_tokens
    if scaling["rope_type"] != "default" and (local is not None or not fields.others):
        patched["rope_scaling"] = scaling
    patched["rope_parameters"] = {**copy.deepcopy(scaling), **base}
    if fields.others:
        nested = by_layer_type(config) or {}
        for kind, other in fields.others.items():
            nested.setdefault(kind, {"rope_type": "default", "rope_theta": other.theta})
            if local == "rope_theta" and theta != other.theta:
                raise RopeError(f"rope.method: {spec.method} moves θ, of which this config has one; use yarn")
            if local is not None:
                patched[local] = other.theta
        patched["rope_parameters"] = {**copy.deepcopy(nested), FULL: patched["rope_parameters"]}
    return patched


def _scaling(spec: RopeSpec) -> dict[str, Any]:
    scaled = {"factor": spec.factor, ORIGINAL: spec.original_context_tokens}
    attention = {} if spec.attention_factor is None else {"attention_factor": spec.attention_factor}
    ramp = {"beta_fast": spec.beta_fast, "beta_slow": spec.beta_slow}
    rounded = {} if spec.truncate else {"truncate": False}
    match spec.method:
        case "none" | "ntk" | "abf":
            return {"rope_type": "default"}
        case "linear":
            return {"rope_type": "linear", "factor": spec.factor}
        case "dynamic-ntk":
            return {"rope_type": "dynamic", "factor": spec.factor}
        case "by-parts":
            return {"rope_type": "yarn", **scaled, **ramp, **rounded, "attention_factor": 1.0}
        case "yarn":
            return {"rope_type": "yarn", **scaled, **ramp, **attention, **rounded}
        case "dynamic-yarn":
            return {"rope_type": "dynamic-yarn", **scaled, **ramp, **rounded}
        case "llama3":
            bands = {"low_freq_factor": spec.low_freq_factor, "high_freq_factor": spec.high_freq_factor}
            return {"rope_type": "llama3", **scaled, **bands}
        case "longrope":
            lists = {"short_factor": list(spec.short_factors), "long_factor": list(spec.long_factors)}
            return {"rope_type": "longrope", **scaled, **lists, **attention}
