"""Losses and predictions equal a slow reference, whatever the batch and the chunk."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
)

from yarn_ops.errors import EvaluationError
from yarn_ops.evals import forward

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


def windows(count: int, tokens: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 97, (count, tokens))


def reference_losses(model: PreTrainedModel, ids: np.ndarray) -> torch.Tensor:
    """float64, one window at a time, all logits at once."""
    slow = copy.deepcopy(model).double()
    with torch.no_grad():
        rows = []
        for row in torch.from_numpy(ids):
            log_p = slow(row[None, :-1]).logits[0].log_softmax(-1)
            rows.append(-log_p.gather(-1, row[1:, None])[:, 0])
    return torch.stack(rows)


def test_losses_equal_a_float64_reference(tiny_llama: PreTrainedModel) -> None:
    ids = windows(3, 65)
    losses = forward.token_losses(tiny_llama, ids, 64)
    assert_close(torch.from_numpy(losses).double(), reference_losses(tiny_llama, ids), rtol=1e-5, atol=1e-5)


def test_only_the_tail_is_scored(tiny_llama: PreTrainedModel) -> None:
    ids = windows(2, 65)
    whole, tail = (forward.token_losses(tiny_llama, ids, scored) for scored in (64, 5))
    assert_close(tail, whole[:, -5:], rtol=1e-6, atol=1e-6)


def test_batches_and_chunks_change_nothing(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = windows(5, 33)
    at_once = forward.token_losses(tiny_llama, ids, 32)
    monkeypatch.setattr(forward, "BATCH_TOKENS", 70)
    monkeypatch.setattr(forward, "LOGITS_AT_ONCE", 97 * 7)
    assert_close(forward.token_losses(tiny_llama, ids, 32), at_once, rtol=1e-5, atol=1e-5)


def test_correct_predictions_are_the_argmax(tiny_llama: PreTrainedModel) -> None:
    ids = torch.from_numpy(windows(2, 40))
    with torch.no_grad():
        greedy = tiny_llama(ids[:, :-1]).logits.argmax(-1)
    ids[:, 30] = greedy[:, 29]
    with torch.no_grad():
        expected = tiny_llama(ids[:, :-1]).logits.argmax(-1)[:, -12:] == ids[:, -12:]
    hits = forward.correct_predictions(tiny_llama, ids.numpy(), 12)
    assert hits.tolist() == expected.tolist()
    assert hits[:, 30 - 28].all()


@pytest.mark.parametrize(
    "model",
    [
        lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=3.0, initializer_range=0.5)),
        lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=5.0, initializer_range=0.5)),
    ],
    ids=["granite scales", "gemma2 caps"],
)
def test_a_config_that_changes_logits_is_followed(model) -> None:
    torch.manual_seed(0)
    network = model().eval()
    forward.require_known_head(network)
    ids = windows(1, 20)
    assert_close(
        torch.from_numpy(forward.token_losses(network, ids, 19)).double(),
        reference_losses(network, ids),
        rtol=1e-5,
        atol=1e-5,
    )


def test_an_unknown_change_of_logits_is_refused(tiny_llama: PreTrainedModel) -> None:
    class Doubled(type(tiny_llama)):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 2
            return output

    doubled = Doubled(tiny_llama.config).eval()
    doubled.load_state_dict(tiny_llama.state_dict())
    with pytest.raises(EvaluationError, match="Doubled: its logits are not those of its output layer"):
        forward.require_known_head(doubled)


def test_losses_that_are_not_finite_are_refused(tiny_llama: PreTrainedModel) -> None:
    broken = copy.deepcopy(tiny_llama)
    broken.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(EvaluationError, match="loss over windows of 32 tokens is not finite"):
        forward.token_losses(broken, windows(1, 33), 32)
