"""Matrix products of frozen weights in 8 bits: nearly twice bf16's rate on Hopper and newer.

Every row of an operand has a scale of its own that brings its largest magnitude to e4m3's (Micikevicius and
others 2022, "FP8 formats for deep learning"), so that one outlying position or output costs no other its
digits. A product runs along rows of both operands; a weight is therefore kept twice, for x Wᵀ and for the
gradient times W. Adapters, norms, attention, residuals and the loss stay as they are.

Axes in names: R rows, C columns of an operand; O outputs, I inputs of a weight.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from yarn_ops.errors import TrainError
from yarn_ops.train.elementwise import fused

FORMAT = torch.float8_e4m3fn
LARGEST = torch.finfo(FORMAT).max
MULTIPLE = 16
"""of every weight's width: the tensor cores' tile"""
CAPABILITY = (9, 0)
"""of the first GPU whose products take a scale a row"""
LEAST = 1e-30
"""of a row's largest magnitude: gradients of a mean over a million tokens are small, scales normal numbers"""


class Rows(NamedTuple):
    """A quantised matrix: values · scale, with a scale for each row."""

    values_RC: Tensor
    scales_R1: Tensor
    """float32"""


class Float8Weight(NamedTuple):
    """A frozen weight, quantised along both axes."""

    outputs: Rows
    """O × I, for x Wᵀ"""
    inputs: Rows
    """I × O, for the gradient times W"""

    @classmethod
    def of(cls, weight_OI: Tensor) -> Float8Weight:
        """From a weight (O × I) of any dtype; TrainError where the tensor cores cannot take its shape."""
        if any(width % MULTIPLE for width in weight_OI.shape):
            raise TrainError(
                f"train.precision: fp8 needs layers whose widths are multiples of {MULTIPLE}, one is "
                f"{' × '.join(map(str, weight_OI.shape))}; use bf16"
            )
        weight_OI = weight_OI.detach()
        return cls(Rows(*_scaled(weight_OI)), Rows(*_scaled(weight_OI.t())))


def to_rows(matrix_RC: Tensor) -> Rows:
    """Quantise activations or their gradients (R × C), in one pass."""
    return Rows(*_scaled_at_once(matrix_RC))


def _scaled(matrix_RC: Tensor) -> tuple[Tensor, Tensor]:
    wide = matrix_RC.float()
    scales_R1 = wide.abs().amax(1, keepdim=True).clamp_min(LEAST) / LARGEST
    return (wide / scales_R1).to(FORMAT).contiguous(), scales_R1


_scaled_at_once = fused(_scaled)


def multiply(left: Rows, right: Rows, dtype: torch.dtype) -> Tensor:
    """left rightᵀ (rows of left × rows of right) in `dtype`; on a CPU dequantised first."""
    if left.values_RC.is_cuda:
        return torch._scaled_mm(
            left.values_RC,
            right.values_RC.t(),
            left.scales_R1,
            right.scales_R1.t(),
            out_dtype=dtype,
            use_fast_accum=True,
        )
    wide_left, wide_right = (rows.values_RC.to(dtype) * rows.scales_R1.to(dtype) for rows in (left, right))
    return wide_left @ wide_right.t()


def require_float8() -> None:
    """TrainError unless the current GPU multiplies rows with scales of their own."""
    if torch.cuda.get_device_capability() < CAPABILITY:
        raise TrainError(
            f"train.precision: fp8 needs a GPU of Hopper's generation or newer, this is "
            f"{torch.cuda.get_device_name()}; use bf16"
        )
