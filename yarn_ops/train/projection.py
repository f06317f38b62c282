"""Linear layers that share an input, each with or without a LoRA adapter: y_i = x W_iᵀ + (x Aᵀ) B_iᵀ + b_i.

The adapters' A matrices lie in one, so the input is read once for all of them; B carries PEFT's scaling. The
low-rank product is the smaller by a thousand and is written first: the wide product then adds itself to it in
its own last pass, so an adapter costs no pass over the output. A residual rides the same way.

Axes in names: N positions, I input width, O output width, R ranks of all adapters of the group together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Linear(NamedTuple):
    weight_OI: Tensor
    bias_O: Tensor | None = None
    b_OR: Tensor | None = None
    """of this layer's own rank"""


class Gradients(NamedTuple):
    a_RI: Tensor | None
    linears: list[Linear]
    """the gradient of each weight where it was asked for, else an empty tensor"""


def project(
    x_NI: Tensor, a_RI: Tensor | None, linears: Sequence[Linear], onto_NO: Tensor | None = None
) -> list[Tensor]:
    """The outputs (each N × O); `onto` is added to the first and left as it is."""
    low_NR = None if a_RI is None else x_NI @ a_RI.t()
    outputs, rank = [], 0
    for linear in linears:
        start = onto_NO
        if linear.bias_O is not None:
            start = linear.bias_O if start is None else start + linear.bias_O
        if linear.b_OR is not None:
            assert low_NR is not None
            own, rank = low_NR[:, rank : rank + linear.b_OR.shape[1]], rank + linear.b_OR.shape[1]
            start = own @ linear.b_OR.t() if start is None else torch.addmm(start, own, linear.b_OR.t())
            outputs.append(start.addmm_(x_NI, linear.weight_OI.t()))
        elif start is None:
            outputs.append(x_NI @ linear.weight_OI.t())
        else:
            outputs.append(torch.addmm(start, x_NI, linear.weight_OI.t()))
        onto_NO = None
    return outputs


def low_rank_gradient(grads_NO: Sequence[Tensor], linears: Sequence[Linear]) -> Tensor | None:
    """Gradient of x Aᵀ (N × R)."""
    parts = [
        grad @ linear.b_OR for grad, linear in zip(grads_NO, linears, strict=True) if linear.b_OR is not None
    ]
    return torch.cat(parts, dim=1) if parts else None


def input_gradient(
    grads_NO: Sequence[Tensor], a_RI: Tensor | None, low_grad_NR: Tensor | None, linears: Sequence[Linear]
) -> Tensor:
    """Gradient of x (N × I)."""
    total = None if a_RI is None or low_grad_NR is None else low_grad_NR @ a_RI
    for grad, linear in zip(grads_NO, linears, strict=True):
        total = grad @ linear.weight_OI if total is None else total.addmm_(grad, linear.weight_OI)
    assert total is not None
    return total


def parameter_gradients(
    x_NI: Tensor,
    grads_NO: Sequence[Tensor],
    a_RI: Tensor | None,
    low_grad_NR: Tensor | None,
    linears: Sequence[Linear],
    whole: bool,
) -> Gradients:
    """Gradients of the adapters, and with `whole` of weights and biases too."""
    low_NR = None if a_RI is None else x_NI @ a_RI.t()
    gradients, rank = [], 0
    for grad, linear in zip(grads_NO, linears, strict=True):
        of_b = None
        if linear.b_OR is not None:
            assert low_NR is not None
            of_b = grad.t() @ low_NR[:, rank : rank + linear.b_OR.shape[1]]
            rank += linear.b_OR.shape[1]
        of_weight = grad.t() @ x_NI if whole else grad.new_empty(0)
        of_bias = grad.sum(0) if whole and linear.bias_O is not None else None
        gradients.append(Linear(of_weight, of_bias, of_b))
    of_a = None if low_grad_NR is None else low_grad_NR.t() @ x_NI
    return Gradients(of_a, gradients)
