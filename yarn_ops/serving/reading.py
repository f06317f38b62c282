"""Reading a fingerprint's texts: log-probabilities after each probe, by a model as it is or rounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from yarn_ops.models import lean
from yarn_ops.models.suffix import PLANNED_TOKENS, Kernel, kernels

BLOCK = 32
"""weights that share a scale, as in llama.cpp's files"""
HALF = "yarn-ops-half"
LEAN_KERNELS = ("cudnn", "tiled")
"""for whole texts, the quickest first; neither compiles anything"""
SAME_NATS = 0.05
"""root mean square between two ways through a text that differ in rounding alone; a wrong softmax scale or a
wrong token make several times that"""

Logprobs = NDArray[np.float32]
"""float32[probes, vocabulary]"""


@dataclass(frozen=True)
class TokenisedText:
    """A text up to its longest probe."""

    ids: list[int]
    places: list[int]
    """tokens of each probe"""


@torch.inference_mode()
def _logprobs(model: Any, ids: Sequence[int], places: Sequence[int], kernel: Kernel | None) -> Logprobs:
    """Of the next token after each number of tokens."""
    kept = torch.tensor([place - 1 for place in places], device=model.device)
    if kernel is not None:  # what comes after a text changes nothing in it, and one length is planned once
        ids = [*ids, *([0] * (-len(ids) % PLANNED_TOKENS))]
    with quick_products(model, kernel):
        answer = model(torch.tensor([ids], device=model.device), logits_to_keep=kept, use_cache=False)
    logprobs: Logprobs = answer.logits[0].float().log_softmax(-1).cpu().numpy()
    return logprobs


def forward(model: Any, texts: Sequence[TokenisedText], kernel: Kernel | None = None) -> Logprobs:
    """Log-probabilities of the next token after every probe.

    By the lean forward with `kernel`; None: by the model's own forward.
    """
    return np.concatenate([_logprobs(model, text.ids, text.places, kernel) for text in texts])


def forward_ends(
    model: Any,
    texts: Sequence[TokenisedText],
    whole: Logprobs,
    most_tokens: int,
    kernel: Kernel | None = None,
) -> Logprobs:
    """Of probes of more than so many tokens, where only that many are read: their last ones."""
    found = whole.copy()
    row = 0
    for text in texts:
        for place in text.places:
            if place > most_tokens:
                end = text.ids[place - most_tokens : place]
                found[row] = _logprobs(model, end, [most_tokens], kernel)[0]
            row += 1
    return found


def lean_kernel(model: Any, text: TokenisedText) -> Kernel | None:
    """The quickest kernel by which the lean forward of a float32 model on a GPU says of `text` what the
    model's own forward says; None where there is none, and elsewhere."""
    if model.device.type != "cuda" or model.dtype != torch.float32 or not lean.served(model):
        return None
    if model.config._attn_implementation != "sdpa":
        return None
    known, own = kernels("cuda"), forward(model, [text])
    for kernel in (known[name] for name in LEAN_KERNELS):
        with suppress(RuntimeError):  # not on this GPU, or not for heads of this width
            if float(np.sqrt(np.square(forward(model, [text], kernel) - own).mean())) <= SAME_NATS:
                return kernel
    return None


def with_bos(text: TokenisedText, bos: int) -> TokenisedText:
    """With a BOS token before it, or without the one that is there."""
    if text.ids[0] == bos:
        return TokenisedText(text.ids[1:], [place - 1 for place in text.places])
    return TokenisedText([bos, *text.ids], [place + 1 for place in text.places])


@torch.no_grad()
def round_weights(model: Any, bits: int) -> None:
    """Round every matrix in place, a scale for 32 weights; 8 bits: to the coarser of integers and floats."""
    for parameter in model.parameters():
        if parameter.ndim != 2 or parameter.shape[1] % BLOCK:
            continue
        blocks = parameter.view(-1, BLOCK)
        largest = blocks.abs().amax(-1, keepdim=True).clamp_min(1e-12)
        if bits == 8:  # float8_e4m3fn has 448 as its largest
            scaled = (blocks * (448 / largest)).to(torch.float8_e4m3fn).to(blocks.dtype) * (largest / 448)
        else:
            steps = 2 ** (bits - 1) - 0.5
            scaled = (blocks * (steps / largest)).round() * (largest / steps)
        blocks.copy_(scaled)


@contextmanager
def in_bfloat16(model: Any) -> Iterator[None]:
    """Within the block the parameters, not the frequencies, are bfloat16."""
    kept = [(parameter, parameter.data) for parameter in model.parameters()]
    try:
        for parameter, data in kept:
            parameter.data = data.bfloat16()
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


@contextmanager
def quick_products(model: Any, kernel: Kernel | None = None) -> Iterator[None]:
    """While it lasts, a float32 model on a GPU multiplies numbers of 10-bit fractions (TF32, and float16 in
    attention), summed in float32: eight times as exact as bfloat16, at its speed. Positions are multiplied by
    frequencies in float32: of those beyond 2,048 ten bits would lose the last ones.

    With `kernel` the model runs by the lean forward, whatever its precision and device.
    """
    with _attending(model, kernel), _ten_bit_products(model):
        yield


@contextmanager
def _attending(model: Any, kernel: Kernel | None) -> Iterator[None]:
    attention = model.config._attn_implementation
    if kernel is not None:
        lean.install(model, partial(_by_half, kernel))
    elif _quick(model) and attention == "sdpa":
        AttentionInterface.register(HALF, _attend_in_float16)
        AttentionMaskInterface.register(HALF, sdpa_mask)
        model.set_attn_implementation(HALF)
    try:
        yield
    finally:
        lean.remove(model)
        model.set_attn_implementation(attention)


def _quick(model: Any) -> bool:
    return model.device.type == "cuda" and model.dtype == torch.float32


@contextmanager
def _ten_bit_products(model: Any) -> Iterator[None]:
    if not _quick(model):
        yield
        return
    precision = torch.get_float32_matmul_precision()
    hooks = [
        hook
        for module in model.modules()
        if any("inv_freq" in name for name, _ in module.named_buffers(recurse=False))
        for hook in (
            module.register_forward_pre_hook(lambda *_: torch.set_float32_matmul_precision("highest")),
            module.register_forward_hook(lambda *_: torch.set_float32_matmul_precision("high")),
        )
    ]
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        torch.set_float32_matmul_precision(precision)


def _by_half(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """A `Kernel` of float32 heads that multiplies them in float16."""
    if query.dtype != torch.float32 or query.device.type == "cpu":
        return kernel(query, key, value, causal, scale)
    output, sums = kernel(query.half(), key.half(), value.half(), causal, scale)
    return output.to(query.dtype), sums


def _attend_in_float16(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    halves = (heads.half() for heads in (query, key, value))
    output, _ = sdpa_attention_forward(module, *halves, attention_mask, **options)
    return output.to(query.dtype), None
