"""From replies to scores: exact recall over all depths and by depth, the forced choice, the controls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from yarn_ops.evals.intervals import mean_interval, shares_interval, wilson
from yarn_ops.evals.suite.reader import Reader, Reply
from yarn_ops.evals.suite.sample import Question, Sample
from yarn_ops.records import Score

Asked = tuple[Question, Reply]


def ask_all(reader: Reader, samples: Iterable[Sample]) -> list[Asked]:
    """Every question with the model's reply, in order."""
    asked: list[Asked] = []
    for sample in samples:
        reader.read(sample.context)
        asked += zip(sample.questions, reader.ask(sample.questions), strict=True)
    return asked


def recall(
    task: str, asked: Sequence[Asked], context_tokens: int, parts: int, seed: int
) -> tuple[Score, ...]:
    """Shares of answers recalled exactly and chosen rightly; `/no-needle` is what is guessed."""
    planted = [pair for pair in asked if pair[0].planted]
    control = [pair for pair in asked if not pair[0].planted]

    def score(name: str, hits: Sequence[bool], depth: float | None = None) -> list[Score]:
        if not hits:
            return []
        low, high = wilson(sum(hits), len(hits))
        return [
            Score(
                task=name, context_tokens=context_tokens, depth=depth, value=sum(hits) / len(hits), low=low,
                high=high, samples=len(hits), seed=seed,
                items=tuple(map(float, hits)) if depth is None else (),
            )
        ]  # fmt: skip

    scores = score(task, [reply.exact for _, reply in planted])
    for part in range(parts):
        hits = [reply.exact for question, reply in planted if question.part == part]
        scores += score(task, hits, (part + 0.5) / parts)
    scores += score(f"{task}/choice", _chosen(planted))
    scores += score(f"{task}/no-needle", [reply.exact for _, reply in control])
    scores += score(f"{task}/choice/no-needle", _chosen(control))
    return (*scores, *_likelihood(task, planted, context_tokens, seed))


def continued(
    task: str, asked: Sequence[Asked], context_tokens: int, parts: int, seed: int
) -> tuple[Score, ...]:
    """Shares of answer tokens that are the likeliest ones; intervals over answers."""
    planted = [pair for pair in asked if pair[0].planted]
    control = [pair for pair in asked if not pair[0].planted]
    groups: list[tuple[str, float | None, Sequence[Asked]]] = [
        (task, None, planted),
        (f"{task}/no-needle", None, control),
        *(
            (task, (part + 0.5) / parts, [pair for pair in planted if pair[0].part == part])
            for part in range(parts)
        ),
    ]
    scores = [
        _mean(
            name,
            [float(np.mean(reply.right)) for _, reply in pairs],
            context_tokens,
            depth,
            seed,
            shares_interval,
        )
        for name, depth, pairs in groups
        if pairs
    ]
    return (*scores, *_likelihood(task, planted, context_tokens, seed))


def _chosen(pairs: Sequence[Asked]) -> list[bool]:
    return [reply.chosen for _, reply in pairs if reply.chosen is not None]


def _likelihood(task: str, planted: Sequence[Asked], context_tokens: int, seed: int) -> list[Score]:
    """Mean nats a token of the true answers."""
    nats = [reply.nll / len(reply.right) for _, reply in planted]
    return [_mean(f"{task}/nats", nats, context_tokens, None, seed)] if nats else []


def _mean(
    task: str,
    values: Sequence[float],
    context_tokens: int,
    depth: float | None,
    seed: int,
    interval: Callable[[Sequence[float]], tuple[float, float] | None] = mean_interval,
) -> Score:
    low, high = interval(values) or (None, None)
    return Score(
        task=task, context_tokens=context_tokens, depth=depth, value=float(np.mean(values)), low=low,
        high=high, samples=len(values), seed=seed, items=tuple(values) if depth is None else (),
    )  # fmt: skip
