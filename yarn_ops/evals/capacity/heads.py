"""Where attention goes when a model answers, and which heads find the answer.

Mass and entropy: of the rows that ask and answer, over all layers and heads; the first token apart (the
sink). A head retrieves where, as a token of the answer is to come, the key it attends to most is that token
within the needle (Wu et al., Retrieval Head Mechanistically Explains Long-Context Factuality, 2024). The
causal check: recall with the best such heads silenced, against as many others silenced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from yarn_ops.evals.suite.reader import SharedReader
from yarn_ops.evals.suite.sample import Question, Sample

EDGES = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576)
"""of bins by distance in tokens: from one edge up to the next"""
SILENCED_SHARE = 0.05
"""of all heads at most, unless that is fewer than four"""
RETRIEVES = 0.1
"""share of answer tokens from which on a head is called a retrieval head, as in the paper"""
OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj")


@dataclass(frozen=True)
class Diagnosis:
    """At one length."""

    context_tokens: int
    mass: tuple[tuple[int, int, float], ...]
    """(from, to, share of attention) by distance in tokens; with the sink they add to 1"""
    sink: float
    entropy: float
    """mean over rows and heads, divided by the log of the number of keys: 1 is uniform"""
    heads: tuple[tuple[int, int, float], ...]
    """(layer, head, share of answer tokens retrieved), best first: retrieval heads, ten at most"""
    retrieval_heads: int
    all_heads: int
    silenced: int
    recall: float
    recall_without: float | None
    """with the best retrieval heads silenced; None where the architecture's heads cannot be"""
    recall_without_others: float | None
    """with as many other heads silenced"""


def diagnose(reader: SharedReader, samples: Sequence[Sample], context_tokens: int, seed: int) -> Diagnosis:
    """Attention and retrieval heads over the planted questions of `samples`, asked one by one."""
    asked = [(sample, question) for sample in samples for question in sample.questions if question.planted]
    bins = np.zeros(len(EDGES) - 1)
    sink = entropy = 0.0
    found: NDArray[np.float64] | None = None
    answered = 0
    for sample, question in asked:
        reader.read(sample.context)
        attention = reader.attended((*question.prompt, *question.answer[:-1]))
        places = _needle_places(sample, question)
        summary = _summarise(attention, len(question.prompt))
        bins += summary[0]
        sink += summary[1]
        entropy += summary[2]
        hits = _retrieved(attention, places, len(question.answer))
        found = hits if found is None else found + hits
        answered += len(question.answer)
    assert found is not None, "a diagnosis needs questions"
    shares = found / answered
    order = np.dstack(np.unravel_index(np.argsort(-shares, axis=None), shares.shape))[0]
    ranked = tuple((int(layer), int(head), float(shares[layer, head])) for layer, head in order)
    retrieving = int((shares >= RETRIEVES).sum())
    silenced = max(1, min(retrieving, max(4, round(SILENCED_SHARE * shares.size))))
    best = [(layer, head) for layer, head, _ in ranked[:silenced]]
    rest = np.random.default_rng(seed).permutation(len(ranked) - silenced)[:silenced] + silenced
    others = [ranked[index][:2] for index in rest]
    return Diagnosis(
        context_tokens=context_tokens,
        mass=tuple(
            (EDGES[at], EDGES[at + 1], float(share / len(asked)))
            for at, share in enumerate(bins)
            if EDGES[at] < context_tokens
        ),
        sink=sink / len(asked),
        entropy=float(entropy / len(asked)),
        heads=tuple(row for row in ranked[:10] if row[2] >= RETRIEVES),
        retrieval_heads=retrieving,
        all_heads=int(shares.size),
        silenced=silenced,
        recall=_recall(reader, asked),
        recall_without=_recall_without(reader, asked, best),
        recall_without_others=_recall_without(reader, asked, others),
    )


def _summarise(attention: Sequence[Tensor], asked_from: int) -> tuple[NDArray[np.float64], float, float]:
    """Mean over layers, heads and answering rows: mass by distance, the sink's, entropy over log keys."""
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


def _retrieved(attention: Sequence[Tensor], places: Sequence[int], tokens: int) -> NDArray[np.float64]:
    """[layers, heads]: answer tokens whose place in the needle is what the head attends to most."""
    wanted = torch.tensor(places, device=attention[0].device)
    hits = []
    for layer in attention:
        rows = layer[:, -tokens:].clone()
        rows[..., 0] = 0  # the sink
        hits.append((rows.argmax(-1) == wanted[None]).sum(-1))
    return torch.stack(hits).double().cpu().numpy()


def _needle_places(sample: Sample, question: Question) -> list[int]:
    """Where each token of the answer stands in the planted needle."""
    start = len(sample.context) - question.distance
    text = sample.context[start:].tolist()
    answer = list(question.answer)
    for at in range(len(text) - len(answer) + 1):
        if text[at : at + len(answer)] == answer:
            return [start + at + step for step in range(len(answer))]
    # The needle's own spelling may differ in its first token (a blank before the value): match the rest.
    for at in range(len(text) - len(answer) + 2):
        if text[at : at + len(answer) - 1] == answer[1:]:
            return [start + at - 1 + step for step in range(len(answer))]
    return [-1] * len(answer)


def _recall(reader: SharedReader, asked: Sequence[tuple[Sample, Question]]) -> float:
    hits = []
    for sample, question in asked:
        reader.read(sample.context)
        hits.append(reader.ask([Question(question.prompt, question.answer)])[0].exact)
    return float(np.mean(hits))


def _recall_without(
    reader: SharedReader, asked: Sequence[tuple[Sample, Question]], heads: Sequence[tuple[int, int]]
) -> float | None:
    outputs = _outputs(reader.model)
    if outputs is None:
        return None
    with silenced(reader.model, outputs, heads):
        return _recall(SharedReader(reader.model, reader.chunk_tokens), asked)


@contextmanager
def silenced(
    model: PreTrainedModel, outputs: Sequence[torch.nn.Module], heads: Sequence[tuple[int, int]]
) -> Iterator[None]:
    """Within the block, these (layer, head)s contribute nothing."""
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


def _outputs(model: PreTrainedModel) -> list[torch.nn.Module] | None:
    """The linear layer after each layer's heads; None where they are not found by their usual names."""
    found = [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in OUTPUTS and "attn" in name.rpartition(".")[0].rpartition(".")[2]
    ]
    return found if len(found) == getattr(model.config, "num_hidden_layers", -1) else None
