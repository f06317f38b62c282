"""A GPU's rates, measured on a model's own shapes before it trains, in about a second; what a step used."""

from __future__ import annotations

import functools
import resource
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from yarn_ops.train.attention import Kernel, attend, attend_backward
from yarn_ops.train.float8 import multiply, require_float8, to_rows
from yarn_ops.train.model_shape import ModelShape
from yarn_ops.train.plan import GIB, Rates

PROBE_POSITIONS = 1 << 15
PROBE_BYTES = 1 << 28
REPEATS = 3
SUSTAINED = 0.92
"""of a short burst's rate: over a step the chip's power limits it"""


class Gpu(NamedTuple):
    """A measured GPU."""

    name: str
    """part of the name that its driver gives"""
    memory_bytes: float
    peak_flops: float
    """FLOP/s of a large bf16 product in a short burst: the denominator of MFU"""
    rates: Rates
    """sustained over a step, with cuDNN's attention"""
    float8_products: float
    """in place of `rates.products`, where frozen weights are multiplied in 8 bits"""


GPUS = (
    Gpu("H100", 79.1 * GIB, 790e12, Rates(690e12, 540e12, 490e12, 3.0e12, 50e9), 1100e12),
    Gpu("H200", 139.8 * GIB, 790e12, Rates(726e12, 554e12, 500e12, 4.2e12, 50e9), 1100e12),
)


def known_gpu(name: str) -> Gpu | None:
    """The measured GPU of a device's name, such as `NVIDIA H100 80GB HBM3`; None when it was not measured."""
    return next((gpu for gpu in GPUS if gpu.name.lower() in name.lower()), None)


def measure_rates(
    shape: ModelShape, positions: int, window: int, kernel: Kernel, *, float8: bool = False
) -> Rates:
    """Rates of products (bf16; `float8`: in 8 bits, with quantising their left operand), attention by
    `kernel` and copies on the current CUDA device. TrainError where it cannot multiply in 8 bits."""
    heads = (shape.heads, shape.kv_heads, shape.head_width)
    rows, tokens = min(positions, PROBE_POSITIONS), min(window, PROBE_POSITIONS)
    return _measured(shape.hidden, shape.mlp, heads, rows, tokens, kernel, float8)


@functools.cache
def _measured(
    hidden: int, mlp: int, heads: tuple[int, int, int], rows: int, tokens: int, kernel: Kernel, float8: bool
) -> Rates:
    """`heads`: of queries, of keys, and their width."""
    x = _random(rows, hidden)
    weight = _random(mlp, hidden)
    if float8:
        require_float8()
        eight = to_rows(weight)
        product = _seconds(lambda: multiply(to_rows(x), eight, x.dtype))
    else:
        product = _seconds(lambda: x @ weight.t())

    queries, keys, width = heads
    q, grad = (_random(1, tokens, queries, width) for _ in range(2))
    k, v = (_random(1, tokens, keys, width) for _ in range(2))
    attended = attend(kernel, q, k, v, None)
    forward = _seconds(lambda: attend(kernel, q, k, v, None))
    backward = _seconds(lambda: attend_backward(kernel, grad, q, k, v, attended, None))
    flops = 4 * queries * width * tokens**2 / 2

    source = torch.empty(PROBE_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    host = torch.empty(PROBE_BYTES, dtype=torch.uint8, pin_memory=True)
    copy = _seconds(lambda: target.copy_(source))
    to_host = _seconds(lambda: host.copy_(source, non_blocking=True))
    from_host = _seconds(lambda: source.copy_(host, non_blocking=True))
    return Rates(
        products=SUSTAINED * 2 * rows * hidden * mlp / product,
        attention_forward=SUSTAINED * flops / forward,
        attention_backward=SUSTAINED * 2.5 * flops / backward,
        bytes=2 * PROBE_BYTES / copy,
        host_bytes=PROBE_BYTES / max(to_host, from_host),
    )


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.bfloat16, device="cuda")  # zeros would run faster than data does


def _seconds(work: Callable[[], object]) -> float:
    work()
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    began.record()
    for _ in range(REPEATS):
        work()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1e3 / REPEATS


def usage(device: str, flops_per_s: float) -> dict[str, Any]:
    """A step's use of its device: peak bytes so far (GPU allocator, or resident set), model FLOP/s, GPU
    utilisation where NVML is installed, and MFU on measured GPUs (`GPUS`)."""
    if device == "cpu":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"peak_bytes": peak, "flops_per_s": flops_per_s}
    figures = {"peak_bytes": torch.cuda.max_memory_allocated(), "flops_per_s": flops_per_s}
    if known := known_gpu(torch.cuda.get_device_name()):
        figures["mfu"] = flops_per_s / known.peak_flops
    with suppress(ModuleNotFoundError):  # NVIDIA's management library is an extra
        figures["gpu_utilisation"] = torch.cuda.utilization() / 100
    return figures
