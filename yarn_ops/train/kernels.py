"""Triton kernels that add a LoRA adapter's low Bᵀ where a product is read next, instead of in a pass of its
own.

The wide products are cuBLAS's. A tile of low Bᵀ is one step of the tensor cores, computed in registers.

Axes in names: N positions, F the MLP's width, O any width, R ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tiling(NamedTuple):
    """How a kernel cuts its tensors."""

    rows: int
    columns: int
    warps: int
    steps: int = 1
    """tiles of a program, one below the other"""
    stages: int = 1
    """tiles that are loaded ahead (software pipelining)"""


GATE = Tiling(32, 128, 4, steps=16, stages=3)
"""of swiglu and its backward alike, so that the backward recomputes the same bits"""
SUM = Tiling(32, 128, 2)
"""both among the fastest of over ten at Llama 3 8B's widths and 32,768 positions on an H200"""
SMALLEST_DOT = 16
"""least inner size of a product on the tensor cores; smaller ranks are padded"""


@triton.jit
def _place(width, COLUMNS: tl.constexpr):
    """The columns of this program, and the number of its rows' tiles; consecutive programs share their rows'
    low-rank products. One axis counts both: CUDA launches at most 65,535 programs along the others."""
    across = (width + COLUMNS - 1) // COLUMNS
    return tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS), tl.program_id(0) // across


@triton.jit
def _tile(first_row, columns, positions, width, ROWS: tl.constexpr):
    """Rows from `first_row` on, their offsets in a tensor of `width`, and the mask of those within it. Rows
    and offsets are int64: a million positions of 8,192 columns have 2^33 elements."""
    rows = (first_row + tl.arange(0, ROWS)).to(tl.int64)
    there = (rows[:, None] < positions) & (columns[None, :] < width)
    return rows, rows[:, None] * width + columns[None, :], there


@triton.jit
def _low(rows, positions, low_ptr, low_stride, RANK: tl.constexpr, PADDED: tl.constexpr):
    """Rows × ranks of a low-rank product."""
    ranks = tl.arange(0, PADDED)
    there = (rows[:, None] < positions) & (ranks[None, :] < RANK)
    return tl.load(low_ptr + rows[:, None] * low_stride + ranks[None, :], there, 0.0)


@triton.jit
def _b(columns, width, b_ptr, stride_o, stride_r, RANK: tl.constexpr, PADDED: tl.constexpr):
    """Ranks × columns of bᵀ."""
    ranks = tl.arange(0, PADDED)
    there = (ranks[:, None] < RANK) & (columns[None, :] < width)
    return tl.load(b_ptr + columns[None, :] * stride_o + ranks[:, None] * stride_r, there, 0.0)


