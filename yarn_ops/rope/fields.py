"""What a config.json says about RoPE, wherever it says it; RopeError where two places disagree.

transformers 4 keeps RoPE in `rope_theta` and `rope_scaling`, transformers 5 in `rope_parameters`. On load
5 prefers rope_scaling and replaces, never merges; 4 does not know rope_parameters. A config that says
different things in the two places therefore means different models, and is refused.

Where layers differ by type, `rope_parameters` holds one RoPE a layer type. Full attention's is the one that
a method changes, and the one that a config with a single RoPE means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yarn_ops.errors import RopeError, UnprovenRope
from yarn_ops.rope.architectures import FULL, Architecture, architecture_of

ORIGINAL = "original_max_position_embeddings"
BASE_KEYS = ("rope_theta", "partial_rotary_factor", "type")
SCALING_KEYS = frozenset(
    (
        *("rope_type", "factor", ORIGINAL, "attention_factor"),
        *("beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim"),
        *("low_freq_factor", "high_freq_factor", "short_factor", "long_factor"),
    )
)


@dataclass(frozen=True)
class RopeFields:
    """A config's RoPE, read from all the places where the versions of transformers keep it."""

    architecture: Architecture
    kind: str
    """rope_type, "default" when unscaled"""
    scaling: Mapping[str, Any]
    """all that belongs to the kind: factor, betas, … ; never θ"""
    theta: float
    head_dim: int
    rotary_fraction: float
    context_tokens: int
    """max_position_embeddings"""
    original_context_tokens: int | None
    """original_max_position_embeddings, when written"""
    others: Mapping[str, RopeFields]
    """of the layer types that a method leaves alone; empty where all layers rotate alike"""

    @property
    def rotary_dim(self) -> int:
        return int(self.head_dim * self.rotary_fraction)


def read_fields(config: Mapping[str, Any]) -> RopeFields:
    """RopeError where the architecture is refused, or a field is missing, unknown or contradicted."""
    architecture = architecture_of(config)
    if not architecture.by_layer_type:
        return _fields(config, architecture, {})
    nested = by_layer_type(config) or {}
    if not nested and architecture.local_theta_key is None:
        raise UnprovenRope("rope_parameters: not by layer type, as this architecture needs; write both RoPEs")
    kinds = [kind for kind in nested if kind != FULL] if nested else ["sliding_attention"]
    if nested and not isinstance(nested.get(FULL), Mapping):
        raise UnprovenRope("rope_parameters: layers of full attention do not rotate, so no RoPE extends them")
    others = {
        kind: _fields(_view(config, architecture, nested, kind), architecture, {})
        for kind in kinds
        if nested.get(kind, ...) is not None
    }
    return _fields(_view(config, architecture, nested, FULL), architecture, others)


