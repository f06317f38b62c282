"""The chunked loss, and the document mask, against plain references."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from yarn_ops.data.windows import Window
from yarn_ops.errors import TrainError
from yarn_ops.models.head import Head
from yarn_ops.train.backbone import Backbone, TransformersBackbone
from yarn_ops.train.batches import IGNORED, make_batch, positions_within
from yarn_ops.train.loss import CausalLoss, HiddenStates, summed_loss

WAYS = [TransformersBackbone, lambda model, dtype: Backbone(model, dtype, windows=2, window=64)]


@pytest.fixture
def model(tiny: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny / "base", dtype=torch.float32)


def loss_of(model: PreTrainedModel, way: Callable[..., HiddenStates] = WAYS[0]) -> CausalLoss:
    return CausalLoss(model, way(model, torch.float32), torch.float32)


def full_loss(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    logits = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="sum")


def window(*documents: list[int]) -> Window:
    ids = np.concatenate([np.array(document, np.int64) for document in documents])
    segments = np.repeat(np.arange(len(documents), dtype=np.int32), [len(document) for document in documents])
    return Window(ids=ids, segments=segments, document_ids=tuple(f"d{n}" for n in range(len(documents))))


def random_window(*lengths: int, seed: int = 0) -> Window:
    random = np.random.default_rng(seed)
    return window(*(random.integers(0, 96, length).tolist() for length in lengths))


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("embeddings_learn", [False, True])
@pytest.mark.parametrize("way", WAYS, ids=["transformers", "ours"])
def test_loss_and_gradients_equal_those_of_all_logits_at_once(
    model: PreTrainedModel,
    rows: int,
    embeddings_learn: bool,
    way: Callable[..., HiddenStates],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("yarn_ops.train.loss.summed_loss.__defaults__", (None, rows * 96))
    model.get_input_embeddings().requires_grad_(embeddings_learn)  # tied: the head's weight too
    batch = make_batch([random_window(33), random_window(33, seed=1)], device="cpu", document_mask=False)
    ids_BT = torch.cat([batch.inputs_BT, batch.targets_BT[:, -1:]], dim=1)

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    ours, theirs = loss_of(model, way)(batch).total / 64, full_loss(model, ids_BT) / 64
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    ours_by_name, theirs_by_name = gradients(ours), gradients(theirs)
    assert ours_by_name.keys() == theirs_by_name.keys()
    assert ("model.embed_tokens.weight" in ours_by_name) == embeddings_learn
    for name, gradient in theirs_by_name.items():
        torch.testing.assert_close(ours_by_name[name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.5, 0.0, 1.0]])
@pytest.mark.parametrize("cap", [None, 5.0])
def test_the_gradient_is_the_difference_quotient(cap: float | None, weights: list[float] | None) -> None:
    targets_N = torch.tensor([3, IGNORED, 6, 0, 5])
    values = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 4), (7, 4), (7,))]

    def loss(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor) -> Tensor:
        weights_N = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        return summed_loss(hidden_ND, targets_N, Head(weight_VD, bias_V, 2.0, cap), weights_N, 2 * 7)[0]

    assert torch.autograd.gradcheck(loss, values)


def test_no_gradient_is_made_when_none_is_asked_for(model: PreTrainedModel) -> None:
    batch = make_batch([random_window(20)], device="cpu", document_mask=False)
    with torch.no_grad():
        loss = loss_of(model)(batch).total
    assert not loss.requires_grad


def test_positions_restart_with_each_document() -> None:
    segments_BT = torch.tensor([[0, 0, 0, 1, 2, 2], [0, 0, 0, 0, 0, 0]])
    assert positions_within(segments_BT).tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("way", WAYS, ids=["transformers", "ours"])
def test_masked_documents_cost_what_they_cost_alone(
    model: PreTrainedModel, way: Callable[..., HiddenStates]
) -> None:
    lengths = (9, 1, 30, 2, 23)
    packed = random_window(*lengths)
    batch = make_batch([packed, random_window(*reversed(lengths), seed=1)], device="cpu", document_mask=True)
    alone = [
        full_loss(model, torch.as_tensor(document)[None])
        for window in (packed, random_window(*reversed(lengths), seed=1))
        for document in np.split(window.ids, np.flatnonzero(np.diff(window.segments)) + 1)
        if len(document) > 1
    ]
    assert batch.target_tokens == 2 * sum(length - 1 for length in lengths)
    torch.testing.assert_close(loss_of(model, way)(batch).total, torch.stack(alone).sum(), rtol=1e-6, atol=0)


def test_without_the_mask_documents_see_each_other(model: PreTrainedModel) -> None:
    masked, unmasked = (
        make_batch([random_window(32, 33)], device="cpu", document_mask=mask) for mask in (True, False)
    )
    assert (masked.target_tokens, unmasked.target_tokens) == (63, 64)
    assert unmasked.positions_BT is None


def test_an_unknown_head_is_refused(model: PreTrainedModel) -> None:
    batch = make_batch([random_window(20)], device="cpu", document_mask=False)
    for way in WAYS:
        loss_of(model, way).prove(batch.inputs_BT)
    original = model.forward

    def scaled(**inputs: object) -> object:
        output = original(**inputs)
        output.logits = output.logits * 3
        return output

    model.forward = scaled
    with pytest.raises(TrainError, match="cannot be trained yet"):
        loss_of(model).prove(batch.inputs_BT)


def test_recomputing_layers_changes_no_bit(model: PreTrainedModel) -> None:
    batch = make_batch([random_window(65)], device="cpu", document_mask=False)
    found = []
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train().zero_grad()
        loss = loss_of(model)(batch).total
        loss.backward()
        found.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def exercise_window(tokens: int, answers: list[int], seed: int = 0) -> Window:
    """A random window whose tokens at `answers` answer an exercise."""
    marks = np.zeros(tokens, dtype=np.bool_)
    marks[answers] = True
    return replace(random_window(tokens, seed=seed), answers=marks)


@pytest.mark.parametrize("share", [0.1, 0.67])
def test_answers_make_up_their_share_of_a_window_s_loss(model: PreTrainedModel, share: float) -> None:
    """Against a float64 reference: loss and every gradient, in the norm, to 1e-6."""
    answers = [5, 6, 20, 32]
    windows = [exercise_window(33, answers), random_window(33, seed=1)]
    batch = make_batch(windows, device="cpu", document_mask=False, answer_share=share)
    double = copy.deepcopy(model).double()

    def reference() -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for each in windows:
            ids = torch.as_tensor(each.ids)
            logits = double(input_ids=ids[None, :-1], use_cache=False).logits[0]
            losses = F.cross_entropy(logits, ids[1:], reduction="none")
            marks = (
                torch.zeros(33, dtype=torch.bool) if each.answers is None else torch.as_tensor(each.answers)
            )
            asked = marks[1:]
            mean = losses.mean() if not asked.any() else (
                share * losses[asked].mean() + (1 - share) * losses[~asked].mean()
            )  # fmt: skip
            total = total + 32 * mean
        return total

    theirs = reference()
    theirs.backward()
    expected = {name: p.grad.clone() for name, p in double.named_parameters() if p.grad is not None}
    double.zero_grad()
    wide = CausalLoss(double, TransformersBackbone(double, torch.float64), torch.float64)
    ours = wide(batch)
    ours.total.backward()
    torch.testing.assert_close(ours.total, theirs, rtol=1e-6, atol=0)
    for name, gradient in expected.items():
        found = dict(double.named_parameters())[name].grad
        assert found is not None and (found - gradient).norm() <= 1e-6 * gradient.norm(), name
    narrow = loss_of(model, WAYS[1])(batch)
    torch.testing.assert_close(narrow.total.double(), theirs, rtol=1e-6, atol=0)
    assert ours.answers is not None and narrow.answers is not None
    torch.testing.assert_close(narrow.answers.double(), ours.answers, rtol=1e-5, atol=0)


def test_weights_add_up_to_the_targets_whatever_a_window_holds() -> None:
    windows = [exercise_window(40, [3, 4]), exercise_window(40, []), exercise_window(40, list(range(40)))]
    batch = make_batch(windows, device="cpu", document_mask=True, answer_share=0.5)
    assert batch.weights_BT is not None
    torch.testing.assert_close(batch.weights_BT.sum(1), torch.full((3,), 39.0))


def test_windows_without_exercises_have_no_weights() -> None:
    batch = make_batch([random_window(20)], device="cpu", document_mask=False)
    assert batch.weights_BT is None and batch.answers_BT is None
