"""The elementwise parts of a model, each with its derivative. w is a norm's weight, grad = ∂loss/∂y.

RMSNorm (Zhang and Sennrich 2019, equation 4), over the last axis:

    r      = (mean(x²) + eps)^(−1/2)             normal = r x                  y = w normal
    grad_x = r (grad w − normal mean(grad w normal))                           grad_w = Σ_n grad normal

RoPE, with the halves x₁ and x₂ of a head (Hugging Face's pairing, dimension i with i + K/2):

    y      = x cos + (−x₂, x₁) sin               grad_x = grad cos − (−grad₂, grad₁) sin

SwiGLU: see `mlp`. Cross-entropy of scores s = cap tanh(logits / divisor / cap), without cap logits / divisor:

    loss   = log Σ_v exp s_v − s_target
    grad   = (softmax(s) − onehot(target)) (1 − (s / cap)²) / divisor

All of these are bound by memory bandwidth: on a GPU torch compiles each into one kernel, where Triton and a C
compiler are there. They compute in float32 (or wider) and return the dtype they were given.

Axes in names: N positions (windows times tokens), D width, B windows, T tokens, H heads, K head width.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

CACHED = 1 << 18
"""elements at a time, where nothing is compiled: 1 MiB of float32"""
_uncompiled: ContextVar[bool] = ContextVar("uncompiled", default=False)


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled into one kernel where the device of its first argument has a compiler."""

    @functools.cache
    def compiled() -> Callable[..., Any]:
        return torch.compile(function, dynamic=False)  # loads the compiler: two seconds

    def call(first: Tensor, *others: Any) -> Any:
        if runs_kernels(first) and not _uncompiled.get():
            return compiled()(first, *others)
        return function(first, *others)

    return call


@contextmanager
def uncompiled() -> Iterator[None]:
    """Within the block `fused` functions run as they are: a few tokens are not worth a compilation."""
    token = _uncompiled.set(True)
    try:
        yield
    finally:
        _uncompiled.reset(token)


def runs_kernels(tensor: Tensor) -> bool:
    """Whether kernels can be compiled for the tensor's device."""
    return tensor.is_cuda and _can_compile()


@functools.cache
def _can_compile() -> bool:
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    return find_spec("triton") is not None and any(shutil.which(name) for name in compilers if name)


def load_compiler() -> None:
    """Load what the first call of a `fused` function would load, without touching a device."""
    from torch._inductor import codecache, compile_fx  # noqa: F401

    codecache.torch_key()  # of all its sources: a second


def _rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """y (N × D), rounded before the weight as in Hugging Face's Llama."""
    wide = _wide(x_ND)
    normal = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight_D * normal.to(x_ND.dtype)


rms_norm = fused(_rms_norm)


def _rms_norm_backward(
    grad_ND: Tensor, x_ND: Tensor, weight_D: Tensor, eps: float, residual_ND: Tensor | None
) -> Tensor:
    """grad_x (N × D), plus the gradient that reaches x past the norm (`residual`; None: 0)."""
    wide = _wide(x_ND)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    normal, grad = wide * scale, _wide(grad_ND) * _wide(weight_D)
    inner = scale * (grad - normal * (grad * normal).mean(-1, keepdim=True))
    return (inner if residual_ND is None else inner + _wide(residual_ND)).to(x_ND.dtype)


rms_norm_backward = fused(_rms_norm_backward)


@fused
def rms_norm_again(
    grad_ND: Tensor, x_ND: Tensor, weight_D: Tensor, eps: float, residual_ND: Tensor
) -> tuple[Tensor, Tensor]:
    """(rms_norm, rms_norm_backward) in one pass, since both read x."""
    return _rms_norm(x_ND, weight_D, eps), _rms_norm_backward(grad_ND, x_ND, weight_D, eps, residual_ND)


@fused
def rms_norm_weight_gradient(grad_ND: Tensor, x_ND: Tensor, eps: float) -> Tensor:
    """grad_w (D)."""
    wide = _wide(x_ND)
    normal = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (_wide(grad_ND) * normal).flatten(0, -2).sum(0).to(x_ND.dtype)


@fused
def rotate(x_BTHK: Tensor, cos_BTK: Tensor, sin_BTK: Tensor) -> Tensor:
    """y (B × T × H × K); cos and sin have equal halves. With −sin in place of sin: the derivative."""
    x, cos, sin = _wide(x_BTHK), _wide(cos_BTK).unsqueeze(-2), _wide(sin_BTK).unsqueeze(-2)
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x_BTHK.dtype)


