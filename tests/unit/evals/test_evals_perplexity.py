"""Each protocol equals brute force on a tiny model: one token at a time, float64."""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from suite_parts import SPEC
from transformers import PreTrainedModel

from yarn_ops.evals.cells import ModelUnderTest
from yarn_ops.evals.forward import token_losses
from yarn_ops.evals.names import BY_POSITION, LAST_QUARTER, SINGLE_PASS, SLIDING
from yarn_ops.evals.tasks.perplexity import last_quarter_chunks, sliding_scores, window_scores

LONGEST = 64


@pytest.fixture(scope="module")
def windows() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 97, (5, LONGEST + 1))


@pytest.fixture(scope="module")
def slow(tiny_llama: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(tiny_llama).double()


def under_test(model: PreTrainedModel) -> ModelUnderTest:
    return ModelUnderTest(lambda: model, SPEC)


def loss(slow: PreTrainedModel, context: np.ndarray, target: int) -> float:
    with torch.no_grad():
        logits = slow(torch.from_numpy(context)[None]).logits[0, -1]
    return -logits.log_softmax(-1)[int(target)].item()


def test_last_quarter_is_brute_force_on_the_same_targets(tiny_llama, slow, windows) -> None:
    """Length 16 in windows of 64: targets 49..64 in four runs of 16 tokens."""
    losses = []
    for row in windows:
        for start in (36, 40, 44, 48):
            for target in range(start + 13, start + 17):
                losses.append(loss(slow, row[start:target], row[target]))
    last, single = window_scores(under_test(tiny_llama), windows, 16, seed=3)
    assert (last.task, last.context_tokens, last.samples, last.seed) == (LAST_QUARTER, 16, 5, 3)
    assert last.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert single.task == SINGLE_PASS


def test_single_pass_is_brute_force(tiny_llama, slow, windows) -> None:
    losses = [loss(slow, row[:target], row[target]) for row in windows for target in range(1, LONGEST + 1)]
    last, single, *positions = window_scores(under_test(tiny_llama), windows, LONGEST, seed=0)
    assert single.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    quarters = np.reshape(losses, (5, LONGEST))[:, -16:]
    assert last.value == pytest.approx(math.exp(quarters.mean()), rel=1e-5)
    parts = np.reshape(losses, (5, 16, 4)).mean(axis=(0, 2))
    assert [score.task for score in positions] == [BY_POSITION] * 16
    assert [score.context_tokens for score in positions] == list(range(4, LONGEST + 1, 4))
    assert [score.value for score in positions] == pytest.approx(parts, rel=1e-5)


@pytest.mark.parametrize(("length", "stride"), [(16, 4), (16, 16), (16, 99), (32, 5)])
def test_sliding_is_brute_force(tiny_llama, slow, length: int, stride: int) -> None:
    documents = [np.random.default_rng(seed).integers(0, 97, size) for seed, size in ((1, 75), (2, 50))]
    stride_used, losses = min(stride, length), []
    for document in documents:
        for start in range(0, len(document) - length, stride_used):
            first_target = start + 1 if start == 0 else start + length - stride_used + 1
            for target in range(first_target, start + length + 1):
                losses.append(loss(slow, document[start:target], document[target]))
    (score,) = sliding_scores(partial(token_losses, tiny_llama), documents, length, stride, seed=0)
    assert (score.task, score.samples) == (SLIDING, 2)
    assert score.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert score.low is None


@pytest.mark.parametrize("length", [3, 8, 16, 24, 48, 61, 64])
def test_every_length_scores_the_last_quarter(length: int) -> None:
    """Targets are consecutive, start in the last quarter of the window and end with it."""
    positions = np.arange(LONGEST + 1)[None]
    chunks = last_quarter_chunks(positions, length)[0]
    targets = chunks[:, -max(1, length // 4) :].ravel()
    assert chunks.shape[1] == length + 1
    assert targets.tolist() == list(range(LONGEST + 1 - len(targets), LONGEST + 1))
    assert LONGEST * 3 // 4 < targets[0] <= LONGEST


def test_interval_holds_the_value(tiny_llama, windows) -> None:
    for score in window_scores(under_test(tiny_llama), windows, 32, seed=0):
        assert score.low < score.value < score.high
