"""Products in 8 bits: the numbers they stand for, and what a layer makes of them."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from small_models import gradients, small_model
from transformers import LlamaConfig, Qwen3Config

from yarn_ops.errors import TrainError
from yarn_ops.recipe import Train
from yarn_ops.train.decoder import Decoder
from yarn_ops.train.float8 import FORMAT, Float8Weight, multiply, to_rows
from yarn_ops.train.plan import LADDER
from yarn_ops.train.precision import trainer_environment

HALF_A_DIGIT = 2**-4
"""e4m3 keeps four binary digits, the first of them 1"""


@pytest.fixture
def model() -> object:
    return small_model(LlamaConfig, dtype=torch.float32, head_dim=16)


def test_every_row_is_rounded_by_its_own_scale() -> None:
    matrix = torch.randn(6, 64) * torch.tensor([1e-6, 1, 1e6, 0, 3e-3, 1e-20])[:, None]
    rows = to_rows(matrix)
    assert rows.values_RC.dtype == FORMAT
    back = rows.values_RC.float() * rows.scales_R1
    largest = matrix.abs().amax(1, keepdim=True)
    assert ((back - matrix).abs() <= HALF_A_DIGIT * matrix.abs() + 2**-18 * largest).all()
    torch.testing.assert_close(back.abs().amax(1, keepdim=True), largest)


def test_a_product_is_that_of_the_rounded_matrices() -> None:
    left, right = torch.randn(7, 32), torch.randn(48, 32)
    rows = [to_rows(matrix) for matrix in (left, right)]
    rounded = [each.values_RC.float() * each.scales_R1 for each in rows]
    torch.testing.assert_close(multiply(*rows, torch.float32), rounded[0] @ rounded[1].t())


@pytest.mark.parametrize("config", [LlamaConfig, Qwen3Config])
def test_hidden_states_and_gradients_stay_near(config: type) -> None:
    """Within some hundredths, as three layers of products of four digits leave them."""
    model = small_model(config, dtype=torch.float32, head_dim=16)
    ids_BT = torch.randint(0, 96, (2, 40))
    decoder = Decoder(model, torch.float32, [LADDER[-1]] * 3)
    exact = decoder(ids_BT, None)
    exact_gradients = gradients(model, exact)
    decoder.quantise()
    near = decoder(ids_BT, None)
    assert 1e-3 < (near - exact).norm() / exact.norm() < 0.06
    near_gradients = gradients(model, near)
    assert near_gradients.keys() == exact_gradients.keys()
    exact_all, near_all = (
        torch.cat([gradient.flatten() for gradient in found.values()])
        for found in (exact_gradients, near_gradients)
    )
    assert 1e-3 < (near_all - exact_all).norm() / exact_all.norm() < 0.1


def test_what_is_kept_changes_no_bit(model: object) -> None:
    ids_BT = torch.randint(0, 96, (1, 50))
    decoder = Decoder(model, torch.float32, [])  # type: ignore[arg-type]
    decoder.quantise()
    found = []
    for policy in LADDER:
        decoder.policies = [policy] * 3
        hidden = decoder(ids_BT, None)
        found.append({"hidden": hidden.detach(), **gradients(model, hidden)})  # type: ignore[arg-type]
    for other in found[1:]:
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


def test_a_width_that_the_tensor_cores_do_not_take_is_refused() -> None:
    with pytest.raises(TrainError, match="multiples of 16, one is 24 × 32; use bf16"):
        Float8Weight.of(torch.zeros(24, 32))


def test_it_is_for_frozen_weights_on_a_gpu() -> None:
    with pytest.raises(ValidationError, match="with method full none is"):
        Train(method="full", precision="fp8")
    with pytest.raises(TrainError, match="fp8 needs a GPU of Hopper's generation"):
        trainer_environment("fp8", "cpu")
