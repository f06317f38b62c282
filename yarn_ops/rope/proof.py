"""Proof that a loaded model rotates its heads by the reference frequencies.

Setting a config says nothing about a model that is already built, and a cast of the model rounds its
frequencies: only the live buffers count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from yarn_ops.errors import ProofError
from yarn_ops.rope import dynamic
from yarn_ops.rope.architectures import FULL
from yarn_ops.rope.methods import (
    LENGTH_DEPENDENT,
    Array,
    RopeSpec,
    attention_factor,
    float32_rounding,
    inverse_frequencies,
    yarn_at,
)

BUFFER = "inv_freq"
RTOL = 1e-6
"""relative difference that a frequency or an attention factor may have"""
TYPE_OF_METHOD = {"dynamic-ntk": "dynamic", "dynamic-yarn": dynamic.DYNAMIC_YARN, "longrope": "longrope"}


def prove(model: torch.nn.Module, spec: RopeSpec) -> float:
    """Largest relative difference between the live rotary buffers of a model and the float64 reference.

    Every rotary module must hold float32 frequencies within RTOL of the reference, or within what
    computing them in float32 costs (`methods.float32_rounding`), and the attention factor within RTOL.
    Works through any wrapping (PEFT, compile). Raises ProofError naming module, dimension, both values.
    """
    found = list(rotary_modules(model))
    if not found:
        raise ProofError(f"{type(model).__name__}: no rotary embedding found; the model cannot be proven")
    return max(_prove_module(name or type(module).__name__, module, spec) for name, module in found)


def retune(model: torch.nn.Module, frequencies: Array, scaling: float) -> None:
    """Make a loaded model with a static RoPE turn its heads by other frequencies and attention factor.

    Where layer types rotate differently: those of full attention.
    """
    for _, module in rotary_modules(model):
        prefix = "" if hasattr(module, BUFFER) else f"{FULL}_"
        live = cast(torch.Tensor, getattr(module, prefix + BUFFER))
        live.copy_(torch.from_numpy(frequencies))
        setattr(module, prefix + "attention_scaling", scaling)


def rotary_modules(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Every submodule that keeps inverse frequencies, with its dotted name."""
    for name, module in model.named_modules():
        if any(buffer.endswith(BUFFER) for buffer, _ in module.named_buffers(recurse=False)):
            yield name, module


def _prove_module(name: str, module: torch.nn.Module, spec: RopeSpec) -> float:
    kept = {buffer for buffer, _ in module.named_buffers(recurse=False) if buffer.endswith(BUFFER)}
    specs = {f"{kind}_": other for kind, other in ((FULL, spec), *spec.others)} if spec.others else {"": spec}
    live = {buffer.removesuffix(BUFFER) for buffer in kept if not buffer.endswith("original_" + BUFFER)}
    if live - specs.keys() or not live:
        raise ProofError(f"{name}: keeps {', '.join(sorted(kept))}, but the config says {len(specs)} RoPE")
    return max(_prove_buffer(name, module, prefix, specs[prefix]) for prefix in live)


