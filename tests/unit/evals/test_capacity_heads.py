"""Attention of a real small model: where it goes, which heads retrieve, and that they are the cause."""

from __future__ import annotations

import pytest
import torch
from suite_parts import documents

from yarn_ops.evals.attention import Diagnosis, diagnose
from yarn_ops.evals.reader import SharedReader
from yarn_ops.evals.tasks import needles
from yarn_ops.models.files import read_config
from yarn_ops.models.loading import load_proven
from yarn_ops.rope.config import rope_spec_of


@pytest.fixture(scope="module")
def diagnosis(base512, encode):
    config = read_config(base512)
    model = load_proven(base512, config, rope_spec_of(config), dtype=torch.float32, device="cpu")
    usual = model.config._attn_implementation
    samples = needles.grid(("code",), documents(encode), 256, 2, 1, 0)
    found = diagnose(SharedReader(model), samples, 256, 0)
    assert model.config._attn_implementation == usual
    return found


def test_mass_and_sink_are_all_of_attention(diagnosis):
    assert sum(share for _, _, share in diagnosis.mass) + diagnosis.sink == pytest.approx(1, abs=1e-4)
    assert 0 < diagnosis.entropy < 1
    assert diagnosis.mass[0][0] == 1 and diagnosis.mass[-1][0] < 256


def test_silenced_retrieval_heads_lose_the_needles(diagnosis):
    share = diagnosis.heads[0][2]
    assert share > 0.5 and diagnosis.retrieval_heads < diagnosis.all_heads / 2
    assert diagnosis.recall >= 0.8
    assert diagnosis.recall_without <= diagnosis.recall / 2


def test_a_diagnosis_is_kept_as_scores(diagnosis):
    assert Diagnosis.of(diagnosis.scores(0)) == diagnosis
    assert Diagnosis.of(()) is None
