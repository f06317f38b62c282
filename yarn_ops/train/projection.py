"""Linear layers that share an input, each with or without a LoRA adapter (Hu and others 2021).

    low = x Aᵀ                                  A of all adapters stacked; low_i: the columns of layer i
    y_i = x W_iᵀ + low_i B_iᵀ + b_i (+ residual)                      B carries PEFT's scaling, alpha / rank

Given grad_i = ∂loss/∂y_i:

    grad_low_i = grad_i B_i                      grad_B_i = grad_iᵀ low_i             grad_A = grad_lowᵀ x
    grad_x     = Σ_i grad_i W_i + grad_low A     grad_W_i = grad_iᵀ x                 grad_b_i = Σ_n grad_i,n

The low-rank product is written first and the wide product accumulates onto it (addmm), so an adapter costs no
pass over the output; nor does a residual. Products in 8 bits cannot accumulate: there the low-rank product
adds itself to them.

Axes in names: N positions, I input width, O output width, R ranks of all adapters of the group together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from yarn_ops.train.elementwise import runs_kernels
from yarn_ops.train.float8 import Float8Weight, Rows, multiply, to_rows


class Linear(NamedTuple):
    """A linear layer's weight, bias and LoRA B, in the dtype it computes in."""

    weight_OI: Tensor | Float8Weight
    bias_O: Tensor | None = None
    b_OR: Tensor | None = None
    """R: the rank of this layer's adapter alone"""


class LinearGradients(NamedTuple):
    """Of the fields of a Linear; None: it has none, or does not learn."""

    weight_OI: Tensor | None = None
    bias_O: Tensor | None = None
    b_OR: Tensor | None = None


class Gradients(NamedTuple):
    """Of layers that share an input: of their stacked A, and of each layer."""

    a_RI: Tensor | None
    linears: list[LinearGradients]


def low_rank(x_NI: Tensor, a_RI: Tensor | None) -> Tensor | None:
    """x Aᵀ (N × R); None without adapters."""
    return None if a_RI is None else x_NI @ a_RI.t()


def project(
    x_NI: Tensor, low_NR: Tensor | None, linears: Sequence[Linear], residual_NO: Tensor | None = None
) -> list[Tensor]:
    """Each layer's y_i (N × O). `low` None leaves the adapters out; `residual` is added to the first output
    and is not changed itself."""
    rows = to_rows(x_NI) if isinstance(linears[0].weight_OI, Float8Weight) else None
    outputs, rank = [], 0
    for linear in linears:
        own_NR = None
        if linear.b_OR is not None and low_NR is not None:
            own_NR, rank = low_NR[:, rank : rank + linear.b_OR.shape[1]], rank + linear.b_OR.shape[1]
        if rows is None:
            outputs.append(_output(x_NI, linear, own_NR, residual_NO))
        else:
            outputs.append(_float8_output(rows, linear, own_NR, residual_NO, x_NI.dtype))
        residual_NO = None
    return outputs


def _output(x_NI: Tensor, linear: Linear, own_NR: Tensor | None, residual_NO: Tensor | None) -> Tensor:
    start, weight_OI = residual_NO, linear.weight_OI
    assert isinstance(weight_OI, Tensor)
    if linear.bias_O is not None:
        start = linear.bias_O if start is None else start + linear.bias_O
    if own_NR is not None and linear.b_OR is not None:
        start = own_NR @ linear.b_OR.t() if start is None else _sum([start], own_NR, linear.b_OR)
        return start.addmm_(x_NI, weight_OI.t())
    return x_NI @ weight_OI.t() if start is None else torch.addmm(start, x_NI, weight_OI.t())


