"""Passes of the training step one by one: our kernels beside what they replace, and FlashAttention-4's tiles.

    python infra/benchmarks/step_kernels.py --tokens 32768

At Llama 3 8B's widths, rank 16, bf16; milliseconds a call on one GPU, by its events, in a burst and for half
a second. Together, on a chip that its power limits, they save less than one by one: `train_step.py` has the
step.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from yarn_ops.train import kernels
from yarn_ops.train.attention import HOPPER_FORWARD
from yarn_ops.train.elementwise import swiglu, swiglu_backward
from yarn_ops.train.kernels import Tiling

HIDDEN, MLP, RANK, HEADS, KV_HEADS, HEAD_WIDTH = 4096, 14336, 16, 32, 8, 128
TILINGS = [
    Tiling(64, 64, 4),
    Tiling(32, 128, 2),
    *(Tiling(64, 64, 4, steps=8, stages=stages) for stages in (1, 2, 3)),
    *(Tiling(rows, 128, 4, steps=16, stages=3) for rows in (16, 32)),
    Tiling(32, 128, 4, steps=16, stages=2),
]
FORWARDS: list[dict[str, Any]] = [
    {},
    {"tile_mn": (128, 160)},
    {"tile_mn": (128, 160), "pack_gqa": False},
    {"tile_mn": (128, 176), "pack_gqa": False},
    {"tile_mn": (192, 112), "num_threads": 512, "intra_wg_overlap": False},
    {"tile_mn": (192, 128), "num_threads": 512, "intra_wg_overlap": False},
    HOPPER_FORWARD[HEAD_WIDTH],
]
BURST_S, LONG_S = 0.01, 0.5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=32768)
    tokens = parser.parse_args().tokens
    passes(tokens)
    torch.cuda.empty_cache()
    if importlib.util.find_spec("flash_attn") is None:
        print("attention: FlashAttention-4 is not installed; pip install -e '.[gpu]'")
    else:
        attention(tokens)


def passes(tokens: int) -> None:
    gate, up, grad = (random(tokens, MLP) for _ in range(3))
    low, grad_low, x = random(tokens, 2 * RANK), random(tokens, RANK), random(tokens, HIDDEN)
    gate_b, up_b, down_a, b = random(MLP, RANK), random(MLP, RANK), random(RANK, MLP), random(HIDDEN, RANK)
    gate_low, up_low = low.split(RANK, dim=1)
    normal, weight = random(tokens, HIDDEN), random(MLP, HIDDEN)
    row("low Bᵀ of gate, written first", lambda: gate_low @ gate_b.t())
    row("product of gate, plain", lambda: normal @ weight.t())
    row("product of gate, onto it", lambda: (up_low @ up_b.t()).addmm_(normal, weight.t()))
    row("swiglu", lambda: swiglu(gate, up))
    row("its backward", lambda: swiglu_backward(grad, gate, up))
    row("a residual and low Bᵀ", lambda: torch.addmm(x, grad_low, b.t()))
    for tiling in TILINGS:
        kernels.GATE = kernels.SUM = tiling
        row(
            f"{tuple(tiling)} swiglu with adapters",
            lambda: kernels.adapted_swiglu(gate, up, low, gate_b, up_b),
        )
        row(
            f"{tuple(tiling)} its backward",
            lambda: kernels.adapted_swiglu_backward(grad, grad_low, down_a, gate, up, low, gate_b, up_b),
        )
        row(f"{tuple(tiling)} a residual and low Bᵀ", lambda: kernels.sum_with_low_rank([x], grad_low, b))


def attention(tokens: int) -> None:
    from flash_attn.cute import interface

    q, grad = (random(1, tokens, HEADS, HEAD_WIDTH) for _ in range(2))
    k, v = (random(1, tokens, KV_HEADS, HEAD_WIDTH) for _ in range(2))
    for chosen in FORWARDS:
        row(
            f"FlashAttention-4, {chosen or 'as it chooses'}",
            lambda chosen=chosen: interface._flash_attn_fwd(q, k, v, causal=True, return_lse=True, **chosen),
        )
    out, sums, *_ = interface._flash_attn_fwd(q, k, v, causal=True, return_lse=True)
    own = interface._tile_size_bwd_sm90
    for causal in (True, False):
        interface._tile_size_bwd_sm90 = lambda head, head_v, *_, causal=causal, **others: own(
            head, head_v, causal, False, **others
        )
        row(
            f"its backward, tiles of {'a causal' if causal else 'no'} mask",
            lambda: interface._flash_attn_bwd(q, k, v, out, grad, sums, causal=True),
        )
    interface._tile_size_bwd_sm90 = own


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.bfloat16, device="cuda")


def row(name: str, work: Callable[[], object]) -> None:
    """In a burst, and long enough for the chip's power to limit it."""
    work()
    once = milliseconds(work, 1)
    burst, long = (milliseconds(work, max(2, int(seconds * 1e3 / once))) for seconds in (BURST_S, LONG_S))
    print(f"{burst:8.3f} {long:8.3f} ms  {name}", flush=True)


def milliseconds(work: Callable[[], object], times: int) -> float:
    """Of one call, among so many."""
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    began.record()
    for _ in range(times):
        work()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / times


main()
