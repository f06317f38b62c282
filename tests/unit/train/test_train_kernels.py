"""Our Triton kernels, by Triton's interpreter: what they compute is what the plain functions do."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_models import decode, gradients, small_model
from torch import Tensor
from transformers import LlamaConfig

from yarn_ops.train.elementwise import swiglu, swiglu_backward
from yarn_ops.train.plan import LADDER

POSITIONS, WIDTH, RANK = 70, 150, 5
"""none fills its tiles"""


@pytest.fixture(scope="module")
def kernels() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # read where a kernel is defined
        yield importlib.import_module("yarn_ops.train.kernels")


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_swiglu_adds_the_adapters_of_gate_and_up(kernels: Any) -> None:
    gate, up = random(POSITIONS, WIDTH), random(POSITIONS, WIDTH).flip(0)
    low, gate_b, up_b = random(POSITIONS, 2 * RANK), random(WIDTH, RANK), random(WIDTH, RANK).flip(0)
    gate_low, up_low = low.split(RANK, dim=1)
    expected = swiglu(gate + gate_low @ gate_b.t(), up + up_low @ up_b.t())
    torch.testing.assert_close(kernels.adapted_swiglu(gate, up, low, gate_b, up_b), expected)


def test_its_derivative_adds_downs_too(kernels: Any) -> None:
    grad, gate, up = (random(POSITIONS, WIDTH).roll(shift, 0) for shift in range(3))
    low, gate_b, up_b = random(POSITIONS, 2 * RANK), random(WIDTH, RANK), random(WIDTH, RANK).flip(0)
    grad_low, down_a = random(POSITIONS, RANK), random(RANK, WIDTH)
    gate_low, up_low = low.split(RANK, dim=1)
    expected = swiglu_backward(grad + grad_low @ down_a, gate + gate_low @ gate_b.t(), up + up_low @ up_b.t())
    found = kernels.adapted_swiglu_backward(grad, grad_low, down_a, gate, up, low, gate_b, up_b)
    assert [each.data_ptr() for each in found] == [each.data_ptr() for each in (grad, gate, up)]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_sum_leaves_its_addends(kernels: Any, count: int) -> None:
    addends = [random(POSITIONS, WIDTH).roll(shift, 0) for shift in range(count)]
    before = [addend.clone() for addend in addends]
    low, a = random(POSITIONS, 4 * RANK)[:, RANK:], random(3 * RANK, WIDTH)
    found = kernels.sum_with_low_rank(addends, low, a.t())
    torch.testing.assert_close(found, sum(addends) + low @ a)
    assert all(torch.equal(*pair) for pair in zip(addends, before, strict=True))


def test_cuda_takes_the_grid_of_sixteen_million_positions(kernels: Any) -> None:
    for tiling in (kernels.GATE, kernels.SUM):
        along, *others = kernels._programs(tiling, 1 << 24, 28672)
        assert along < 2**31
        assert all(each <= 65535 for each in others)


def test_a_model_through_the_kernels_is_the_plain_one(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(LlamaConfig, dtype=torch.float32, num_hidden_layers=1)
    ids_BT = torch.randint(0, 96, (1, 50))
    plain = gradients(model, decode(model, ids_BT, True, LADDER[-1]))
    for module in ("projection", "mlp"):
        monkeypatch.setattr(f"yarn_ops.train.{module}.adds_low_rank", lambda tensor: True)
    found = [gradients(model, decode(model, ids_BT, True, policy)) for policy in (LADDER[0], LADDER[-1])]
    for name, gradient in plain.items():
        assert (found[1][name] - gradient).norm() <= 1e-5 * gradient.norm(), name
        assert torch.equal(found[0][name], found[1][name]), name