def _float8_output(
    x: Rows, linear: Linear, own_NR: Tensor | None, residual_NO: Tensor | None, dtype: torch.dtype
) -> Tensor:
    assert isinstance(linear.weight_OI, Float8Weight)
    output = multiply(x, linear.weight_OI.outputs, dtype)
    if linear.bias_O is not None:
        output += linear.bias_O
    addends = [output] if residual_NO is None else [output, residual_NO]
    if own_NR is not None and linear.b_OR is not None:
        return _sum(addends, own_NR, linear.b_OR)
    return output if residual_NO is None else output.add_(residual_NO)


def adds_low_rank(tensor: Tensor) -> bool:
    """Whether our Triton kernels add low-rank products on the tensor's device, in its dtype."""
    return runs_kernels(tensor) and tensor.dtype in (torch.bfloat16, torch.float16)


def _sum(addends_NO: Sequence[Tensor], low_NR: Tensor, right_OR: Tensor) -> Tensor:
    """The sum (a new tensor) of one to three addends and low rightᵀ."""
    first, *others = addends_NO
    if adds_low_rank(first):
        from yarn_ops.train.kernels import sum_with_low_rank  # Triton is where GPUs are

        return sum_with_low_rank(addends_NO, low_NR, right_OR)
    total = torch.addmm(first, low_NR, right_OR.t())
    for other in others:
        total += other
    return total


def low_rank_gradient(grads_NO: Sequence[Tensor], linears: Sequence[Linear]) -> Tensor | None:
    """grad_low (N × R); None without adapters."""
    parts = [
        grad @ linear.b_OR for grad, linear in zip(grads_NO, linears, strict=True) if linear.b_OR is not None
    ]
    return torch.cat(parts, dim=1) if parts else None


def input_gradient(
    grads_NO: Sequence[Tensor], a_RI: Tensor | None, low_grad_NR: Tensor | None, linears: Sequence[Linear]
) -> Tensor:
    """grad_x (N × I)."""
    if isinstance(linears[0].weight_OI, Float8Weight):
        return _float8_input_gradient(grads_NO, a_RI, low_grad_NR, linears)
    total = None if a_RI is None or low_grad_NR is None else low_grad_NR @ a_RI
    for grad, linear in zip(grads_NO, linears, strict=True):
        assert isinstance(linear.weight_OI, Tensor)
        total = grad @ linear.weight_OI if total is None else total.addmm_(grad, linear.weight_OI)
    assert total is not None
    return total


def _float8_input_gradient(
    grads_NO: Sequence[Tensor], a_RI: Tensor | None, low_grad_NR: Tensor | None, linears: Sequence[Linear]
) -> Tensor:
    parts = []
    for grad, linear in zip(grads_NO, linears, strict=True):
        assert isinstance(linear.weight_OI, Float8Weight)
        parts.append(multiply(to_rows(grad), linear.weight_OI.inputs, grad.dtype))
    if a_RI is not None and low_grad_NR is not None:
        return _sum(parts, low_grad_NR, a_RI.t())
    for more in parts[1:]:
        parts[0] += more
    return parts[0]


def parameter_gradients(
    x_NI: Tensor,
    low_NR: Tensor | None,
    grads_NO: Sequence[Tensor],
    low_grad_NR: Tensor | None,
    linears: Sequence[Linear],
    full: bool,
) -> Gradients:
    """grad_A and each layer's grad_B; with `full` grad_W and grad_b too."""
    gradients, rank = [], 0
    for grad, linear in zip(grads_NO, linears, strict=True):
        grad_b = None
        if linear.b_OR is not None:
            assert low_NR is not None
            grad_b = grad.t() @ low_NR[:, rank : rank + linear.b_OR.shape[1]]
            rank += linear.b_OR.shape[1]
        grad_weight = grad.t() @ x_NI if full else None
        grad_bias = grad.sum(0) if full and linear.bias_O is not None else None
        gradients.append(LinearGradients(grad_weight, grad_bias, grad_b))
    grad_a = None if low_grad_NR is None else low_grad_NR.t() @ x_NI
    return Gradients(grad_a, gradients)
