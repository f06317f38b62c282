"""The same questions over every remedy, with what each costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import numpy as np
from pydantic import BaseModel, ConfigDict

from yarn_ops.evals.forward import Ids
from yarn_ops.evals.intervals import mean_interval, wilson
from yarn_ops.evals.recall import TEMPLATES, Encode, task_name
from yarn_ops.records import Score
from yarn_ops.remedies.questions import (
    CHAIN,
    CONTINUATION_TOKENS,
    Case,
    Decode,
    Question,
    chain_cases,
    recall_cases,
    text_cases,
)
from yarn_ops.remedies.remedy import Prepared, Remedy, Reply

PERPLEXITY = "perplexity/continuation"
PARTS = 4
CHAINS = 4
"""in a document; every second document has a version with chains"""
Progress = Callable[[int, int, str], None]
"""(documents done, documents to do, what comes next)"""


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

    def value(self, task: str, depth: float | None = None) -> float | None:
        for score in self.scores:
            if (score.task, score.depth) == (task, depth):
                return score.value
        return None


class SideBySide(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str
    context_tokens: int
    window_tokens: int
    """what the base was trained on"""
    device: str
    rows: tuple[Row, ...]
    unavailable: dict[str, str]


def families(
    texts: Ids, encode: Encode, decode: Decode, templates: Sequence[str], context_tokens: int, seed: int
) -> dict[str, list[Case]]:
    """The questions of every family, by task. texts: int64 [documents, context_tokens at least].

    EvaluationError where a family does not fit the length.
    """
    rows = list(texts)
    cases = {
        task_name(template): recall_cases(rows, encode, decode, template, context_tokens, PARTS, seed)
        for template in templates
    }
    chains = chain_cases(rows[::2], encode, context_tokens, CHAINS, seed)
    return cases | {task_name(CHAIN): chains, PERPLEXITY: text_cases(rows[::2], context_tokens)}


def measure(
    remedies: Sequence[Remedy], cases: Mapping[str, Sequence[Case]], seed: int, report: Progress
) -> tuple[Row, ...]:
    """Every remedy over every case of every family; one document is held at a time."""
    total = len(remedies) * sum(map(len, cases.values()))
    done = 0
    rows: list[Row] = []
    for remedy in remedies:
        _warm(remedy, next(iter(cases.values()))[0])
        tally = _Tally(remedy.name, seed)
        for task, some in cases.items():
            for case in some:
                report(done, total, f"{remedy.name}, {task}")
                tally.add(task, case, remedy.prefill(case.document))
                done += 1
        rows.append(tally.row())
    report(total, total, "measured")
    return tuple(rows)


def _warm(remedy: Remedy, case: Case) -> None:
    """What a first call costs (kernels chosen, buffers made) belongs to no remedy."""
    remedy.prefill(case.document[: 4 * CONTINUATION_TOKENS]).answer(case.questions[0])


class _Tally:
    """The sums of one remedy."""

    def __init__(self, name: str, seed: int) -> None:
        self._name, self._seed = name, seed
        self._hits: dict[tuple[str, float | None], list[bool]] = {}
        self._losses: list[float] = []
        self._prepare: list[tuple[float, int, int | None, int]] = []
        self._replies: list[Reply] = []
        self._lengths: dict[str, int] = {}

    def add(self, task: str, case: Case, prepared: Prepared) -> None:
        replies = [(question, prepared.answer(question)) for question in case.questions]
        losses = prepared.losses(case.continuation) if len(case.continuation) > 1 else None
        if losses is not None:
            self._losses.append(float(losses.mean(dtype=np.float64)))
        for question, reply in replies:
            for key in _cells(task, question):
                self._hits.setdefault(key, []).append(reply.ids == question.answer)
            self._replies.append(reply)
        held = prepared.held_bytes
        peaks = [prepared.cost.peak_bytes] + [
            None if reply.cost.peak_bytes is None else held + reply.cost.peak_bytes for _, reply in replies
        ]
        peak = None if None in peaks else max(peak for peak in peaks if peak is not None)
        self._prepare.append((prepared.cost.seconds, prepared.cost.tokens_read, peak, held))
        self._lengths[task] = max(
            self._lengths.get(task, 0),
            len(case.document)
            + max(
                [len(case.continuation), *(len(asked.ids) + len(asked.answer) for asked in case.questions)]
            ),
        )

    def row(self) -> Row:
        seconds, tokens, peaks, held = zip(*self._prepare, strict=True)
        return Row(
            remedy=self._name,
            scores=(*self._recall(), *self._perplexity()),
            prepare_s=fmean(seconds),
            answer_s=fmean(reply.cost.seconds for reply in self._replies),
            peak_bytes=None if None in peaks else max(peaks),
            held_bytes=max(held),
            prepare_tokens=round(fmean(tokens)),
            answer_tokens=round(fmean(reply.cost.tokens_read for reply in self._replies)),
            seen_tokens=round(fmean(reply.seen for reply in self._replies)),
        )

    def _recall(self) -> list[Score]:
        scores = []
        for (task, depth), hits in sorted(
            self._hits.items(), key=lambda item: (item[0][0], item[0][1] or 0.0)
        ):
            low, high = wilson(sum(hits), len(hits))
            length = self._lengths[task.removesuffix("/no-needle")]
            scores.append(
                Score(task=task, context_tokens=length, depth=depth, value=fmean(hits), low=low, high=high,
                      samples=len(hits), seed=self._seed)
            )  # fmt: skip
        return scores

    def _perplexity(self) -> list[Score]:
        if not self._losses:
            return []
        low, high = mean_interval(self._losses) or (None, None)
        return [
            Score(
                task=PERPLEXITY, context_tokens=self._lengths[PERPLEXITY],
                value=math.exp(fmean(self._losses)),
                low=None if low is None else math.exp(low), high=None if high is None else math.exp(high),
                samples=len(self._losses), seed=self._seed,
            )
        ]  # fmt: skip


def _cells(task: str, question: Question) -> list[tuple[str, float | None]]:
    """The scores that a question counts for."""
    if not question.planted:
        return [(f"{task}/no-needle", None)]
    return [(task, None), *([(task, part_depth(question.part))] if question.part is not None else [])]


def part_depth(part: int) -> float:
    """The middle of an equal part of a document, 0 = farthest from the questions."""
    return (part + 0.5) / PARTS


def recall_tasks(rows: Sequence[Row]) -> list[str]:
    """The recall families that were asked, in a fixed order."""
    names = [task_name(name) for name in (*TEMPLATES, CHAIN)]
    return [name for name in names if any(row.value(name) is not None for row in rows)]
