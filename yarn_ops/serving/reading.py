"""Reading a fingerprint's texts: log-probabilities after each probe, by a model as it is or rounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BLOCK = 32
"""weights that share a scale, as in llama.cpp's files"""
HALF = "yarn-ops-half"

Logprobs = NDArray[np.float32]
"""float32[probes, vocabulary]"""


@dataclass(frozen=True)
class TokenisedText:
    """A text up to its longest probe."""

    ids: list[int]
    places: list[int]
    """tokens of each probe"""


@torch.inference_mode()
def _logprobs(model: Any, ids: Sequence[int], places: Sequence[int]) -> Logprobs:
    """Of the next token after each number of tokens."""
    kept = torch.tensor([place - 1 for place in places], device=model.device)
    with quick_products(model):
        answer = model(torch.tensor([ids], device=model.device), logits_to_keep=kept, use_cache=False)
    logprobs: Logprobs = answer.logits[0].float().log_softmax(-1).cpu().numpy()
    return logprobs


def forward(model: Any, texts: Sequence[TokenisedText]) -> Logprobs:
    """Log-probabilities of the next token after every probe."""
    return np.concatenate([_logprobs(model, text.ids, text.places) for text in texts])


def forward_ends(model: Any, texts: Sequence[TokenisedText], whole: Logprobs, most_tokens: int) -> Logprobs:
    """Of probes of more than so many tokens, where only that many are read: their last ones."""
    found = whole.copy()
    row = 0
    for text in texts:
        for place in text.places:
            if place > most_tokens:
                found[row] = _logprobs(model, text.ids[place - most_tokens : place], [most_tokens])[0]
            row += 1
    return found


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
def quick_products(model: Any) -> Iterator[None]:
    """While it lasts, a float32 model on a GPU multiplies numbers of 10-bit fractions (TF32, and float16 in
    attention), summed in float32: eight times as exact as bfloat16, at its speed. Positions are multiplied by
    frequencies in float32: of those beyond 2,048 ten bits would lose the last ones."""
    if model.device.type != "cuda" or model.dtype != torch.float32:
        yield
        return
    precision, attention = torch.get_float32_matmul_precision(), model.config._attn_implementation
    if attention == "sdpa":
        AttentionInterface.register(HALF, _attend_in_float16)
        AttentionMaskInterface.register(HALF, sdpa_mask)
        model.set_attn_implementation(HALF)
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
        model.set_attn_implementation(attention)


def _attend_in_float16(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    halves = (heads.half() for heads in (query, key, value))
    output, _ = sdpa_attention_forward(module, *halves, attention_mask, **options)
    return output.to(query.dtype), None
