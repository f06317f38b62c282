"""Attention statistics of heads, and ablation of heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

EDGES = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576)
"""of bins by distance in tokens: from one edge up to the next"""
OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj")


def summarise(attention: Sequence[Tensor], asked_from: int) -> tuple[NDArray[np.float64], float, float]:
    """Means over layers, heads and the rows from `asked_from` on: attention mass in each bin of distance
    (EDGES), mass on the first token, entropy as a share of its maximum, log keys.

    `attention`: of each layer, the probabilities [heads, rows, keys].
    """
    bins = np.zeros(len(EDGES) - 1)
    sink = entropy = 0.0
    for layer in attention:
        rows = layer[:, asked_from - 1 :]
        keys = rows.shape[-1]
        at = torch.arange(keys - rows.shape[1], keys, device=rows.device)
        distance = at[:, None] - torch.arange(keys, device=rows.device)[None] + 1
        mean = rows.mean(0)
        sink += float(mean[:, 0].mean()) / len(attention)
        kept = mean.clone()
        kept[:, 0] = 0
        which = (
            torch.bucketize(distance.clamp(min=1), torch.tensor(EDGES, device=rows.device), right=True) - 1
        )
        sums = torch.zeros(len(EDGES), device=rows.device).index_add_(
            0, which.flatten().clamp(max=len(EDGES) - 2), kept.flatten()
        )
        bins += sums[:-1].double().cpu().numpy() / rows.shape[1] / len(attention)
        plogp = torch.where(rows > 0, rows * rows.clamp(min=1e-30).log(), torch.zeros_like(rows))
        entropy += float(-plogp.sum(-1).mean()) / np.log(keys) / len(attention)
    return bins, sink, entropy


def retrieved(attention: Sequence[Tensor], places: Sequence[int], tokens: int) -> NDArray[np.float64]:
    """[layers, heads]: for how many of the last `tokens` rows the key with the most attention, the first
    token aside, is the one at the row's place in `places`."""
    wanted = torch.tensor(places, device=attention[0].device)
    hits = []
    for layer in attention:
        rows = layer[:, -tokens:].clone()
        rows[..., 0] = 0  # the sink
        hits.append((rows.argmax(-1) == wanted[None]).sum(-1))
    return torch.stack(hits).double().cpu().numpy()


@contextmanager
def silenced(
    model: PreTrainedModel, outputs: Sequence[torch.nn.Module], heads: Sequence[tuple[int, int]]
) -> Iterator[None]:
    """A block in which the outputs of these (layer, head)s are 0; `outputs`: see `outputs_of`."""
    count = model.config.num_attention_heads

    def hook(silent: list[int]) -> Any:
        def zero(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (attended,) = inputs
            by_head = attended.unflatten(-1, (count, -1)).clone()
            by_head[..., silent, :] = 0
            return (by_head.flatten(-2),)

        return zero

    hooks = []
    for layer, output in enumerate(outputs):
        if silent := [head for at, head in heads if at == layer]:
            hooks.append(output.register_forward_pre_hook(hook(silent)))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def outputs_of(model: PreTrainedModel) -> list[torch.nn.Module] | None:
    """Each layer's output projection of attention; None where they are not found by their usual names."""
    found = [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in OUTPUTS and "attn" in name.rpartition(".")[0].rpartition(".")[2]
    ]
    return found if len(found) == getattr(model.config, "num_hidden_layers", -1) else None
