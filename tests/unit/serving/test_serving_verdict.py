"""What is said of a server's answers: of each state's own, rounded, cut, miscounted."""

from __future__ import annotations

import random

import numpy as np
import pytest
from unit.export.conftest import extend

from yarn_ops.errors import ServingError
from yarn_ops.serving.client import NextToken
from yarn_ops.serving.fingerprint import FAULTS, FINGERPRINT, MEASURED, parse_fingerprint, read_fingerprint
from yarn_ops.serving.measure import make_fingerprint
from yarn_ops.serving.verdict import judge

ROPE = [
    *("unscaled", "linear", "attention factor missing", "attention factor squared"),
    *("original length doubled", "original length is the target", "factor halved", "factor doubled"),
    "factor squared",
]


def answers(fingerprint, state, *, noise=0.0, tells=True, more=0, seed=0):
    """The replies of a server in a state, its log-probabilities off by as many nats, seed for seed."""
    draw, replies = np.random.default_rng(seed), []
    for probe, row in zip(fingerprint.probes, fingerprint.logprobs(state), strict=True):
        values = np.minimum(row + draw.normal(0, noise, len(row)), 0) if noise else row
        told = dict(zip(probe.candidates, values.tolist(), strict=True))
        token = max(told, key=told.__getitem__)
        replies.append(NextToken(token, told if tells else None, probe.tokens + more))
    return replies


def test_a_fingerprint_has_texts_from_short_to_the_target_and_every_fault(fingerprint):
    tokens = [probe.tokens for probe in fingerprint.probes]
    assert min(tokens) < 70 and 230 < max(tokens) <= 248
    assert (
        set(ROPE) | {MEASURED, "context cut", "BOS"}
        <= fingerprint.states.keys()
        <= FAULTS.keys() | {MEASURED}
    )
    noise = [fingerprint.noise[bits].logprobs for bits in (16, 8, 4, 2)]
    assert noise == sorted(noise) and 0 < noise[0] < 0.05 < noise[3]
    assert len(fingerprint.to_bytes()) < 40_000
    assert all(prompt.isascii() for prompt in fingerprint.prompts())


def test_a_fingerprint_of_texts_within_the_original_context_tells_faults_but_no_cut(base512, tmp_path):
    model = extend(base512, tmp_path / "model")
    made = make_fingerprint(model, device="cpu", report=lambda *_: None, longest=256)
    assert 200 < max(probe.tokens for probe in made.probes) <= 256
    assert set(ROPE) <= made.states.keys() and "context cut" not in made.states
    assert made.target_context_tokens == 2048
    for fault in ("unscaled", "attention factor squared"):
        assert judge(made, answers(made, fault), None).fault == fault


@pytest.mark.parametrize("tells", [True, False])
def test_the_measured_is_right(fingerprint, tells):
    verdict = judge(fingerprint, answers(fingerprint, MEASURED, tells=tells), None)
    assert verdict.fault is None and verdict.nats < 1e-3
    assert (
        verdict.line.startswith("right to 0.000 nats")
        and f"over {len(fingerprint.probes)} texts" in verdict.line
    )


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("state", ROPE)
def test_each_fault_is_named_through_noise(fingerprint, state, noise):
    assert judge(fingerprint, answers(fingerprint, state, noise=noise), None).fault == state


def test_rounding_is_no_fault_and_more_than_its_bits_explain_is(fingerprint):
    rng = random.Random(7)
    for _ in range(200):
        served = answers(fingerprint, MEASURED, noise=0.15, seed=rng.getrandbits(32))
        assert judge(fingerprint, served, 4).fault is None
    assert judge(fingerprint, answers(fingerprint, MEASURED, noise=0.6), 16).fault == "quantisation"


def test_what_is_far_from_everything_is_other_weights(fingerprint):
    served = [
        NextToken("zq", {f"zq{place}": -2.5 - place for place in range(20)}, probe.tokens)
        for probe in fingerprint.probes
    ]
    assert judge(fingerprint, served, None).fault == "other weights"


def test_counts_tell_a_bos_and_another_tokenizer(fingerprint):
    assert judge(fingerprint, answers(fingerprint, MEASURED, more=1), None).fault == "BOS"
    assert judge(fingerprint, answers(fingerprint, MEASURED, more=-1), None).fault == "BOS"
    assert judge(fingerprint, answers(fingerprint, MEASURED, more=9), None).fault == "other tokenizer"


def test_a_long_text_that_is_refused_or_shortened_is_a_cut(fingerprint):
    served = answers(fingerprint, MEASURED)
    long = [number for number, probe in enumerate(fingerprint.probes) if probe.tokens > 128]
    refused = [
        NextToken(refused="400 (too long)") if number in long else reply
        for number, reply in enumerate(served)
    ]
    verdict = judge(fingerprint, refused, None)
    assert verdict.fault == "context cut" and "400 (too long)" in verdict.line
    cut = [
        NextToken(reply.token, reply.logprobs, 128) if number in long else reply
        for number, reply in enumerate(served)
    ]
    assert judge(fingerprint, cut, None).fault == "context cut"
    silent = [NextToken(reply.token, reply.logprobs) for reply in answers(fingerprint, "context cut")]
    assert judge(fingerprint, silent, None).fault == "context cut"


def test_a_server_that_refuses_everything_is_told_in_its_words(fingerprint):
    with pytest.raises(ServingError, match=r"answers 0 of \d+ texts; it says 500 \(no\)"):
        judge(fingerprint, [NextToken(refused="500 (no)")] * len(fingerprint.probes), None)


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", b'{"version": 2}', b"[" * 100_000])
def test_a_damaged_fingerprint_is_one_line(measured, tmp_path, damage):
    with pytest.raises(ServingError, match="no fingerprint of this version"):
        parse_fingerprint(damage, "there")
    with pytest.raises(ServingError, match=f"has no {FINGERPRINT}"):
        read_fingerprint(tmp_path)


def test_other_texts_than_the_fingerprint_was_made_of_are_noticed(fingerprint):
    other = fingerprint.model_copy(update={"texts": ("0" * 64, *fingerprint.texts[1:])})
    with pytest.raises(ServingError, match="made of other texts"):
        other.prompts()
