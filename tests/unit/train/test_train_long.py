"""Tensors of more than 2^31 elements, as windows of a million tokens have them: the last rows are those of a
small tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from yarn_ops.models.suffix import flash_attention_4
from yarn_ops.train.attention import Kernel, attend, attend_backward
from yarn_ops.train.elementwise import (
    cross_entropy,
    rms_norm,
    rms_norm_again,
    rotate,
    swiglu,
    swiglu_backward,
)
from yarn_ops.train.layer import Linear
from yarn_ops.train.projection import input_gradient, project

pytestmark = pytest.mark.gpu
ROWS, WIDTH, RANK = (1 << 20) + 256, 4096, 16
"""4 Gi elements"""
LAST = 256
NEEDED_GIB = 100


@pytest.fixture(autouse=True)
def large_gpu() -> None:
    if not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < NEEDED_GIB << 30:
        pytest.skip(f"needs a GPU with {NEEDED_GIB} GiB free")
    torch.cuda.empty_cache()


def values(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, dtype=torch.bfloat16, device="cuda", generator=generator)


def rotated(x: Tensor) -> Tensor:
    positions = torch.arange(len(x), device="cuda")[:, None] % LAST * 0.01
    cos, sin = (turn(positions.repeat(1, 128)).to(x.dtype)[None] for turn in (torch.cos, torch.sin))
    return rotate(x.view(1, len(x), -1, 128), cos, sin).view(len(x), -1)  # type: ignore[no-any-return]


def summed(x: Tensor) -> Tensor:
    from yarn_ops.train.kernels import sum_with_low_rank

    return sum_with_low_rank([x], x[:, :RANK].contiguous(), values(x.shape[1], RANK, seed=2))


def adapted(x: Tensor) -> Tensor:
    from yarn_ops.train.kernels import adapted_swiglu, adapted_swiglu_backward

    low, b = x[:, : 2 * RANK].contiguous(), values(x.shape[1], RANK, seed=2)
    hidden = adapted_swiglu(x, x, low, b, b)
    a = b.t().contiguous()
    return adapted_swiglu_backward(hidden, low[:, :RANK].contiguous(), a, x.clone(), x.clone(), low, b, b)[1]


def products(x: Tensor) -> Tensor:
    """A product with an adapter and a residual, then the gradient of its input."""
    linear = Linear(values(WIDTH, WIDTH, seed=1) / 64, None, values(WIDTH, RANK, seed=2) / 64)
    low = x[:, :RANK].contiguous()
    (y,) = project(x, low, [linear], residual_NO=x)
    return input_gradient([y], values(RANK, WIDTH, seed=3) / 64, low, [linear])


COMPUTED: dict[str, Callable[[Tensor], Any]] = {
    "rms_norm": lambda x: rms_norm(x, values(WIDTH), 1e-5),
    "rms_norm_again": lambda x: rms_norm_again(x, x, values(WIDTH), 1e-5, x)[1],
    "rotate": rotated,
    "swiglu": lambda x: swiglu(x, x),
    "swiglu_backward": lambda x: swiglu_backward(x.clone(), x.clone(), x.clone())[1],
    "cross_entropy": lambda x: cross_entropy(
        x.clone(), torch.arange(len(x), device="cuda") % LAST, 1.0, None
    )[1],
    "sum_with_low_rank": summed,
    "adapted_swiglu": adapted,
    "products": products,
}


@pytest.mark.parametrize("name", COMPUTED)
def test_the_last_rows_of_many_are_those_of_few(name: str) -> None:
    x = values(LAST, WIDTH, seed=4).repeat(ROWS // LAST, 1)
    few = COMPUTED[name](x[-LAST:].clone())
    many = COMPUTED[name](x)
    torch.testing.assert_close(many[-LAST:], few, rtol=2e-2, atol=5e-2)
    torch.testing.assert_close(many[:LAST], few, rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("kernel", ["fa4", "cudnn", "flash"])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(32, 8, 128), (64, 16, 64)])
def test_attention_of_the_last_window_of_many(kernel: Kernel, heads: int, kv_heads: int, width: int) -> None:
    if kernel == "fa4" and flash_attention_4() is None:
        pytest.skip("no FlashAttention-4 here")
    windows, tokens = 132, 4096
    sizes = [(heads, width), (heads, width), (kv_heads, width), (kv_heads, width)]
    grad, q, k, v = (
        values(1, tokens, *size, seed=seed).repeat(windows, 1, 1, 1) for seed, size in enumerate(sizes)
    )
    assert q.numel() > 2**31
    few = attention(kernel, grad[-1:].clone(), q[-1:].clone(), k[-1:].clone(), v[-1:].clone())
    for one, many in zip(few, attention(kernel, grad, q, k, v), strict=True):
        torch.testing.assert_close(many[-1:], one, rtol=5e-2, atol=5e-2)


def attention(kernel: Kernel, grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    attended = attend(kernel, q, k, v, None)
    return [attended.output_BTHK, *attend_backward(kernel, grad, q, k, v, attended, None)]
