"""One decoder layer of Llama's architecture, forward and backward, with activation checkpointing.

Forward; W is a linear layer with its adapter (`projection`), R the rotary embedding, the norms of q and k are
Qwen 3's alone:

    normal   = rms_norm(x)
    q, k, v  = W_q normal, W_k normal, W_v normal
    q, k     = R rms_norm(q), R rms_norm(k)
    output   = attention(q, k, v)
    mid      = x + W_o output
    y        = mid + mlp(mid)

Backward, from grad = ∂loss/∂y; f′ᵀ is the transposed Jacobian of f:

    grad_mid               = grad + mlp′ᵀ grad                                      (`mlp`)
    grad_output            = W_oᵀ grad_mid                                          (`projection`)
    grad_q, grad_k, grad_v = attention′ᵀ grad_output                                (`attention`)
    grad_q, grad_k         = rms_norm′ᵀ Rᵀ grad_q, rms_norm′ᵀ Rᵀ grad_k             (`elementwise`)
    grad_normal            = W_qᵀ grad_q + W_kᵀ grad_k + W_vᵀ grad_v
    grad_x                 = grad_mid + rms_norm′ᵀ grad_normal

The layer's policy (`plan.LayerPolicy`) says which of these tensors are kept from the forward. The others are
computed again by the same calls, so the policy changes time and memory and not one bit of a gradient. Norms,
rotation and the activation are always computed again: each is one pass over memory.

Axes in names: B windows, T tokens, N = B·T positions, D hidden width, F MLP width, H heads, K head width, R
ranks of adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

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
from yarn_ops.train.plan import LayerPolicy
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


class Weights(NamedTuple):
    """A layer's parameters in the dtype it computes in. Each `_a` (R × width of the input) holds the LoRA A
    matrices of the linear layers that share an input, one below the other; None where none has an adapter."""

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
        """All tensors, as arguments of an autograd function; `of` is the inverse."""
        return flatten(self)

    @classmethod
    def of(cls, flat: Sequence[Any]) -> Weights:
        linears = [Linear(*flat[i : i + 3]) for i in range(LINEARS, len(flat), 3)]
        return cls(*flat[:LINEARS], *linears)


LINEARS = Weights._fields.index("q")
NO_GRADIENTS = LinearGradients()


def flatten(values: Sequence[Any]) -> tuple[Any, ...]:
    """The tensors of Weights, or of their gradients by the same names, in the order of the fields."""
    return (*values[:LINEARS], *(tensor for linear in values[LINEARS:] for tensor in linear or NO_GRADIENTS))


@dataclass(frozen=True)
class Context:
    """What all layers of one forward share."""

    head_width: int
    eps: float
    kernel: Kernel
    cos_BTK: Tensor
    sin_BTK: Tensor
    documents: Documents | None
    """bounds of the documents packed into the windows; None: each window is one document"""
    context_group: ContextGroup | None
    """the processes that hold the other parts of the windows' tokens; None: this one holds all"""
    tile_rows: int
    """positions of the MLP at a time, where its products are not kept"""
    offload: HostOffload
    full: bool
    """method full: weights and biases have gradients"""
    norms: bool
    """norms have gradients"""


class Qkv(NamedTuple):
    """Queries, keys and values (N × width). Rotated, but where q and k are normed first: the derivative of
    those norms needs them as they come from the products."""

    outputs: list[Tensor]
    low_NR: Tensor | None
    """normal Aᵀ of their adapters"""


class Mid(NamedTuple):
    """The residual stream between attention and MLP."""

    mid_ND: Tensor
    low_NR: Tensor | None
    """output Aᵀ of W_o's adapter"""


@dataclass
class Kept:
    """What a forward keeps for its backward; None: computed again. Low-rank products are kept with what they
    belong to, since they take a hundredth of its memory."""

    x: Tensor | OffloadedTensor
    attended: Attended | None = None
    qkv: Qkv | None = None
    mid: Mid | None = None
    gate_up: GateUp | None = None


Gathered = Callable[[], AbstractContextManager[None]]
"""opens a block within which a sharded layer's weights are all-gathered"""


def decoder_layer(
    x_BTD: Tensor, weights: Weights, context: Context, policy: LayerPolicy, gathered: Gathered = nullcontext
) -> Tensor:
    """x (B × T × D) to y (the same), differentiable in x and in the parameters that learn.

    The caller has opened `gathered` for the forward; the backward opens it itself. A backward frees what was
    kept, so a second one raises RuntimeError.
    """
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
        ctx.kept = None  # each tensor is freed after its last use
        layer = _Pass(Weights.of(ctx.flat), ctx.context, grad_BTD.shape)
        with ctx.gathered():
            grad_x = layer.backward(grad_BTD.flatten(0, 1), kept, needs_grad_x=ctx.needs_input_grad[0])
        grad_x_BTD = None if grad_x is None else grad_x.view(grad_BTD.shape)
        return grad_x_BTD, None, None, None, *flatten([*layer.grads.values()])


