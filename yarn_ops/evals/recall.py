"""Key-value recall by distance: does something far away change the answer?

Fresh pairs are planted in held-out text, one in each equal part of the window, and asked for in random order
at its end. The value is teacher-forced: it counts as recalled when the likeliest token is the right one at
each of its places. One more question, asked last so that it cannot help the others, has no planted pair
(`recall/<template>/no-needle`): what is answered there is guessed.

A window is exactly as long as the length under test, in tokens, answers included.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from transformers import PreTrainedModel

from yarn_ops.errors import EvaluationError
from yarn_ops.evals.forward import Ids, correct_predictions
from yarn_ops.evals.intervals import wilson
from yarn_ops.records import Score

Encode = Callable[[str], Sequence[int]]
"""text -> token ids, no special tokens"""

KEY_LETTERS = 4
VALUES = range(10_000, 100_000)


@dataclass(frozen=True)
class Template:
    """One shape of a planted pair; `plant` and `question` hold {key}, `plant` and `answer` hold {value}."""

    plant: str
    question: str
    answer: str
    close: str


TEMPLATES: Mapping[str, Template] = {
    "code": Template("\nKEY_{key} = {value}\n", "\nassert KEY_{key} ==", " {value}", "\n"),
    "prose": Template(
        "\nThe special magic number for {key} is: {value}.\n",
        "\nWhat is the special magic number for {key}? It is:",
        " {value}",
        ".\n",
    ),
}


def task_name(template: str) -> str:
    return f"recall/{template}"


@dataclass(frozen=True)
class Answer:
    part: int | None
    """which equal part of the window holds the pair, 0 = farthest from the questions; None: not planted"""
    start: int
    end: int


@dataclass(frozen=True)
class Sample:
    ids: Ids
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class _Pair:
    """A key and its value, encoded."""

    plant: Sequence[int]
    question: Sequence[int]
    answer: Sequence[int]
    close: Sequence[int]

    @property
    def asking(self) -> int:
        return len(self.question) + len(self.answer) + len(self.close)


def make_samples(
    texts: Sequence[Ids], encode: Encode, template: str, context_tokens: int, pairs: int, seed: int
) -> list[Sample]:
    """One sample of exactly `context_tokens` tokens from each text (int64, that long at least).

    Draws depend on seed, template and length alone, so every model is asked the same. EvaluationError when
    the length cannot hold the pairs.
    """
    rng = np.random.default_rng([seed, context_tokens, *template.encode()])
    return [_sample(text, encode, template, context_tokens, pairs, rng) for text in texts]


def _sample(
    text: Ids, encode: Encode, template: str, context_tokens: int, pairs: int, rng: Generator
) -> Sample:
    *planted, unplanted = _draw_pairs(pairs + 1, encode, TEMPLATES[template], rng)
    needed = sum(len(pair.plant) + pair.asking for pair in planted) + unplanted.asking
    filler = context_tokens - needed
    if filler < pairs:
        raise EvaluationError(
            f"evaluate.lengths: {context_tokens} tokens cannot hold {pairs} {template} pairs and questions "
            f"({needed + pairs} tokens); measure longer windows or lower evaluate.recall_pairs"
        )
    cuts = ((np.arange(pairs) + rng.random(pairs)) / pairs * filler).astype(int)
    pieces: list[Sequence[int]] = []
    for part, (pair, start) in enumerate(zip(planted, [0, *cuts[:-1]], strict=True)):
        pieces += [text[start : cuts[part]].tolist(), pair.plant]
    pieces.append(text[cuts[-1] : filler].tolist())
    at = sum(map(len, pieces))
    answers = []
    for part in [*rng.permutation(pairs).tolist(), None]:
        pair = unplanted if part is None else planted[part]
        pieces += [pair.question, pair.answer, pair.close]
        start = at + len(pair.question)
        answers.append(Answer(part, start, start + len(pair.answer)))
        at += pair.asking
    ids = np.fromiter((token for piece in pieces for token in piece), dtype=np.int64)
    assert len(ids) == context_tokens
    return Sample(ids, tuple(answers))


def _draw_pairs(count: int, encode: Encode, template: Template, rng: Generator) -> list[_Pair]:
    """Pairs with distinct keys and distinct values."""
    keys: dict[str, None] = {}
    while len(keys) < count:
        keys["".join(rng.choice(list(string.ascii_lowercase), KEY_LETTERS))] = None
    values = rng.choice(len(VALUES), count, replace=False)
    return [
        _Pair(
            encode(template.plant.format(key=key, value=VALUES[value])),
            encode(template.question.format(key=key)),
            encode(template.answer.format(value=VALUES[value])),
            encode(template.close),
        )
        for key, value in zip(keys, values, strict=True)
    ]


def recall_scores(
    model: PreTrainedModel, samples: Sequence[Sample], template: str, pairs: int, seed: int
) -> tuple[Score, ...]:
    """Exact recall over all depths, by depth, and of the question without a needle; Wilson intervals."""
    hits = answered(model, samples)
    task, length = task_name(template), len(samples[0].ids)

    def score(name: str, some: NDArray[np.bool_], depth: float | None = None) -> Score:
        low, high = wilson(int(some.sum()), some.size)
        return Score(
            task=name, context_tokens=length, depth=depth, value=float(some.mean()), low=low, high=high,
            samples=some.size, seed=seed,
            items=tuple(some.ravel().astype(float).tolist()) if name == task and depth is None else (),
        )  # fmt: skip

    return (
        score(task, hits[:, :pairs]),
        *(score(task, hits[:, part], (part + 0.5) / pairs) for part in range(pairs)),
        score(f"{task}/no-needle", hits[:, pairs]),
    )


def answered(model: PreTrainedModel, samples: Sequence[Sample]) -> NDArray[np.bool_]:
    """Which values are recalled exactly: bool [samples, pairs + 1], by part, the unplanted one last."""
    ids = np.stack([sample.ids for sample in samples])
    first = min(answer.start for sample in samples for answer in sample.answers)
    right = correct_predictions(model, ids, ids.shape[1] - first)
    hits = np.zeros((len(samples), len(samples[0].answers)), dtype=bool)
    for row, sample in enumerate(samples):
        for answer in sample.answers:
            column = -1 if answer.part is None else answer.part
            hits[row, column] = right[row, answer.start - first : answer.end - first].all()
    return hits