def by_layer_type(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """`rope_parameters` where they hold one RoPE a layer type, else None."""
    values = config.get("rope_parameters")
    nested = isinstance(values, Mapping) and any(isinstance(value, Mapping) for value in values.values())
    return dict(values) if nested and isinstance(values, Mapping) else None


def _view(
    config: Mapping[str, Any], architecture: Architecture, nested: Mapping[str, Any], kind: str
) -> dict[str, Any]:
    """The config as one layer type reads it, with a single RoPE."""
    own = nested.get(kind)
    view = {**config, "rope_parameters": own}
    if isinstance(own, Mapping):
        view = {key: value for key, value in view.items() if key != "partial_rotary_factor" or key not in own}
    if kind != FULL:
        view["rope_scaling"] = None
        local = architecture.local_theta_key
        view["rope_theta"] = config.get(local) if local else None
    return view


def _fields(
    config: Mapping[str, Any], architecture: Architecture, others: Mapping[str, RopeFields]
) -> RopeFields:
    scaling = _scaling(config)
    return RopeFields(
        architecture=architecture,
        kind=rope_type(config),
        scaling=scaling,
        theta=_theta(config, architecture),
        head_dim=_head_dim(config, architecture),
        rotary_fraction=_rotary_fraction(config, architecture),
        context_tokens=positive(config, "max_position_embeddings"),
        original_context_tokens=_original(config, scaling),
        others=others,
    )


def number(values: Mapping[str, Any], key: str) -> float:
    """A finite number; RopeError names the key where it is missing or something else."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        found = "missing" if value is None else repr(value)
        raise RopeError(f"{key}: {found} where config.json needs a number")
    return value


def positive(values: Mapping[str, Any], key: str) -> int:
    """A whole number above 0, as `number`."""
    if (value := int(number(values, key))) <= 0:
        raise RopeError(f"{key}: {value} where config.json needs a number above 0")
    return value


def optional_number(values: Mapping[str, Any], key: str) -> float | None:
    """As `number`; None where the key is missing or null."""
    return None if values.get(key) is None else number(values, key)


def _scaling(config: Mapping[str, Any]) -> dict[str, Any]:
    places = [name for name in ("rope_scaling", "rope_parameters") if config.get(name) is not None]
    found = [_scaling_at(name, config[name]) for name in places]
    if len(found) == 2 and found[0] != found[1]:
        differing = sorted(key for key in SCALING_KEYS if found[0].get(key) != found[1].get(key))
        raise RopeError(
            f"rope_scaling and rope_parameters differ in {', '.join(differing)}; "
            "transformers 4 and 5 would build different models; correct config.json"
        )
    return found[0] if found else {}


def _scaling_at(name: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise RopeError(f"{name}: expected an object, found {values!r}")
    if any(isinstance(value, Mapping) for value in values.values()):
        raise UnprovenRope(f"{name}: one RoPE a layer type, which this architecture has not; correct it")
    kinds = {str(values[key]) for key in ("rope_type", "type") if values.get(key) is not None}
    if len(kinds) > 1:
        raise RopeError(
            f"{name}: type and rope_type are {' and '.join(sorted(kinds))}; loaders disagree on which of the "
            "two holds; correct config.json"
        )
    scaling = {key: value for key, value in values.items() if key not in BASE_KEYS and value is not None}
    scaling["rope_type"] = rope_type({name: values})
    if unknown := sorted(scaling.keys() - SCALING_KEYS):
        raise UnprovenRope(f"{name}: {', '.join(unknown)}: not understood, and not read alike by all loaders")
    return scaling


def _theta(config: Mapping[str, Any], architecture: Architecture) -> float:
    stated = _stated(config, {"rope_theta", architecture.theta_key}, "rope_theta")
    read = {architecture.theta_key, "rope_scaling.rope_theta"}
    if not config.get("rope_scaling"):  # beside it, transformers 5 never looks into rope_parameters
        read.add("rope_parameters.rope_theta")
    if not read & stated.keys():
        hidden = f" ({', '.join(stated)} is not read)" if stated else ""
        raise RopeError(
            f"{architecture.theta_key}: missing{hidden}, and loaders would take their own default; "
            "write the base's into config.json (10000.0 for Llama 1 and 2)"
        )
    return _agreed(stated)


def _rotary_fraction(config: Mapping[str, Any], architecture: Architecture) -> float:
    keys = {"partial_rotary_factor", architecture.fraction_key}
    stated = _stated(config, keys, "partial_rotary_factor")
    return _agreed(stated) if stated else architecture.rotary_fraction


def _head_dim(config: Mapping[str, Any], architecture: Architecture) -> int:
    if config.get(architecture.width_key) is not None:
        return positive(config, architecture.width_key)
    if architecture.width_key not in config and architecture.head_dim is not None:
        return architecture.head_dim
    return positive(config, "hidden_size") // positive(config, "num_attention_heads")


def _original(config: Mapping[str, Any], scaling: Mapping[str, Any]) -> int | None:
    stated = {ORIGINAL: config.get(ORIGINAL), f"rope_scaling.{ORIGINAL}": scaling.get(ORIGINAL)}
    stated = {name: value for name, value in stated.items() if value is not None}
    return positive({ORIGINAL: _agreed(stated)}, ORIGINAL) if stated else None


def _stated(config: Mapping[str, Any], keys: set[str], nested_key: str) -> dict[str, Any]:
    """What a config states at its top level under `keys`, and in the two RoPE objects under `nested_key`."""
    stated = {key: config.get(key) for key in keys}
    for name in ("rope_scaling", "rope_parameters"):
        stated[f"{name}.{nested_key}"] = (config.get(name) or {}).get(nested_key)
    return {name: value for name, value in stated.items() if value is not None}


def _agreed(stated: Mapping[str, Any]) -> float:
    """The one value that all places state."""
    values = {name: number(stated, name) for name in sorted(stated)}
    if len(set(values.values())) > 1:
        places = ", ".join(f"{name} {value:g}" for name, value in values.items())
        raise RopeError(f"{places}: loaders would build different models; correct config.json")
    return next(iter(values.values()))


def rope_type(config: Mapping[str, Any]) -> str:
    """The kind of RoPE scaling a config asks for, "default" for none; rope_scaling goes first, as on load."""
    nested = by_layer_type(config)
    flat = nested.get(FULL) if nested else config.get("rope_parameters")
    scaling = config.get("rope_scaling") or flat or {}
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, Mapping) else None
    return str(kind or "default")


def rope_thetas(config: Mapping[str, Any]) -> dict[str, float]:
    """Every base frequency a config states, by the key that states it."""
    stated = {key: config.get(key) for key in ("rope_theta", "rotary_emb_base")}
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(values := config.get(name), Mapping):
            stated[f"{name}.rope_theta"] = values.get("rope_theta")
    for kind, values in (by_layer_type(config) or {}).items():
        if isinstance(values, Mapping):
            stated[f"rope_parameters.{kind}.rope_theta"] = values.get("rope_theta")
    return {key: float(value) for key, value in stated.items() if isinstance(value, int | float)}