class _Pass:
    """The calculations of one layer on N × D tensors, which forward and recomputation share."""

    def __init__(self, weights: Weights, context: Context, shape: torch.Size) -> None:
        self._w, self._c, self._windows = weights, context, shape[0]
        self.grads: dict[str, Any] = dict.fromkeys(Weights._fields)
        """of the parameters, by their names in Weights, once the backward has been here"""

    def backward(self, grad: Tensor, kept: Kept, *, needs_grad_x: bool) -> Tensor | None:
        """grad_x, or None where it is not needed; gradients of parameters go to `grads`."""
        x = kept.x.get() if isinstance(kept.x, OffloadedTensor) else kept.x
        qkv = kept.qkv
        if kept.attended is None:
            qkv = self.project_qkv(x)
            kept.attended = self.attend(qkv)
        if kept.mid is None:
            kept.mid = self.project_output(x, kept.attended)
        grad_mid, low_o = self.mlp_backward(grad, kept)
        qkv = qkv or self.project_qkv(x)
        return self.attention_backward(grad_mid, low_o, x, qkv, kept.attended, needs_grad_x=needs_grad_x)

    def project_qkv(self, x: Tensor) -> Qkv:
        """The normed input's products, rotated where they are not normed first."""
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
        """y, and the MLP's products where they are to be kept."""
        mlp = self._mlp()
        if keep:
            return mlp.forward(mid, mlp.gate_up(mid))
        return mlp.forward_in_tiles(mid, self._c.tile_rows), None

    def mlp_backward(self, grad: Tensor, kept: Kept) -> tuple[Tensor, Tensor | None]:
        """grad_mid, and the low-rank product kept with mid."""
        assert kept.mid is not None
        mlp, (mid, low_o), gate_up = self._mlp(), kept.mid, kept.gate_up
        kept.mid = kept.gate_up = None
        if gate_up is not None:
            grad_mid, found = mlp.backward(grad, mid, gate_up)
        else:
            grad_mid, found = mlp.backward_in_tiles(grad, mid, self._c.tile_rows)
        self.grads |= found
        return grad_mid, low_o

    def attention_backward(
        self,
        grad_mid: Tensor,
        low_o: Tensor | None,
        x: Tensor,
        qkv: Qkv,
        attended: Attended,
        *,
        needs_grad_x: bool,
    ) -> Tensor | None:
        """grad_x from grad_mid, or None where it is not needed."""
        w, c, grads = self._w, self._c, self.grads
        output = self._flat(attended.output_BTHK)
        low = low_rank_gradient([grad_mid], [w.o])
        grads["o_a"], (grads["o"],) = parameter_gradients(output, low_o, [grad_mid], low, [w.o], c.full)
        grad_output = self._heads(input_gradient([grad_mid], w.o_a, low, [w.o]))
        grads_rotated = context_parallel_attention_backward(
            c.context_group, c.kernel, grad_output, *self._rotated(qkv), attended, c.documents
        )
        del grad_output, output

        linears = (w.q, w.k, w.v)
        grads_qkv = self._rotated_backward(grads_rotated, qkv)
        low = low_rank_gradient(grads_qkv, linears)
        grad_x = None
        if needs_grad_x or c.norms:
            grad_normal = input_gradient(grads_qkv, w.qkv_a, low, linears)
            normal, grad_x = rms_norm_again(grad_normal, x, w.norm, c.eps, grad_mid)
        else:  # x is the embedding of tokens, which does not learn
            normal = rms_norm(x, w.norm, c.eps)
        grads["qkv_a"], (grads["q"], grads["k"], grads["v"]) = parameter_gradients(
            normal, qkv.low_NR, grads_qkv, low, linears, c.full
        )
        if c.norms:
            grads["norm"] = rms_norm_weight_gradient(grad_normal, x, c.eps)
        return grad_x

    def _mlp(self) -> Mlp:
        w, c = self._w, self._c
        return Mlp(w.mlp_norm, c.eps, w.gate_up_a, w.down_a, w.gate, w.up, w.down, c.full, c.norms)

    def _rotated(self, qkv: Qkv) -> tuple[Tensor, Tensor, Tensor]:
        """q and k (B × T × H × K) normed, where the architecture has such norms, and rotated; v unchanged."""
        w, c = self._w, self._c
        q, k, v = (self._heads(tensor) for tensor in qkv.outputs)
        if w.q_norm is None or w.k_norm is None:
            return q, k, v
        q, k = rms_norm(q, w.q_norm, c.eps), rms_norm(k, w.k_norm, c.eps)
        return self._rotate(q), self._rotate(k), v

    def _rotated_backward(self, grads_rotated: tuple[Tensor, Tensor, Tensor], qkv: Qkv) -> list[Tensor]:
        """Gradients (N × width) of q, k and v as they come from the products."""
        w, c = self._w, self._c
        q, k = (rotate(grad, c.cos_BTK, -c.sin_BTK) for grad in grads_rotated[:2])
        if w.q_norm is not None and w.k_norm is not None:
            raw_q, raw_k = (self._heads(tensor) for tensor in qkv.outputs[:2])
            if c.norms:
                self.grads["q_norm"] = rms_norm_weight_gradient(q, raw_q, c.eps)
                self.grads["k_norm"] = rms_norm_weight_gradient(k, raw_k, c.eps)
            q = rms_norm_backward(q, raw_q, w.q_norm, c.eps, None)
            k = rms_norm_backward(k, raw_k, w.k_norm, c.eps, None)
        return [self._flat(tensor) for tensor in (q, k, grads_rotated[2])]

    def _rotate(self, tensor_BTHK: Tensor) -> Tensor:
        return rotate(tensor_BTHK, self._c.cos_BTK, self._c.sin_BTK)  # type: ignore[no-any-return]

    def _heads(self, tensor: Tensor) -> Tensor:
        return tensor.view(self._windows, -1, tensor.shape[-1] // self._c.head_width, self._c.head_width)

    def _flat(self, tensor_BTHK: Tensor) -> Tensor:
        return tensor_BTHK.reshape(-1, tensor_BTHK.shape[-2] * tensor_BTHK.shape[-1])
