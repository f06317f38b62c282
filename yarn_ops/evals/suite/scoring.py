"""From replies to scores: exact recall over all depths and by depth, the forced choice, the controls.

A cell may be asked in blocks, whole texts each, by different processes: what its blocks found, outcome by
outcome, is joined to the scores that it would have had whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from yarn_ops.evals.intervals import mean_interval, shares_interval
from yarn_ops.evals.suite.reader import Reader, Reply
from yarn_ops.evals.suite.sample import Question, Sample
from yarn_ops.records import Score

Asked = tuple[Question, Reply]
Group = tuple[str, float | None, Sequence[float]]
"""task, depth (None: all) and outcomes, of which a score is the mean"""

NATS = "nats"
"""end of a task's name: not a share"""


def ask_all(reader: Reader, samples: Iterable[Sample]) -> list[Asked]:
    """Every question of one text with the model's reply, in order; nothing read before counts."""
    reader.forget()
    asked: list[Asked] = []
    for sample in samples:
        reader.read(sample.context)
        asked += zip(sample.questions, reader.ask(sample.questions), strict=True)
    return asked


def recall(
    task: str, asked: Sequence[Asked], context_tokens: int, parts: int, seed: int, *, every_item: bool = False
) -> tuple[Score, ...]:
    """Shares of answers recalled exactly and chosen rightly; `/no-needle` is what is guessed.

    `every_item`: at each depth too, as `joined` needs it.
    """
    planted, control = _planted(asked)
    groups: list[Group] = [
        (task, None, [float(reply.exact) for _, reply in planted]),
        *(
            (task, depth, [float(reply.exact) for _, reply in pairs])
            for depth, pairs in _by_depth(planted, parts)
        ),
        (f"{task}/choice", None, _chosen(planted)),
        (f"{task}/no-needle", None, [float(reply.exact) for _, reply in control]),
        (f"{task}/choice/no-needle", None, _chosen(control)),
        (f"{task}/{NATS}", None, _nats(planted)),
    ]
    return _scores(groups, context_tokens, seed, every_item)


def continued(
    task: str, asked: Sequence[Asked], context_tokens: int, parts: int, seed: int, *, every_item: bool = False
) -> tuple[Score, ...]:
    """Shares of answer tokens that are the likeliest ones; intervals over answers. `every_item` as above."""
    planted, control = _planted(asked)
    groups: list[Group] = [
        (task, None, _right(planted)),
        (f"{task}/no-needle", None, _right(control)),
        *((task, depth, _right(pairs)) for depth, pairs in _by_depth(planted, parts)),
        (f"{task}/{NATS}", None, _nats(planted)),
    ]
    return _scores(groups, context_tokens, seed, every_item)


def joined(blocks: Sequence[tuple[Score, ...]]) -> tuple[Score, ...]:
    """The scores of a cell from those of its blocks, in order, with every item."""
    first = blocks[0][0]
    outcomes: dict[tuple[str, float | None], list[float]] = {}
    for block in blocks:
        for score in block:
            outcomes.setdefault((score.task, score.depth), []).extend(score.items)
    groups = [(task, depth, values) for (task, depth), values in outcomes.items()]
    return _scores(groups, first.context_tokens, first.seed, every_item=False)


def _planted(asked: Sequence[Asked]) -> tuple[list[Asked], list[Asked]]:
    """(what was asked about planted needles, the controls)"""
    return [pair for pair in asked if pair[0].planted], [pair for pair in asked if not pair[0].planted]


def _by_depth(planted: Sequence[Asked], parts: int) -> Iterable[tuple[float, list[Asked]]]:
    for part in range(parts):
        yield (part + 0.5) / parts, [pair for pair in planted if pair[0].part == part]


def _chosen(pairs: Sequence[Asked]) -> list[float]:
    return [float(reply.chosen) for _, reply in pairs if reply.chosen is not None]


def _right(pairs: Sequence[Asked]) -> list[float]:
    return [float(np.mean(reply.right)) for _, reply in pairs]


def _nats(planted: Sequence[Asked]) -> list[float]:
    """Mean nats a token of each true answer."""
    return [reply.nll / len(reply.right) for _, reply in planted]


def _scores(groups: Iterable[Group], context_tokens: int, seed: int, every_item: bool) -> tuple[Score, ...]:
    """The mean of every group that has outcomes, with its interval."""
    scores = []
    for task, depth, values in groups:
        if not values:
            continue
        interval = mean_interval(values) if task.endswith(f"/{NATS}") else shares_interval(values)
        low, high = interval or (None, None)
        scores.append(
            Score(
                task=task, context_tokens=context_tokens, depth=depth, value=float(np.mean(values)), low=low,
                high=high, samples=len(values), seed=seed,
                items=tuple(values) if depth is None or every_item else (),
            )
        )  # fmt: skip
    return tuple(scores)
