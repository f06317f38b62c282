"""Ours equals transformers' own functions, for every method it has, over random specifications."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import logging

from yarn_ops.rope.methods import RopeSpec, attention_factor, float32_rounding, inverse_frequencies

RTOL = 1e-6
logging.set_verbosity_error()

dims = st.sampled_from([16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256])
thetas = st.floats(1e3, 1e9)
factors = st.floats(1, 128)
contexts = st.sampled_from([128, 512, 2048, 4096, 8192, 32768, 131072])


def theirs(spec: RopeSpec, rope_type: str, length_tokens: int | None = None, **scaling: object):
    dynamic = rope_type == "dynamic"
    config = LlamaConfig(
        hidden_size=spec.dim * 2,
        num_attention_heads=2,
        head_dim=spec.dim,
        max_position_embeddings=spec.original_context_tokens * (1 if dynamic else 2),
        rope_parameters={"rope_type": rope_type, "rope_theta": spec.theta, "factor": spec.factor, **scaling},
    )
    frequencies, attention = ROPE_INIT_FUNCTIONS[rope_type](config, None, seq_len=length_tokens)
    return frequencies.double().numpy(), attention


def compare(spec: RopeSpec, rope_type: str, length_tokens: int | None = None, **scaling: object) -> None:
    frequencies, attention = theirs(spec, rope_type, length_tokens, **scaling)
    reference = inverse_frequencies(spec, length_tokens)
    difference = np.abs(frequencies - reference) / reference
    # llama3's bands and ramps with unrounded ends magnify float32 rounding; the others stay below a millionth
    magnified = rope_type == "llama3" or not spec.truncate
    allowed = np.maximum(RTOL, float32_rounding(spec)) if magnified else RTOL
    assert (difference <= allowed).all(), difference.max()
    assert (difference <= float32_rounding(spec)).all(), (difference / float32_rounding(spec)).max()
    assert attention == pytest.approx(attention_factor(spec), rel=1e-12)


@settings(max_examples=200, deadline=None)
@given(dims, thetas, factors, contexts, st.floats(8, 64), st.floats(0.5, 4), st.booleans())
def test_yarn(dim, theta, factor, context, beta_fast, beta_slow, truncate):
    spec = RopeSpec(
        method="yarn",
        dim=dim,
        theta=theta,
        factor=factor,
        original_context_tokens=context,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        truncate=truncate,
    )
    betas = {"beta_fast": beta_fast, "beta_slow": beta_slow, "truncate": truncate}
    compare(spec, "yarn", original_max_position_embeddings=context, **betas)


@settings(max_examples=60, deadline=None)
@given(dims, thetas, factors, contexts)
def test_linear(dim, theta, factor, context):
    spec = RopeSpec(method="linear", dim=dim, theta=theta, factor=factor, original_context_tokens=context)
    compare(spec, "linear")


@settings(max_examples=60, deadline=None)
@given(dims, thetas, factors, contexts, st.floats(0.5, 64))
def test_dynamic_ntk(dim, theta, factor, context, reach):
    spec = RopeSpec(
        method="dynamic-ntk", dim=dim, theta=theta, factor=factor, original_context_tokens=context
    )
    compare(spec, "dynamic", max(1, round(reach * context)))


@settings(max_examples=100, deadline=None)
@given(dims, thetas, factors, contexts, st.floats(0.5, 2), st.floats(3, 8))
def test_llama3(dim, theta, factor, context, low, high):
    bands = {"low_freq_factor": low, "high_freq_factor": high}
    spec = RopeSpec(
        method="llama3", dim=dim, theta=theta, factor=factor, original_context_tokens=context, **bands
    )
    compare(spec, "llama3", original_max_position_embeddings=context, **bands)


@settings(max_examples=60, deadline=None)
@given(dims, thetas, factors, contexts, st.randoms(use_true_random=False), st.booleans())
def test_longrope(dim, theta, factor, context, random, long):
    short_factors = tuple(random.uniform(1, 4) for _ in range(dim // 2))
    long_factors = tuple(random.uniform(1, 64) for _ in range(dim // 2))
    spec = RopeSpec(
        method="longrope",
        dim=dim,
        theta=theta,
        factor=factor,
        original_context_tokens=context,
        short_factors=short_factors,
        long_factors=long_factors,
    )
    lists = {"short_factor": list(short_factors), "long_factor": list(long_factors)}
    length_tokens = context + long
    compare(spec, "longrope", length_tokens, original_max_position_embeddings=context, **lists)