@fused
def swiglu(gate_NF: Tensor, up_NF: Tensor) -> Tensor:
    """silu(gate) · up (N × F), bit for bit what `swiglu_backward` recomputes."""
    gate = _wide(gate_NF)
    return (gate * torch.sigmoid(gate) * _wide(up_NF)).to(gate_NF.dtype)


@fused
def swiglu_backward(grad_NF: Tensor, gate_NF: Tensor, up_NF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden, grad_gate, grad_up), each N × F, written into the memory of grad, gate and up."""
    grad, gate, up = _wide(grad_NF), _wide(gate_NF), _wide(up_NF)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    grad_gate = (grad * up * sigmoid * (1 + gate - silu)).to(gate_NF.dtype)
    grad_up = (grad * silu).to(gate_NF.dtype)
    output = (silu * up).to(gate_NF.dtype)
    return grad_NF.copy_(output), gate_NF.copy_(grad_gate), up_NF.copy_(grad_up)


def cross_entropy(
    logits_NV: Tensor, targets_N: Tensor, divisor: float, cap: float | None, weights_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(loss in nats, its gradient to `logits`, N × V, written into their memory); targets < 0 do not count.

    The loss is the sum over targets (scalar). With weights it is each target's own (N), not weighted, and the
    gradient is that of the weighted sum.
    """
    if runs_kernels(logits_NV):
        return _cross_entropy(logits_NV, targets_N, divisor, cap, weights_N)  # type: ignore[no-any-return]
    rows = max(1, CACHED // logits_NV.shape[1])
    weights = repeat(None) if weights_N is None else weights_N.split(rows)
    parts = zip(logits_NV.split(rows), targets_N.split(rows), weights, strict=False)
    losses = [_cross_entropy_in_cache(logits, targets, divisor, cap, each) for logits, targets, each in parts]
    losses_N = torch.cat(losses) if losses else _wide(logits_NV).sum(-1)
    if weights_N is not None:
        return losses_N, logits_NV
    # Added up among zeros, in the order of all logits: recorded losses keep their last bit.
    among = losses_N.new_zeros(logits_NV.shape).scatter_(
        1, targets_N.clamp(min=0)[:, None], losses_N[:, None]
    )
    return among.sum(), logits_NV


def _cross_entropy_in_cache(
    logits_NV: Tensor, targets_N: Tensor, divisor: float, cap: float | None, weights_N: Tensor | None
) -> Tensor:
    """`cross_entropy` of so few logits that a processor's cache holds them: each target's loss."""
    scores = _wide(logits_NV)
    if divisor != 1:
        scores = scores / divisor
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    counts, rows = (targets_N >= 0)[:, None], torch.arange(len(targets_N), device=targets_N.device)
    sums, targets = torch.logsumexp(scores, dim=-1, keepdim=True), targets_N.clamp(min=0)
    losses = torch.where(counts[:, 0], sums[:, 0] - scores[rows, targets], 0)
    slope = None if cap is None else 1 - (scores / cap).square()
    gradient = scores.sub_(sums).exp_()
    gradient[rows, targets] -= 1
    gradient.mul_(counts)
    if divisor != 1:
        gradient.div_(divisor)
    for factor in (None if weights_N is None else weights_N[:, None], slope):
        if factor is not None:
            gradient.mul_(factor)
    if gradient.data_ptr() != logits_NV.data_ptr():
        logits_NV.copy_(gradient)
    return losses


@fused
def _cross_entropy(
    logits_NV: Tensor, targets_N: Tensor, divisor: float, cap: float | None, weights_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`cross_entropy` for a compiler."""
    scores = _wide(logits_NV) / divisor
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    counts = (targets_N >= 0)[:, None]
    sums = torch.logsumexp(scores, dim=-1, keepdim=True)
    hit = torch.arange(scores.shape[1], device=scores.device) == targets_N[:, None]
    picked = torch.where(hit, sums - scores, 0)
    gradient = (torch.exp(scores - sums) - hit.to(scores.dtype)) * counts / divisor
    if weights_N is not None:
        gradient = gradient * weights_N[:, None]
    if cap is not None:
        gradient = gradient * (1 - (scores / cap).square())
    loss = picked.sum() if weights_N is None else picked.sum(-1)
    return loss, logits_NV.copy_(gradient.to(logits_NV.dtype))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
