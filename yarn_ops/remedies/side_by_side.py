"""Every remedy on the same questions: its scores and its costs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from yarn_ops.data.haystack import Encode, Ids
from yarn_ops.evals import scoring
from yarn_ops.evals.examples import Example
from yarn_ops.evals.intervals import exponential, mean_interval
from yarn_ops.evals.names import CHAIN, CONTINUATION, RECALL
from yarn_ops.evals.scoring import Answered, depth_of
from yarn_ops.evals.tasks.recall import chain_examples, recall_examples
from yarn_ops.progress import OnProgress
from yarn_ops.remedies.costs import metered
from yarn_ops.remedies.remedy import Remedy
from yarn_ops.scores import Score

PARTS = 4
CHAINS = 4
"""in a document; every second document has a version with chains"""
CONTINUATION_TOKENS = 64


@dataclass(frozen=True)
class Case:
    """A document, with questions that are asked one at a time, or with its continuation."""

    task: str
    example: Example
    continuation: Ids = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @property
    def tokens(self) -> int:
        """With the longest question and its answer."""
        asked = max((question.tokens for question in self.example.questions), default=0)
        return len(self.example.context) + max(asked, len(self.continuation))


class Row(BaseModel):
    """One remedy, over all documents. Costs are means, but the peak, which is the worst."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    remedy: str
    scores: tuple[Score, ...]
    """recall/code, recall/prose: over all parts, by part (depth) and no-needle; recall/chain;
    perplexity/continuation"""
    prepare_s: float
    answer_s: float
    peak_bytes: int | None
    """above weights: in use at the worst moment, what was held included"""
    held_bytes: int
    prepare_tokens: int
    """through the model before the first question"""
    answer_tokens: int
    """through the model for a question"""
    seen_tokens: int
    """that an answer's token is chosen from"""

    def score(self, task: str, depth: float | None = None) -> Score | None:
        return next((score for score in self.scores if (score.task, score.depth) == (task, depth)), None)

    def value(self, task: str, depth: float | None = None) -> float | None:
        score = self.score(task, depth)
        return None if score is None else score.value


class SideBySide(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str
    context_tokens: int
    window_tokens: int
    """what the base was trained on"""
    device: str
    rows: tuple[Row, ...]
    unavailable: dict[str, str]


def cases(texts: Ids, encode: Encode, templates: Sequence[str], context_tokens: int, seed: int) -> list[Case]:
    """The documents and questions of every family. texts: int64 [documents, context_tokens at least].

    Recall's are the evaluation's own, each question asked of the document alone. A model that learned to be
    asked about what is planted expects a question where a document with planted pairs ends, so perplexity is
    measured on text alone. EvaluationError where a family does not fit the length.
    """
    rows, half = list(texts), list(texts[::2])
    found = [
        Case(f"recall/{template}", example)
        for template in templates
        for example in recall_examples(rows, encode, (template,), context_tokens, PARTS, seed)
    ]
    found += [Case(CHAIN, example) for example in chain_examples(half, encode, context_tokens, CHAINS, seed)]
    cut = context_tokens - CONTINUATION_TOKENS
    return found + [Case(CONTINUATION, Example(text[:cut], ()), text[cut:context_tokens]) for text in half]


def measure(
    remedies: Sequence[Remedy], asked: Sequence[Case], device: torch.device, seed: int, progress: OnProgress
) -> tuple[Row, ...]:
    """Every remedy over every case; one document is held at a time."""
    total, rows = len(remedies) * len(asked), []
    for number, remedy in enumerate(remedies):
        first = asked[0].example
        remedy.read(first.context[: 4 * CONTINUATION_TOKENS])
        remedy.ask(first.questions[:1])  # what a first call costs (kernels, buffers) belongs to no remedy
        tally = _Tally(remedy, device, seed)
        for at, case in enumerate(asked):
            progress(number * len(asked) + at, total, f"{remedy.name}, {case.task}")
            tally.add(case)
        rows.append(tally.row())
    progress(total, total, "measured")
    return tuple(rows)


class _Cost(NamedTuple):
    """Of reading a document, or of an answer."""

    seconds: float
    peak_bytes: int | None
    """what was held before included"""
    tokens_read: int


class _Tally:
    """Collects one remedy's answers and costs."""

    def __init__(self, remedy: Remedy, device: torch.device, seed: int) -> None:
        self._remedy, self._device, self._seed = remedy, device, seed
        self._asked: defaultdict[str, list[Answered]] = defaultdict(list)
        self._lengths: dict[str, int] = {}
        self._losses: list[float] = []
        self._reading: list[_Cost] = []
        self._answering: list[_Cost] = []
        self._held: list[int] = []
        self._seen: list[int] = []

    def add(self, case: Case) -> None:
        remedy, task = self._remedy, case.task
        self._metered(self._reading, 0, lambda: remedy.read(case.example.context))
        self._held.append(remedy.held_bytes)
        self._lengths[task] = max(self._lengths.get(task, 0), case.tokens)
        for question in case.example.questions:
            (reply,) = self._metered(self._answering, self._held[-1], partial(remedy.ask, [question]))
            self._seen.append(remedy.seen)
            self._asked[task].append((question, reply))
        losses = remedy.losses(case.continuation) if len(case.continuation) else None
        if losses is not None:
            self._losses.append(float(losses.mean(dtype=np.float64)))

    def _metered(self, costs: list[_Cost], held: int, work: Callable[[], Any]) -> Any:
        before = self._remedy.read_tokens
        done, seconds, peak = metered(self._device, work)
        costs.append(_Cost(seconds, None if peak is None else held + peak, self._remedy.read_tokens - before))
        return done

    def row(self) -> Row:
        peaks = [cost.peak_bytes for cost in (*self._reading, *self._answering)]
        known = [peak for peak in peaks if peak is not None]
        return Row(
            remedy=self._remedy.name,
            scores=(*self._recall(), *self._perplexity()),
            prepare_s=fmean(cost.seconds for cost in self._reading),
            answer_s=fmean(cost.seconds for cost in self._answering),
            peak_bytes=max(known) if len(known) == len(peaks) else None,
            held_bytes=max(self._held),
            prepare_tokens=round(fmean(cost.tokens_read for cost in self._reading)),
            answer_tokens=round(fmean(cost.tokens_read for cost in self._answering)),
            seen_tokens=round(fmean(self._seen)),
        )

    def _recall(self) -> list[Score]:
        return [
            score
            for task, asked in self._asked.items()
            for score in scoring.recall(
                task, asked, self._lengths[task], PARTS, self._seed, keeps=lambda task, depth: False
            )
        ]

    def _perplexity(self) -> list[Score]:
        if not self._losses:
            return []
        mean, interval = math.exp(fmean(self._losses)), exponential(mean_interval(self._losses))
        length, count = self._lengths[CONTINUATION], len(self._losses)
        return [Score.of(CONTINUATION, length, mean, interval, count, self._seed)]


def part_depth(part: int) -> float:
    """The middle of an equal part of a document, 0 = farthest from the questions."""
    return depth_of(part, PARTS)


def recall_tasks(rows: Sequence[Row]) -> list[str]:
    """The recall families that were asked, in a fixed order."""
    return [name for name in (*RECALL, CHAIN) if any(row.value(name) is not None for row in rows)]


def by_part(rows: Sequence[Row], task: str) -> bool:
    """Whether a family tells where in the document its answers lie."""
    return any(row.value(task, part_depth(0)) is not None for row in rows)