def _prove_buffer(name: str, module: torch.nn.Module, prefix: str, spec: RopeSpec) -> float:
    """Of one layer type, or of all (`prefix` empty)."""
    name = f"{name} ({prefix.rstrip('_')})" if prefix else name
    kind = getattr(module, "rope_type", "default")
    _check_kind(name, kind[prefix.rstrip("_")] if isinstance(kind, dict) else kind, spec)
    buffer = cast(torch.Tensor, getattr(module, prefix + BUFFER))
    live = _float64(name, buffer, spec.dim // 2)
    if isinstance(module, dynamic.DynamicRotary):
        return _prove_every_length(name, module, spec)
    error = _compare(name, live, _live_reference(module, live, spec), spec)
    if spec.method in LENGTH_DEPENDENT:
        error = max(error, _prove_growth(name, module, spec))
    scaling = getattr(module, prefix + "attention_scaling", None)
    if scaling is None:
        raise ProofError(f"{name}: keeps no attention_scaling; this architecture cannot be proven")
    return max(error, _compare_attention(name, float(scaling), spec))


def _check_kind(name: str, kind: str, spec: RopeSpec) -> None:
    wanted = TYPE_OF_METHOD.get(spec.method)
    if kind != wanted and (wanted or kind in TYPE_OF_METHOD.values()):
        raise ProofError(
            f"{name}: rope_type is {kind} but {spec.method} {f'needs {wanted}' if wanted else 'is static'}; "
            "the model was built from another config"
        )


def _live_reference(module: torch.nn.Module, live: Array, spec: RopeSpec) -> Array:
    """What the buffer should hold now: length-dependent modules overwrite it as they read."""
    if spec.method == "dynamic-ntk":
        return inverse_frequencies(spec, int(cast(int, module.max_seq_len_cached)))
    short = inverse_frequencies(spec)
    if spec.method == "longrope":
        long = inverse_frequencies(spec, spec.original_context_tokens + 1)
        return long if np.abs(live - long).max() < np.abs(live - short).max() else short
    return short


def _prove_growth(name: str, module: torch.nn.Module, spec: RopeSpec) -> float:
    """The frequencies the module will switch to beyond the original context."""
    length_tokens = 2 * spec.target_context_tokens
    grown, _ = ROPE_INIT_FUNCTIONS[str(module.rope_type)](
        module.config, torch.device("cpu"), seq_len=length_tokens
    )
    reference = inverse_frequencies(spec, length_tokens)
    where = f"{name} at {length_tokens} tokens"
    return _compare(where, _float64(where, grown, spec.dim // 2), reference, spec)


def _prove_every_length(name: str, module: dynamic.DynamicRotary, spec: RopeSpec) -> float:
    """What the module turns by within the original context, just beyond, at the target and far beyond."""
    original, target = spec.original_context_tokens, spec.target_context_tokens
    errors: list[float] = []
    for length_tokens in (1, original, original + 1, target, 2 * target):
        where, static = f"{name} at {length_tokens} tokens", yarn_at(spec, length_tokens)
        length = torch.tensor(length_tokens, device=module.inv_freq.device)
        live = _float64(where, module.frequencies(length), spec.dim // 2)
        errors.append(_compare(where, live, inverse_frequencies(static), static))
        factor = math.sqrt(float(module.logit_scale(length)))
        errors.append(_compare_attention(where, factor, static))
    return max(errors)


def _float64(name: str, buffer: torch.Tensor, pairs: int) -> Array:
    if buffer.is_meta:
        raise ProofError(f"{name}: inv_freq has no data yet (meta device); load the weights first")
    if buffer.dtype != torch.float32:
        raise ProofError(
            f"{name}: inv_freq is {buffer.dtype}, not float32: a cast of the whole model rounded it; "
            "load in that dtype instead of casting"
        )
    if buffer.shape != (pairs,):
        raise ProofError(
            f"{name}: inv_freq has shape {list(buffer.shape)}, expected [{pairs}]; check the rotary dimension"
        )
    values: Array = buffer.detach().cpu().double().numpy()
    return values


def _compare(name: str, live: Array, reference: Array, spec: RopeSpec) -> float:
    with np.errstate(invalid="ignore"):
        difference = np.abs(live - reference) / reference
    allowed = np.maximum(RTOL, float32_rounding(spec))
    wrong = np.flatnonzero(~(difference <= allowed))  # a NaN is wrong
    if wrong.size:
        index = int(wrong[0])
        raise ProofError(
            f"{name}: inv_freq[{index}] is {live[index]:.9g}, {spec.method} x{spec.factor:g} needs "
            f"{reference[index]:.9g} ({wrong.size} of {live.size} pairs differ); the model was not built "
            "from the patched config"
        )
    return float(difference.max())


def _compare_attention(name: str, live: float, spec: RopeSpec) -> float:
    reference = attention_factor(spec)
    difference = abs(live - reference) / reference
    if not difference <= RTOL:
        raise ProofError(
            f"{name}: attention factor is {live:.9g}, {spec.method} x{spec.factor:g} needs {reference:.9g}; "
            "the model was not built from the patched config"
        )
    return difference
