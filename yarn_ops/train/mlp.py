"""The SwiGLU MLP of a decoder layer (Shazeer 2020) with the norm before it, forward and backward.

    normal = rms_norm(mid)
    hidden = silu(gate) · up                     gate, up = W_gate normal, W_up normal
    y      = mid + W_down hidden

Given grad = ∂loss/∂y, σ = sigmoid(gate) and silu = gate σ:

    grad_hidden = W_downᵀ grad
    grad_up     = grad_hidden silu               grad_gate = grad_hidden up σ (1 + gate − silu)
    grad_normal = W_gateᵀ grad_gate + W_upᵀ grad_up
    grad_mid    = grad + rms_norm′ᵀ grad_normal

On a GPU, where all three linear layers have adapters of one rank, those of gate and up are added in the one
kernel that reads the products (`kernels`), which saves a pass over N × F. Elsewhere the products add them.

Axes in names: N positions, D hidden width, F the MLP's, R ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from yarn_ops.train.elementwise import (
    rms_norm,
    rms_norm_again,
    rms_norm_weight_gradient,
    swiglu,
    swiglu_backward,
)
from yarn_ops.train.projection import (
    Linear,
    LinearGradients,
    adds_low_rank,
    input_gradient,
    low_rank,
    low_rank_gradient,
    parameter_gradients,
    project,
)


class GateUp(NamedTuple):
    """gate and up, without their adapters where a kernel adds these later, and the low-rank products. The
    backward writes the gradients of gate and up into their memory."""

    gate_NF: Tensor
    up_NF: Tensor
    low_NR: Tensor | None
    """normal Aᵀ, of the adapters of gate and up"""
    low_down_NR: Tensor | None = None
    """hidden Aᵀ, of down's adapter; None before `Mlp.forward`"""


@dataclass(frozen=True)
class Mlp:
    """The parameters of one MLP, and its calculations."""

    norm_D: Tensor
    eps: float
    gate_up_a: Tensor | None
    down_a: Tensor | None
    gate: Linear
    up: Linear
    down: Linear
    full: bool
    """weights and biases have gradients"""
    norms: bool
    """the norm has a gradient"""

    def gate_up(self, mid_ND: Tensor) -> GateUp:
        """The first two products, from the residual stream (N × D)."""
        normal_ND = rms_norm(mid_ND, self.norm_D, self.eps)
        low_NR = low_rank(normal_ND, self.gate_up_a)
        in_products_NR = low_NR if self._added_later is None else None
        gate_NF, up_NF = project(normal_ND, in_products_NR, (self.gate, self.up))
        return GateUp(gate_NF, up_NF, low_NR)

    def forward(self, mid_ND: Tensor, gate_up: GateUp) -> tuple[Tensor, GateUp]:
        """y (N × D), and `gate_up` with the low-rank product of down."""
        gate_NF, up_NF, low_NR, _ = gate_up
        if self._added_later is not None and low_NR is not None:
            from yarn_ops.train.kernels import adapted_swiglu  # Triton is where GPUs are

            gate_b_FR, up_b_FR, _ = self._added_later
            hidden_NF = adapted_swiglu(gate_NF, up_NF, low_NR, gate_b_FR, up_b_FR)
        else:
            hidden_NF = swiglu(gate_NF, up_NF)
        low_down_NR = low_rank(hidden_NF, self.down_a)
        y_ND = project(hidden_NF, low_down_NR, (self.down,), residual_NO=mid_ND)[0]
        return y_ND, gate_up._replace(low_down_NR=low_down_NR)

    def backward(self, grad_ND: Tensor, mid_ND: Tensor, gate_up: GateUp) -> tuple[Tensor, dict[str, Any]]:
        """grad_mid (N × D), and the parameters' gradients by their names in `layer.Weights`."""
        gate_NF, up_NF, low_NR, low_down_NR = gate_up
        low_grad_NR = low_rank_gradient([grad_ND], [self.down])
        if self._added_later is not None and low_NR is not None and low_grad_NR is not None:
            from yarn_ops.train.kernels import adapted_swiglu_backward  # Triton is where GPUs are

            inner_NF = input_gradient([grad_ND], None, None, [self.down])
            gate_b_FR, up_b_FR, down_a_RF = self._added_later
            hidden_NF, *grads_NF = adapted_swiglu_backward(
                inner_NF, low_grad_NR, down_a_RF, gate_NF, up_NF, low_NR, gate_b_FR, up_b_FR
            )
        else:
            inner_NF = input_gradient([grad_ND], self.down_a, low_grad_NR, [self.down])
            hidden_NF, *grads_NF = swiglu_backward(inner_NF, gate_NF, up_NF)
        if low_down_NR is None:
            low_down_NR = low_rank(hidden_NF, self.down_a)
        down_a, (down,) = parameter_gradients(
            hidden_NF, low_down_NR, [grad_ND], low_grad_NR, [self.down], self.full
        )
        del inner_NF, hidden_NF

        linears = (self.gate, self.up)
        low_grad_NR = low_rank_gradient(grads_NF, linears)
        grad_normal_ND = input_gradient(grads_NF, self.gate_up_a, low_grad_NR, linears)
        normal_ND, grad_mid_ND = rms_norm_again(grad_normal_ND, mid_ND, self.norm_D, self.eps, grad_ND)
        gate_up_a, (gate, up) = parameter_gradients(
            normal_ND, low_NR, grads_NF, low_grad_NR, linears, self.full
        )
        found = {"down_a": down_a, "down": down, "gate_up_a": gate_up_a, "gate": gate, "up": up}
        if self.norms:
            found["mlp_norm"] = rms_norm_weight_gradient(grad_normal_ND, mid_ND, self.eps)
        return grad_mid_ND, found

    def forward_in_tiles(self, mid_ND: Tensor, rows: int) -> Tensor:
        """y (N × D), `rows` positions at a time, nothing kept."""
        y_ND = torch.empty_like(mid_ND)
        for tile in _tiles(len(mid_ND), rows):
            y_ND[tile], _ = self.forward(mid_ND[tile], self.gate_up(mid_ND[tile]))
        return y_ND

    def backward_in_tiles(self, grad_ND: Tensor, mid_ND: Tensor, rows: int) -> tuple[Tensor, dict[str, Any]]:
        """As `backward`, computing the products again, `rows` positions at a time."""
        grad_mid_ND, total = torch.empty_like(mid_ND), dict[str, Any]()
        for tile in _tiles(len(mid_ND), rows):
            grad_mid_ND[tile], found = self.backward(grad_ND[tile], mid_ND[tile], self.gate_up(mid_ND[tile]))
            total = {name: _sum(total.get(name), gradient) for name, gradient in found.items()}
        return grad_mid_ND, total

    @property
    def _added_later(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """B of gate, B of up and A of down, where our Triton kernels add these adapters; else None."""
        bs = [linear.b_OR for linear in (self.gate, self.up, self.down)]
        ranks = {None if b is None else b.shape[1] for b in bs}
        if len(ranks) > 1 or bs[0] is None or bs[1] is None or self.down_a is None:
            return None
        return (bs[0], bs[1], self.down_a) if adds_low_rank(self.norm_D) else None


def _tiles(positions: int, rows: int) -> Iterator[slice]:
    return (slice(start, start + rows) for start in range(0, positions, rows))


def _sum(total: Any, more: Any) -> Any:
    """The sum of two tiles' gradients: tensors, LinearGradients or None."""
    if total is None or more is None:
        return more if total is None else total
    if isinstance(more, LinearGradients):
        return LinearGradients(*(_sum(*pair) for pair in zip(total, more, strict=True)))
    return total.add_(more)
