"""One decoder layer of Llama's shape, forward and backward, keeping what its policy says.

    x ─ norm ─ q,k,v ─ rotate ─ attention ─ o ─(+x)─ mid ─ norm ─ gate,up ─ swiglu ─ down ─(+mid)─ y

Whatever is not kept is computed again by the same calls, so the policy changes time and memory and not one
bit of a gradient. Norms, rotation and the activation are always computed again: they cost a pass over memory,
keeping them costs memory for the length of the step.

Axes in names: B windows, T tokens, N = B·T, D hidden width, F the MLP's, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from yarn_ops.train.attention import Attended, Documents, Kernel
from yarn_ops.train.elementwise import (
    rms_norm,
    rms_norm_again,
    rms_norm_backward,
    rms_norm_weight_gradient,
    rotate,
)
from yarn_ops.train.mlp import GateUp, Mlp
from yarn_ops.train.offload import HostOffload, OffloadedTensor
from yarn_ops.train.parallel.ranks import ContextGroup
from yarn_ops.train.projection import (
    Linear,
    LinearGradients,
    input_gradient,
    low_rank,
    low_rank_gradient,
    parameter_gradients,
    project,
)
from yarn_ops.train.ulysses import context_parallel_attention, context_parallel_attention_backward

Keep = Literal["everything", "attention", "outputs", "input"]


class LayerPolicy(NamedTuple):
    """What a layer keeps from its forward to its backward."""

    keep: Keep
    """everything; attention: not the MLP's products; outputs: x and the attention's output; input: x"""
    on_host: bool = False
    """x waits in host memory"""


class Weights(NamedTuple):
    """A layer's parameters in the dtype it computes in. Every `_a` holds the A matrices of the linear layers
    that share its input, in their order."""

    norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    mlp_norm: Tensor
    qkv_a: Tensor | None
    o_a: Tensor | None
    gate_up_a: Tensor | None
    down_a: Tensor | None
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    gate: Linear
    up: Linear
    down: Linear

    def flat(self) -> tuple[Any, ...]:
        """What autograd sees; `of` undoes it."""
        return flatten(self)

    @classmethod
    def of(cls, flat: Sequence[Any]) -> Weights:
        linears = [Linear(*flat[i : i + 3]) for i in range(LINEARS, len(flat), 3)]
        return cls(*flat[:LINEARS], *linears)


LINEARS = Weights._fields.index("q")
NO_GRADIENTS = LinearGradients()


def flatten(values: Sequence[Any]) -> tuple[Any, ...]:
    """Weights, or their gradients, each by itself."""
    return (*values[:LINEARS], *(tensor for linear in values[LINEARS:] for tensor in linear or NO_GRADIENTS))


@dataclass(frozen=True)
class Context:
    """What all layers of a forward share."""

    head_width: int
    eps: float
    kernel: Kernel
    cos_BTK: Tensor
    sin_BTK: Tensor
    documents: Documents | None
    """of the whole window"""
    context_group: ContextGroup | None
    """who has the other parts of the windows' tokens"""
    tile_rows: int
    """positions that the MLP takes at a time, where it keeps nothing"""
    offload: HostOffload
    full: bool
    """weights, norms and biases learn too"""


class Qkv(NamedTuple):
    """Queries, keys and values; rotated, unless they are normed first: that derivative needs them raw."""

    outputs: list[Tensor]
    low_NR: Tensor | None
    """norm(x) Aᵀ, of their adapters"""


class Mid(NamedTuple):
    """What lies between attention and MLP."""

    mid_ND: Tensor
    low_NR: Tensor | None
    """attention's output times Aᵀ, of its projection's adapter"""


@dataclass
class Kept:
    """Low-rank products are kept with what they belong to: they are smaller by a hundred."""

    x: Tensor | OffloadedTensor
    attended: Attended | None = None
    qkv: Qkv | None = None
    mid: Mid | None = None
    gate_up: GateUp | None = None


Gathered = Callable[[], AbstractContextManager[None]]
"""within it, the layer's weights hold their values"""


def decoder_layer(
    x_BTD: Tensor, weights: Weights, context: Context, policy: LayerPolicy, gathered: Gathered = nullcontext
) -> Tensor:
    """B × T × D to the same. The backward works within `gathered`."""
    return _DecoderLayer.apply(x_BTD, context, policy, gathered, *weights.flat())  # type: ignore[no-any-return, no-untyped-call]


