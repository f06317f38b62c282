"""Where attention goes when a model answers, and which heads find the answer.

Mass and entropy: of the rows that ask and answer, over all layers and heads; the first token apart (the
sink). A head retrieves where, as a token of the answer is to come, the key it attends to most is that token
within the needle (Wu et al., Retrieval Head Mechanistically Explains Long-Context Factuality, 2024). The
causal check: recall with the best such heads silenced, against as many others silenced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yarn_ops.data.haystack import Haystack
from yarn_ops.evals.cells import Cell, ModelUnderTest
from yarn_ops.evals.examples import Example, Question
from yarn_ops.evals.reader import SharedReader
from yarn_ops.evals.tasks import needles
from yarn_ops.models.attention_heads import EDGES, outputs_of, retrieved, silenced, summarise
from yarn_ops.scores import Score

SILENCED_SHARE = 0.05
"""of all heads at most, unless that is fewer than four"""
RETRIEVES = 0.1
"""share of answer tokens from which on a head is called a retrieval head, as in the paper"""
PARTS = 4
"""of the one text whose needles are asked for"""


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

    def scores(self, seed: int) -> tuple[Score, ...]:
        """As an evaluation's cell keeps it; `Diagnosis.of` reads it back."""

        def score(name: str, value: float, samples: int = 1, items: Sequence[float] = ()) -> Score:
            return Score.of(f"attention/{name}", self.context_tokens, value, None, samples, seed, items=items)

        heads = [number for head in self.heads for number in head]
        silenced = {"without": self.recall_without, "without-others": self.recall_without_others}
        return (
            score("recall", self.recall, self.silenced),
            score("sink", self.sink),
            score("entropy", self.entropy),
            score("mass", 1 - self.sink, items=[share for _, _, share in self.mass]),
            score("heads", self.retrieval_heads, self.all_heads, heads),
            *(score(name, recall) for name, recall in silenced.items() if recall is not None),
        )

    @classmethod
    def of(cls, scores: Sequence[Score]) -> Diagnosis | None:
        """None of no scores: where attention could not be looked at."""
        found = {score.task.removeprefix("attention/"): score for score in scores}
        if not found:
            return None
        heads, without = found["heads"], found.get("without")
        numbers = iter(heads.items)
        return cls(
            context_tokens=heads.context_tokens,
            mass=tuple(zip(EDGES, EDGES[1:], found["mass"].items, strict=False)),
            sink=found["sink"].value,
            entropy=found["entropy"].value,
            heads=tuple((int(layer), int(head), share) for layer, head, share in zip(*[numbers] * 3)),  # noqa: B905
            retrieval_heads=int(heads.value),
            all_heads=heads.samples,
            silenced=found["recall"].samples,
            recall=found["recall"].value,
            recall_without=without.value if without else None,
            recall_without_others=found["without-others"].value if without else None,
        )


def cell(haystack: Haystack, template: str, length: int, seed: int) -> Cell:
    """The diagnosis at a length; without scores where the model's text is read anew for every question."""

    def measure(under_test: ModelUnderTest) -> tuple[Score, ...]:
        examples = needles.grid((template,), haystack, length, PARTS, 1, seed)
        if not isinstance(under_test.reader, SharedReader):
            return ()
        under_test.reader.forget()
        return diagnose(under_test.reader, examples, length, seed).scores(seed)

    return Cell.whole("attention", length, (haystack.digest, template, PARTS), PARTS * length, measure)


def diagnose(reader: SharedReader, examples: Sequence[Example], context_tokens: int, seed: int) -> Diagnosis:
    """Attention and retrieval heads over the planted questions of `examples`, asked one by one."""
    asked = [
        (example, question) for example in examples for question in example.questions if question.planted
    ]
    bins = np.zeros(len(EDGES) - 1)
    sink = entropy = 0.0
    found: NDArray[np.float64] | None = None
    answered = 0
    for example, question in asked:
        reader.read(example.context)
        attention = reader.attended((*question.prompt, *question.answer[:-1]))
        places = _needle_places(example, question)
        summary = summarise(attention, len(question.prompt))
        bins += summary[0]
        sink += summary[1]
        entropy += summary[2]
        hits = retrieved(attention, places, len(question.answer))
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


def _needle_places(example: Example, question: Question) -> list[int]:
    """Where each token of the answer stands in the planted needle."""
    start = len(example.context) - question.distance
    text, answer = example.context[start:].tolist(), list(question.answer)
    # The needle's own spelling may differ in its first token (a blank before the value): then match the rest.
    for skipped in (0, 1):
        wanted = answer[skipped:]
        for at in range(len(text) - len(wanted) + 1):
            if text[at : at + len(wanted)] == wanted:
                return [start + at - skipped + step for step in range(len(answer))]
    return [-1] * len(answer)


def _recall(reader: SharedReader, asked: Sequence[tuple[Example, Question]]) -> float:
    hits = []
    for example, question in asked:
        reader.read(example.context)
        hits.append(reader.ask([Question(question.prompt, question.answer)])[0].exact)
    return float(np.mean(hits))


def _recall_without(
    reader: SharedReader, asked: Sequence[tuple[Example, Question]], heads: Sequence[tuple[int, int]]
) -> float | None:
    outputs = outputs_of(reader.model)
    if outputs is None:
        return None
    with silenced(reader.model, outputs, heads):
        return _recall(SharedReader(reader.model, reader.chunk_tokens), asked)