@triton.jit
def _swiglu(
    gate_ptr, up_ptr, low_ptr, gate_b_ptr, up_b_ptr, hidden_ptr, positions, width,
    RANK: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    STEPS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    columns, tile = _place(width, COLUMNS)
    gate_b = _b(columns, width, gate_b_ptr, RANK, 1, RANK, PADDED)
    up_b = _b(columns, width, up_b_ptr, RANK, 1, RANK, PADDED)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        first_row = (tile * STEPS + step) * ROWS
        rows, at, there = _tile(first_row, columns, positions, width, ROWS)
        gate, up = tl.load(gate_ptr + at, there, 0.0), tl.load(up_ptr + at, there, 0.0)
        gate_low = _low(rows, positions, low_ptr, 2 * RANK, RANK, PADDED)
        up_low = _low(rows, positions, low_ptr + RANK, 2 * RANK, RANK, PADDED)
        gate = gate.to(tl.float32) + tl.dot(gate_low, gate_b, input_precision="ieee")
        up = up.to(tl.float32) + tl.dot(up_low, up_b, input_precision="ieee")
        hidden = gate * (1 / (1 + tl.exp(-gate))) * up  # to the bit what the backward makes again
        tl.store(hidden_ptr + at, hidden.to(hidden_ptr.dtype.element_ty), there)


def adapted_swiglu(
    gate_NF: Tensor, up_NF: Tensor, low_NR: Tensor, gate_b_FR: Tensor, up_b_FR: Tensor
) -> Tensor:
    """hidden = silu(gate + low_gate B_gateᵀ) · (up + low_up B_upᵀ), N × F; `low` (N × 2R): gate's columns
    first."""
    (positions, width), rank = gate_NF.shape, gate_b_FR.shape[1]
    hidden_NF = torch.empty_like(gate_NF)
    _swiglu[_programs(GATE, positions, width)](
        gate_NF, up_NF, low_NR, gate_b_FR, up_b_FR, hidden_NF, positions, width,
        rank, _padded(rank), GATE.rows, GATE.columns, GATE.steps, GATE.stages, num_warps=GATE.warps,
    )  # fmt: skip
    return hidden_NF


@triton.jit
def _swiglu_backward(
    grad_ptr, gate_ptr, up_ptr, grad_low_ptr, low_ptr, down_a_ptr, gate_b_ptr, up_b_ptr, positions, width,
    RANK: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    STEPS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    columns, tile = _place(width, COLUMNS)
    down_a = _b(columns, width, down_a_ptr, 1, width, RANK, PADDED)
    gate_b = _b(columns, width, gate_b_ptr, RANK, 1, RANK, PADDED)
    up_b = _b(columns, width, up_b_ptr, RANK, 1, RANK, PADDED)
    dtype = gate_ptr.dtype.element_ty
    for step in tl.range(0, STEPS, num_stages=STAGES):
        first_row = (tile * STEPS + step) * ROWS
        rows, at, there = _tile(first_row, columns, positions, width, ROWS)
        grad, gate = tl.load(grad_ptr + at, there, 0.0), tl.load(gate_ptr + at, there, 0.0)
        up = tl.load(up_ptr + at, there, 0.0)
        grad_low = _low(rows, positions, grad_low_ptr, RANK, RANK, PADDED)
        gate_low = _low(rows, positions, low_ptr, 2 * RANK, RANK, PADDED)
        up_low = _low(rows, positions, low_ptr + RANK, 2 * RANK, RANK, PADDED)
        grad = grad.to(tl.float32) + tl.dot(grad_low, down_a, input_precision="ieee")
        gate = gate.to(tl.float32) + tl.dot(gate_low, gate_b, input_precision="ieee")
        up = up.to(tl.float32) + tl.dot(up_low, up_b, input_precision="ieee")
        sigmoid = 1 / (1 + tl.exp(-gate))
        silu = gate * sigmoid
        tl.store(grad_ptr + at, (silu * up).to(dtype), there)
        tl.store(gate_ptr + at, (grad * up * sigmoid * (1 + gate - silu)).to(dtype), there)
        tl.store(up_ptr + at, (grad * silu).to(dtype), there)


def adapted_swiglu_backward(
    grad_NF: Tensor,
    grad_low_NR: Tensor,
    down_a_RF: Tensor,
    gate_NF: Tensor,
    up_NF: Tensor,
    low_NR: Tensor,
    gate_b_FR: Tensor,
    up_b_FR: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden, grad_gate, grad_up), written into the memory of grad, gate and up, from grad_hidden = grad +
    grad_low A_down. Equations: `mlp`."""
    (positions, width), rank = gate_NF.shape, gate_b_FR.shape[1]
    _swiglu_backward[_programs(GATE, positions, width)](
        grad_NF, gate_NF, up_NF, grad_low_NR, low_NR, down_a_RF, gate_b_FR, up_b_FR, positions, width,
        rank, _padded(rank), GATE.rows, GATE.columns, GATE.steps, GATE.stages, num_warps=GATE.warps,
    )  # fmt: skip
    return grad_NF, gate_NF, up_NF


@triton.jit
def _sum(
    first_ptr, second_ptr, third_ptr, low_ptr, b_ptr, sum_ptr, positions, width,
    low_stride, b_stride_o, b_stride_r, ADDENDS: tl.constexpr,
    RANK: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    columns, tile = _place(width, COLUMNS)
    rows, at, there = _tile(tile * ROWS, columns, positions, width, ROWS)
    total = tl.load(first_ptr + at, there, 0.0).to(tl.float32)
    if ADDENDS > 1:
        total += tl.load(second_ptr + at, there, 0.0).to(tl.float32)
    if ADDENDS > 2:
        total += tl.load(third_ptr + at, there, 0.0).to(tl.float32)
    low = _low(rows, positions, low_ptr, low_stride, RANK, PADDED)
    b = _b(columns, width, b_ptr, b_stride_o, b_stride_r, RANK, PADDED)
    total += tl.dot(low, b, input_precision="ieee")
    tl.store(sum_ptr + at, total.to(sum_ptr.dtype.element_ty), there)


def sum_with_low_rank(addends_NO: Sequence[Tensor], low_NR: Tensor, b_OR: Tensor) -> Tensor:
    """The sum (N × O, a new tensor) of one to three addends and low bᵀ."""
    (positions, width), rank = addends_NO[0].shape, b_OR.shape[1]
    first, second, third = (*addends_NO, addends_NO[0], addends_NO[0])[:3]
    total_NO = torch.empty_like(first)
    _sum[_programs(SUM, positions, width)](
        first, second, third, low_NR, b_OR, total_NO, positions, width, low_NR.stride(0), *b_OR.stride(),
        len(addends_NO), rank, _padded(rank), SUM.rows, SUM.columns, num_warps=SUM.warps,
    )  # fmt: skip
    return total_NO


def _programs(tiling: Tiling, positions: int, width: int) -> tuple[int]:
    return (triton.cdiv(width, tiling.columns) * triton.cdiv(positions, tiling.rows * tiling.steps),)


def _padded(rank: int) -> int:
    return max(SMALLEST_DOT, triton.next_power_of_2(rank))
