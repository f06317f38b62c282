"""The MLP of a decoder layer with the norm before it, forward and backward.

    mid ─ norm ─ gate,up ─ swiglu ─ down ─(+mid)─ y

On a GPU, where all three linear layers have an adapter, those of gate and up are added in the one pass that
reads the products (`kernels`): at this width a pass is what costs. Elsewhere the products add them.

Axes in names: N positions, D hidden width, F the MLP's, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

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
    adds_low_rank,
    input_gradient,
    low_rank,
    low_rank_gradient,
    parameter_gradients,
    project,
)


class GateUp(NamedTuple):
    """The products with gate's and up's weights, whose memory the backward uses for their gradients, and what
    the adapters made of the inputs."""

    gate_NF: Tensor
    up_NF: Tensor
    low_NR: Tensor | None
    """of gate and up"""
    low_down_NR: Tensor | None = None
    """once the forward has been there"""


@dataclass(frozen=True)
class Mlp:
    norm_D: Tensor
    eps: float
    gate_up_a: Tensor | None
    down_a: Tensor | None
    gate: Linear
    up: Linear
    down: Linear
    full: bool
    """weights, biases and the norm learn too"""

    def gate_up(self, mid_ND: Tensor) -> GateUp:
        normal_ND = rms_norm(mid_ND, self.norm_D, self.eps)
        low_NR = low_rank(normal_ND, self.gate_up_a)
        in_products_NR = low_NR if self._added_later is None else None
        gate_NF, up_NF = project(normal_ND, in_products_NR, (self.gate, self.up))
        return GateUp(gate_NF, up_NF, low_NR)

    def forward(self, mid_ND: Tensor, gate_up: GateUp) -> tuple[Tensor, GateUp]:
        """y, and `gate_up` completed."""
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
        """The gradient of `mid`, and those of the parameters by their names in a layer's weights."""
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
        if self.full:
            found["mlp_norm"] = rms_norm_weight_gradient(grad_normal_ND, mid_ND, self.eps)
        return grad_mid_ND, found

    @property
    def _added_later(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """B of gate, B of up and A of down, where kernels of our own add what these make."""
        bs = [linear.b_OR for linear in (self.gate, self.up, self.down)]
        ranks = {None if b is None else b.shape[1] for b in bs}
        if len(ranks) > 1 or bs[0] is None or bs[1] is None or self.down_a is None:
            return None
        return (bs[0], bs[1], self.down_a) if adds_low_rank(self.norm_D) else None
