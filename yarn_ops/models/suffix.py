"""Attention of a text's last rows over all of the text, without a mask of rows × keys.

All rows see the keys before them: one call without a mask, in which query heads that share a key head are
stacked as rows, so that no key is copied. Among themselves the rows see earlier rows, or what the mask of
packed questions allows: a second call. The two outputs are combined by their log-sum-exps, as FlashAttention
combines its blocks. PyTorch's own answer to this shape is FlashAttention-2 or a mask of rows × keys; this one
runs on whichever kernel is the quickest there.

Axes: B texts, H query heads, G key heads, R rows, N keys, D head width.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

log = logging.getLogger(__name__)
NAME = "yarn-ops-suffix"
"""No name here may say "flash", "sdpa", "flex_attention", "paged|" or have a slash: transformers would look
for a package, a kernel on the hub or a mask of its own by that name."""
PLANNED_TOKENS = 1024
"""cuDNN plans anew for every shape it has not met, which takes longer than attending: it gets rows and keys
in multiples of this alone, of one text, so that its shapes come again; what is left goes the way that plans
nothing"""
aten = torch.ops.aten

Kernel = Callable[[Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor]]
"""(query [B, H, R, D], key and value [B, G, N, D], causal, scale) -> output, log-sum-exp [B, H, R]"""


def stands_for(implementation: str) -> bool:
    """Whether `attend` computes what this implementation does: no soft cap, no sink of its own."""
    return implementation == "sdpa" or implementation.startswith(NAME)


def register_attention(device: str) -> tuple[str, ...]:
    """Register `attend` with transformers, once for each kernel of the device; their names, fastest first."""
    names = []
    for kernel, run in kernels(device).items():
        name = f"{NAME}-{kernel}"
        AttentionInterface.register(name, partial(attend, run))
        AttentionMaskInterface.register(name, _no_mask)
        names.append(name)
    return tuple(names)


def attend(
    kernel: Kernel,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """query [B, H, R, D], key and value [B, G, N, D] -> [B, R, H, D].

    The rows are the last R of the N; what comes before them is seen by all. Without a mask each row sees
    the rows up to itself, else those that the mask, bool [1, 1, R, N], allows.
    """
    rows, keys = query.shape[2], key.shape[2]
    if rows == keys or rows == 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    scale = float(scaling if scaling is not None else query.shape[-1] ** -0.5)
    attended = suffix_attention(kernel, query, key, value, attention_mask, scale)
    return attended.transpose(1, 2).contiguous(), None


def suffix_attention(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, scale: float
) -> Tensor:
    """query [B, H, R, D], key and value [B, G, N, D] -> [B, H, R, D]; `seen` as the mask of `attend`."""
    rows, keys = query.shape[2], key.shape[2]
    if seen is None and (rows == keys or kernel is _fa4):
        return kernel(query, key, value, True, scale)[0]
    if seen is not None and rows == keys:
        return _masked(query, key, value, seen, scale)[0]
    before, after = [keys - rows, rows], 2
    (key_before, key_own), (value_before, value_own) = key.split(before, after), value.split(before, after)
    far, far_sum = kernel(_by_key_head(query, key), key_before, value_before, False, scale)
    far, far_sum = far.reshape(query.shape), far_sum.reshape(query.shape[:-1])
    if seen is None:
        own, own_sum = kernel(query, key_own, value_own, True, scale)
    else:
        own, own_sum = _masked(query, key_own, value_own, seen[..., -rows:], scale)
    share = torch.sigmoid(far_sum.float() - own_sum.float().reshape(far_sum.shape))[..., None]
    return torch.lerp(own.float(), far.float(), share).to(query.dtype)


def _by_key_head(query: Tensor, key: Tensor) -> Tensor:
    """[B, H, R, D] -> [B, G, H / G · R, D]"""
    return query.reshape(query.shape[0], key.shape[1], -1, query.shape[-1])


def _masked(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """As a `Kernel`, by a mask of the rows; every row sees itself at least."""
    groups = query.shape[1] // key.shape[1]
    products = query.float() @ repeat_kv(key, groups).float().transpose(-1, -2) * scale
    products = products.masked_fill(~seen, -torch.inf)
    return products.softmax(-1).to(value.dtype) @ repeat_kv(value, groups), products.logsumexp(-1)


def _fa4(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Of fewer rows than keys, the last row sees the last key."""
    forward, _ = flash_attention_4()
    output, sums, *_ = forward(
        *(heads.transpose(1, 2) for heads in (q, k, v)), causal=causal, softmax_scale=scale, return_lse=True
    )
    return output.transpose(1, 2), sums


