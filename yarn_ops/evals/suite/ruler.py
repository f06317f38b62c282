"""RULER's thirteen tasks, written anew over the user's own documents (Hsieh et al. 2024).

Prompts, counts, answer prefixes and scores are RULER's; a sample with the tokens it may write is as long as
fits the length. Other than there: the haystack, its words and its passages come from the documents; the two
question sets are cloze questions and pointers between passages; the passage asked about lies anywhere, the
common words stand anywhere; a length that cannot hold a task is refused. So read the figures beside the
published ones, not against them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator

from yarn_ops.errors import DataError
from yarn_ops.evals.intervals import shares_interval
from yarn_ops.evals.suite import ruler_lists, ruler_needles
from yarn_ops.evals.suite.haystack import Haystack
from yarn_ops.evals.suite.reader import Reader
from yarn_ops.evals.suite.ruler_text import Prompt, Texts
from yarn_ops.evals.suite.sample import Ids
from yarn_ops.records import Score

AVERAGE = "ruler/average"
RETRY = 0.97
"""of the units that fitted the first sample, for one that they do not fit"""

Build = Callable[[Texts, Generator, int, int], Prompt]
"""(texts, draws, units of haystack, tokens of the length) -> a prompt"""


@dataclass(frozen=True)
class Task:
    """How a task is made and scored."""

    build: Build
    written_tokens: int
    most_units: Callable[[int], int]
    """units of haystack that a length can hold at most, by its tokens"""
    match: Literal["all", "part"] = "all"
    """share of the references that are in the answer, or whether any is"""


def _words(tokens: int) -> int:
    return tokens


def _lines(tokens: int) -> int:
    return tokens // 8


def _entries(tokens: int) -> int:
    return tokens // 3


TASKS: Mapping[str, Task] = {
    **{
        name: Task(shape.build, 128, _words if shape.haystack == "essay" else _lines)
        for name, shape in ruler_needles.SHAPES.items()
    },
    "vt": Task(ruler_lists.variables, 30, _lines),
    "cwe": Task(ruler_lists.common_words, 120, _entries),
    "fwe": Task(ruler_lists.frequent_words, 50, _words),
    "qa_1": Task(ruler_lists.cloze, 32, _lines, "part"),
    "qa_2": Task(ruler_lists.pointer, 32, _lines, "part"),
}


@dataclass(frozen=True, eq=False)
class RulerSample:
    context: Ids
    prompt: tuple[int, ...]
    """the last tokens, read when the answer is written"""
    references: tuple[str, ...]
    written_tokens: int


def samples(name: str, haystack: Haystack, context_tokens: int, count: int, seed: int) -> list[RulerSample]:
    """`count` samples of at most `context_tokens` tokens, what may be written included.

    DataError when not even the least haystack fits.
    """
    task, texts = TASKS[name], Texts.of(haystack)
    room = context_tokens - task.written_tokens - len(haystack.prefix)

    def draw(index: int) -> Generator:
        return np.random.default_rng([seed, context_tokens, index, *name.encode()])

    def tokens_of(units: int, index: int) -> tuple[Prompt, Sequence[int]]:
        prompt = task.build(texts, draw(index), units, context_tokens)
        return prompt, haystack.encode(prompt.text)

    units = _most_units(lambda units: len(tokens_of(units, 0)[1]) <= room, task.most_units(context_tokens))
    found = []
    for index in range(count):
        tried = units
        while tried and len((made := tokens_of(tried, index))[1]) > room:
            tried = min(tried - 1, int(tried * RETRY))
        if not tried:
            raise DataError(f"ruler/{name}: {context_tokens} tokens cannot hold it; measure longer texts")
        prompt, ids = made
        whole = np.asarray([*haystack.prefix, *ids], dtype=np.int64)
        found.append(RulerSample(whole[:-1], (int(whole[-1]),), prompt.references, task.written_tokens))
    return found


def measure(
    reader: Reader, name: str, haystack: Haystack, decode: Callable[[Sequence[int]], str],
    context_tokens: int, count: int, seed: int,
) -> tuple[Score, ...]:  # fmt: skip
    """One task; DataError when the length cannot hold it."""
    asked = samples(name, haystack, context_tokens, count, seed)
    reader.forget()
    shares = [_answered(reader, sample, TASKS[name], decode) for sample in asked]
    return (_score(f"ruler/{name}", shares, context_tokens, seed),)


def joined(found: Sequence[tuple[Score, ...]]) -> tuple[Score, ...]:
    """The scores of the tasks that fitted, and their mean if all did."""
    scores = [score for (score,) in found]
    if len(scores) == len(TASKS):
        means = np.mean([score.items for score in scores], axis=0).tolist()
        scores.append(_score(AVERAGE, means, scores[0].context_tokens, scores[0].seed))
    return tuple(scores)


def matched(text: str, references: Sequence[str], match: Literal["all", "part"]) -> float:
    """RULER's string match, without regard to case."""
    hits = [reference.lower() in text.lower() for reference in references]
    return float(any(hits)) if match == "part" else sum(hits) / len(hits)


def _answered(
    reader: Reader, sample: RulerSample, task: Task, decode: Callable[[Sequence[int]], str]
) -> float:
    def share(written: Sequence[int]) -> float:
        return matched(_plain(decode(written)), sample.references, task.match)

    reader.read(sample.context)
    # A further token cannot lower a string match, so a full one ends the writing.
    return share(reader.write(sample.prompt, sample.written_tokens, lambda written: share(written) == 1))


def _most_units(fits: Callable[[int], bool], most: int) -> int:
    """The largest number of units up to `most` that fits; 0 when not even one does."""
    low, high = 0, max(1, most)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _score(task: str, shares: list[float], context_tokens: int, seed: int) -> Score:
    low, high = shares_interval(shares) or (None, None)
    return Score(
        task=task, context_tokens=context_tokens, value=float(np.mean(shares)), samples=len(shares),
        seed=seed, items=tuple(shares), low=low, high=high,
    )  # fmt: skip


def _plain(text: str) -> str:
    """Control characters as line breaks."""
    return "".join(letter if letter.isprintable() else "\n" for letter in text)
