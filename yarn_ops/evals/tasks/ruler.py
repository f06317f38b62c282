"""RULER's thirteen tasks, written anew over the user's own documents (Hsieh et al. 2024).

Prompts, counts, answer prefixes and scores are RULER's; an example with the tokens it may write is as long as
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

from yarn_ops.data.haystack import Decode, Haystack, Ids
from yarn_ops.errors import DataError
from yarn_ops.evals.cells import Block, Cell, ModelUnderTest, Size
from yarn_ops.evals.names import RULER_AVERAGE
from yarn_ops.evals.reader import Reader
from yarn_ops.evals.scoring import mean_score
from yarn_ops.evals.tasks import ruler_lists, ruler_needles
from yarn_ops.evals.tasks.ruler_text import Prompt, Texts
from yarn_ops.scores import Score

LINE_TOKENS, ENTRY_TOKENS = 8, 3
"""of a line of haystack, of an entry of a list, at least"""
RETRY = 0.97
"""of the units that fitted the first example, for one that they do not fit"""

Build = Callable[[Texts, Generator, int, int], Prompt]
"""(texts, draws, units of haystack, tokens of the length) -> a prompt"""


@dataclass(frozen=True)
class RulerTask:
    """How a task is made and scored."""

    build: Build
    written_tokens: int
    unit_tokens: int = 1
    """of one unit of haystack, at least"""
    match: Literal["all", "part"] = "all"
    """share of the references that are in the answer, or whether any is"""


TASKS: Mapping[str, RulerTask] = {
    **{
        name: RulerTask(variant.build, 128, 1 if variant.haystack == "essay" else LINE_TOKENS)
        for name, variant in ruler_needles.VARIANTS.items()
    },
    "vt": RulerTask(ruler_lists.variables, 30, LINE_TOKENS),
    "cwe": RulerTask(ruler_lists.common_words, 120, ENTRY_TOKENS),
    "fwe": RulerTask(ruler_lists.frequent_words, 50),
    "qa_1": RulerTask(ruler_lists.cloze, 32, LINE_TOKENS, "part"),
    "qa_2": RulerTask(ruler_lists.pointer, 32, LINE_TOKENS, "part"),
}


@dataclass(frozen=True, eq=False)
class Written:
    """An example whose answer is written freely."""

    context: Ids
    prompt: tuple[int, ...]
    """the last tokens, read when the answer is written"""
    references: tuple[str, ...]
    written_tokens: int


def cell(haystack: Haystack, size: Size, length: int, lengths: Sequence[int], seed: int) -> Cell:
    """All thirteen tasks at a length, a block each."""

    def block(name: str) -> Block:
        def measured(under_test: ModelUnderTest) -> tuple[Score, ...]:
            assert haystack.decode is not None, "RULER's answers are written, so they have to be decoded"
            asked = examples(name, haystack, length, size.ruler_samples, seed)
            return measure(under_test.reader, name, asked, haystack.decode, length, seed)

        return Block(f"ruler/{name}", length, size.ruler_samples * length, measured)

    asks = (haystack.digest, size.ruler_samples)
    return Cell("ruler", length, asks, tuple(map(block, TASKS)), joined)


def examples(name: str, haystack: Haystack, context_tokens: int, count: int, seed: int) -> list[Written]:
    """`count` examples of at most `context_tokens` tokens, what may be written included.

    DataError when not even the least haystack fits.
    """
    task, texts = TASKS[name], Texts.of(haystack)
    room = context_tokens - task.written_tokens - len(haystack.prefix)

    def draw(index: int) -> Generator:
        return np.random.default_rng([seed, context_tokens, index, *name.encode()])

    def tokens_of(units: int, index: int) -> tuple[Prompt, Sequence[int]]:
        prompt = task.build(texts, draw(index), units, context_tokens)
        return prompt, haystack.encode(prompt.text)

    units = _most_units(lambda units: len(tokens_of(units, 0)[1]) <= room, context_tokens // task.unit_tokens)
    found = []
    for index in range(count):
        tried = units
        while tried and len((made := tokens_of(tried, index))[1]) > room:
            tried = min(tried - 1, int(tried * RETRY))
        if not tried:
            raise DataError(f"ruler/{name}: {context_tokens} tokens cannot hold it; measure longer texts")
        prompt, ids = made
        whole = np.asarray([*haystack.prefix, *ids], dtype=np.int64)
        found.append(Written(whole[:-1], (int(whole[-1]),), prompt.references, task.written_tokens))
    return found


def measure(
    reader: Reader, name: str, asked: Sequence[Written], decode: Decode, context_tokens: int, seed: int
) -> tuple[Score, ...]:
    """One task."""
    reader.forget()
    shares = [_answered(reader, example, TASKS[name], decode) for example in asked]
    return (mean_score(f"ruler/{name}", context_tokens, shares, seed, shares=True),)


def joined(found: Sequence[tuple[Score, ...]]) -> tuple[Score, ...]:
    """The scores of the tasks that fitted, and their mean if all did."""
    scores = [score for (score,) in found]
    if len(scores) == len(TASKS):
        means = np.mean([score.items for score in scores], axis=0).tolist()
        scores.append(mean_score(RULER_AVERAGE, scores[0].context_tokens, means, scores[0].seed, shares=True))
    return tuple(scores)


def matched(text: str, references: Sequence[str], match: Literal["all", "part"]) -> float:
    """RULER's string match, without regard to case."""
    hits = [reference.lower() in text.lower() for reference in references]
    return float(any(hits)) if match == "part" else sum(hits) / len(hits)


def _answered(reader: Reader, example: Written, task: RulerTask, decode: Decode) -> float:
    def share(written: Sequence[int]) -> float:
        return matched(_plain(decode(written)), example.references, task.match)

    reader.read(example.context)
    # A further token cannot lower a string match, so a full one ends the writing.
    return share(reader.write(example.prompt, example.written_tokens, lambda written: share(written) == 1))


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


def _plain(text: str) -> str:
    """Control characters as line breaks."""
    return "".join(letter if letter.isprintable() else "\n" for letter in text)