class _DecoderLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BTD: Tensor,
        context: Context,
        policy: LayerPolicy,
        gathered: Gathered,
        *flat: Tensor | None,
    ) -> Tensor:
        layer = _Pass(Weights.of(flat), context, x_BTD.shape)
        x = x_BTD.flatten(0, 1)
        qkv = layer.project_qkv(x)
        attended = layer.attend(qkv)
        keep = policy.keep if any(ctx.needs_input_grad) else None
        if keep not in ("everything", "attention"):
            del qkv
        mid = layer.project_output(x, attended)
        y, gate_up = layer.mlp(mid.mid_ND, keep=keep == "everything")
        if keep is not None:
            kept = Kept(context.offload.put(x) if policy.on_host else x)
            if keep != "input":
                kept.attended = attended
            if keep in ("everything", "attention"):
                kept.qkv, kept.mid = qkv, mid
            if keep == "everything":
                kept.gate_up = gate_up
            ctx.kept, ctx.context, ctx.gathered, ctx.flat = kept, context, gathered, flat
        return y.view(x_BTD.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
        kept: Kept | None = ctx.kept
        if kept is None:
            raise RuntimeError("a layer's forward serves one backward: what it kept is gone")
        ctx.kept = None  # so that what is done with is freed on the way
        layer = _Pass(Weights.of(ctx.flat), ctx.context, grad_BTD.shape)
        grads: dict[str, Any] = dict.fromkeys(Weights._fields)
        with ctx.gathered():
            grad_x = layer.backward(grad_BTD.flatten(0, 1), kept, grads, needs_grad_x=ctx.needs_input_grad[0])
        grad_x_BTD = None if grad_x is None else grad_x.view(grad_BTD.shape)
        return grad_x_BTD, None, None, None, *flatten([*grads.values()])


class _Pass:
    """One layer's calculations on N × D tensors; the backward repeats the forward's own methods."""

    def __init__(self, weights: Weights, context: Context, shape: torch.Size) -> None:
        self._w, self._c, self._windows = weights, context, shape[0]

    def backward(
        self, grad: Tensor, kept: Kept, grads: dict[str, Any], *, needs_grad_x: bool
    ) -> Tensor | None:
        """The gradient of x, where it is wanted; those of the parameters go to `grads`."""
        x = kept.x.get() if isinstance(kept.x, OffloadedTensor) else kept.x
        qkv = kept.qkv
        if kept.attended is None:
            qkv = self.project_qkv(x)
            kept.attended = self.attend(qkv)
        if kept.mid is None:
            kept.mid = self.project_output(x, kept.attended)
        grad_mid, low_o = self.mlp_backward(grad, kept, grads)
        qkv = qkv or self.project_qkv(x)
        return self.attention_backward(
            grad_mid, low_o, x, qkv, kept.attended, grads, needs_grad_x=needs_grad_x
        )

    def project_qkv(self, x: Tensor) -> Qkv:
        w = self._w
        normal = rms_norm(x, w.norm, self._c.eps)
        low = low_rank(normal, w.qkv_a)
        q, k, v = project(normal, low, (w.q, w.k, w.v))
        if w.q_norm is None:
            q, k = self._flat(self._rotate(self._heads(q))), self._flat(self._rotate(self._heads(k)))
        return Qkv([q, k, v], low)

    def attend(self, qkv: Qkv) -> Attended:
        q, k, v = self._rotated(qkv)
        return context_parallel_attention(self._c.context_group, self._c.kernel, q, k, v, self._c.documents)

    def project_output(self, x: Tensor, attended: Attended) -> Mid:
        output = self._flat(attended.output_BTHK)
        low = low_rank(output, self._w.o_a)
        return Mid(project(output, low, (self._w.o,), residual_NO=x)[0], low)

    def mlp(self, mid: Tensor, keep: bool) -> tuple[Tensor, GateUp | None]:
        mlp = self._mlp()
        if keep:
            return mlp.forward(mid, mlp.gate_up(mid))
        y = torch.empty_like(mid)
        for rows in self._tiles(len(mid)):
            y[rows], _ = mlp.forward(mid[rows], mlp.gate_up(mid[rows]))
        return y, None

    def mlp_backward(self, grad: Tensor, kept: Kept, grads: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The gradient of `mid`, and the low-rank product kept with it; the gradients of the MLP's parameters
        go to `grads`."""
        assert kept.mid is not None
        mlp, (mid, low_o), gate_up = self._mlp(), kept.mid, kept.gate_up
        kept.mid = kept.gate_up = None
        if gate_up is not None:
            grad_mid, found = mlp.backward(grad, mid, gate_up)
            grads |= found
            return grad_mid, low_o
        grad_mid = torch.empty_like(mid)
        for rows in self._tiles(len(mid)):
            grad_mid[rows], found = mlp.backward(grad[rows], mid[rows], mlp.gate_up(mid[rows]))
            for name, gradient in found.items():
                grads[name] = _sum(grads[name], gradient)
        return grad_mid, low_o

    def attention_backward(
        self,
        grad_mid: Tensor,
        low_o: Tensor | None,
        x: Tensor,
        qkv: Qkv,
        attended: Attended,
        grads: dict[str, Any],
        *,
        needs_grad_x: bool,
    ) -> Tensor | None:
        """The gradient of x, where it is wanted, from that of `mid`."""
        w, c = self._w, self._c
        output = self._flat(attended.output_BTHK)
        low = low_rank_gradient([grad_mid], [w.o])
        grads["o_a"], (grads["o"],) = parameter_gradients(output, low_o, [grad_mid], low, [w.o], c.full)
        grad_output = self._heads(input_gradient([grad_mid], w.o_a, low, [w.o]))
        grads_rotated = context_parallel_attention_backward(
            c.context_group, c.kernel, grad_output, *self._rotated(qkv), attended, c.documents
        )
        del grad_output, output

        linears = (w.q, w.k, w.v)
        grads_qkv = self._rotated_backward(grads_rotated, qkv, grads)
        low = low_rank_gradient(grads_qkv, linears)
        grad_x = None
        if needs_grad_x or c.full:
            grad_normal = input_gradient(grads_qkv, w.qkv_a, low, linears)
            normal, grad_x = rms_norm_again(grad_normal, x, w.norm, c.eps, grad_mid)
        else:  # x is the embedding of tokens, which does not learn
            normal = rms_norm(x, w.norm, c.eps)
        grads["qkv_a"], (grads["q"], grads["k"], grads["v"]) = parameter_gradients(
            normal, qkv.low_NR, grads_qkv, low, linears, c.full
        )
        if c.full:
            grads["norm"] = rms_norm_weight_gradient(grad_normal, x, c.eps)
        return grad_x

    def _mlp(self) -> Mlp:
        w, c = self._w, self._c
        return Mlp(w.mlp_norm, c.eps, w.gate_up_a, w.down_a, w.gate, w.up, w.down, c.full)

    def _rotated(self, qkv: Qkv) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys normed, where the architecture does, and rotated; values as they are."""
        w, c = self._w, self._c
        q, k, v = (self._heads(tensor) for tensor in qkv.outputs)
        if w.q_norm is None or w.k_norm is None:
            return q, k, v
        q, k = rms_norm(q, w.q_norm, c.eps), rms_norm(k, w.k_norm, c.eps)
        return self._rotate(q), self._rotate(k), v

    def _rotated_backward(
        self, grads_rotated: tuple[Tensor, Tensor, Tensor], qkv: Qkv, grads: dict[str, Any]
    ) -> list[Tensor]:
        w, c = self._w, self._c
        q, k = (rotate(grad, c.cos_BTK, -c.sin_BTK) for grad in grads_rotated[:2])
        if w.q_norm is not None and w.k_norm is not None:
            raw_q, raw_k = (self._heads(tensor) for tensor in qkv.outputs[:2])
            if c.full:
                grads["q_norm"] = rms_norm_weight_gradient(q, raw_q, c.eps)
                grads["k_norm"] = rms_norm_weight_gradient(k, raw_k, c.eps)
            q = rms_norm_backward(q, raw_q, w.q_norm, c.eps, None)
            k = rms_norm_backward(k, raw_k, w.k_norm, c.eps, None)
        return [self._flat(tensor) for tensor in (q, k, grads_rotated[2])]

    def _rotate(self, tensor_BTHK: Tensor) -> Tensor:
        return rotate(tensor_BTHK, self._c.cos_BTK, self._c.sin_BTK)  # type: ignore[no-any-return]

    def _heads(self, tensor: Tensor) -> Tensor:
        return tensor.view(self._windows, -1, tensor.shape[-1] // self._c.head_width, self._c.head_width)

    def _flat(self, tensor_BTHK: Tensor) -> Tensor:
        return tensor_BTHK.reshape(-1, tensor_BTHK.shape[-2] * tensor_BTHK.shape[-1])

    def _tiles(self, positions: int) -> Iterator[slice]:
        return (slice(start, start + self._c.tile_rows) for start in range(0, positions, self._c.tile_rows))


def _sum(total: Any, more: Any) -> Any:
    """Of gradients tile by tile: tensors, or layers of them."""
    if total is None or more is None:
        return more if total is None else total
    if isinstance(more, LinearGradients):
        return LinearGradients(*(_sum(*pair) for pair in zip(total, more, strict=True)))
    return total.add_(more)