def _cudnn(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    behind = len(q) > 1 and (
        q.shape[2] != k.shape[2] or k.stride(0) != k[0].numel()
    )  # a cache, of any length
    if behind or q.shape[2] % PLANNED_TOKENS or k.shape[2] % PLANNED_TOKENS:
        return _tiled(q, k, v, causal, scale)
    output, sums, *_ = aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, True, 0.0, causal, False, scale=scale
    )
    return output, sums.reshape(q.shape[:-1])


def _tiled(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    output, sums, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
    return output, sums


def _on_cpu(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    groups = q.shape[1] // k.shape[1]
    output, sums = aten._scaled_dot_product_flash_attention_for_cpu(
        q, repeat_kv(k, groups), repeat_kv(v, groups), 0.0, causal, scale=scale
    )
    return output, sums


KERNELS: Mapping[str, Mapping[str, Kernel]] = {
    "cuda": {"fa4": _fa4, "cudnn": _cudnn, "tiled": _tiled},
    "cpu": {"cpu": _on_cpu},
}


def kernels(device: str) -> dict[str, Kernel]:
    """The kernels that run on this device type here, by name, fastest first."""
    found = dict(KERNELS.get(device, {}))
    if flash_attention_4() is None:
        found.pop("fa4", None)
    return found


def flash_attention_4() -> Any:
    """FlashAttention-4's (forward, backward) without autograd, on Hopper and Blackwell; None elsewhere, and
    where it is not installed."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] not in (9, 10):
        return None
    return import_flash_attention_4()


@functools.cache
def import_flash_attention_4() -> Any:
    """The same on any machine; it takes seconds, and does not touch a device. It reads in the environment
    where to keep what it compiles (`Settings.torch_environment`)."""
    try:
        interface: Any = importlib.import_module("flash_attn.cute.interface")
        own = interface._tile_size_bwd_sm90

        def for_long_windows(head: int, head_v: int, causal: bool, local: bool, **others: Any) -> Any:
            return own(head, head_v, False, False, **others)

        # Under a causal mask it takes 64 queries at a time, so that few are masked; without one, 80. In long
        # windows next to none are masked: 3 % less time at 32,768 tokens.
        interface._tile_size_bwd_sm90 = for_long_windows
        return interface._flash_attn_fwd, interface._flash_attn_bwd
    except Exception as error:  # an installation in parts, of another version, for another CUDA
        if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("flash_attn"):
            return None
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        log.warning("FlashAttention-4 cannot be loaded (%s); another attention serves in its place", why)
        return None


@contextmanager
def compiling_ahead() -> Iterator[None]:
    """Within the block tensors on a GPU have no data, and FlashAttention-4 compiles for them without reading
    or launching anything: no device is touched, though torch would open one for such tensors."""
    from torch._subclasses import fake_tensor

    opened: Any = fake_tensor.init_gpu_context
    fake_tensor.init_gpu_context = lambda device: None  # type: ignore[assignment]
    try:
        with fake_tensor.FakeTensorMode():
            yield
    finally:
        fake_tensor.init_gpu_context = opened


def compile_ahead(heads: int, key_heads: int, head_width: int) -> None:
    """Have FlashAttention-4 compile how a text's rows read it, if it is what runs on this machine."""
    if flash_attention_4() is None:
        return
    with compiling_ahead():
        rows, keys = (
            torch.empty(1, many, PLANNED_TOKENS, head_width, dtype=torch.bfloat16, device="cuda")
            for many in (heads, key_heads)
        )
        _fa4(rows, keys, keys, True, 1.0)
        _fa4(_by_key_head(rows, keys), keys, keys, False, 1.0)


def _no_mask(*sizes: Any, **options: Any) -> None:
    """Nothing is padded, so causality is all that a mask would say; packed questions bring their own."""
