"""RULER's other five tasks: variable tracking, common and frequent words, two kinds of question."""

from __future__ import annotations

import string
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.random import Generator

from yarn_ops.errors import DataError
from yarn_ops.evals.tasks.ruler_needles import NOISE
from yarn_ops.evals.tasks.ruler_text import LEAST_PASSAGES, WORD, Prompt, Texts

HOPS = 4
VARIABLES_TASK = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
VARIABLES_QUESTION = "\nQuestion: Find all variables that are assigned the value {value} in the text above."
VARIABLES_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} variables are "
    "assigned the value {value}, they are: "
)
DEMONSTRATION_LINES = 8

COMMON = 10
WORDS_TASK = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n"
)
WORDS_QUESTION = "\nQuestion: What are the 10 most common words in the above list?"
WORDS_PREFIX = " Answer: The top 10 words that appear most often in the list are:"
OFTEN, SELDOM = (30, 3), (6, 1)
"""(of a common word, of another): from 4,096 tokens on, and below"""
SHORT_TOKENS = 4096

CODED_TASK = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. "
)
CODED_QUESTION = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?"
)
CODED_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"
CODED_LETTERS, CODED_EXPONENT = 6, 2.0

PASSAGES_TASK = (
    "Answer the question based on the given documents. "
    "Only give me the answer and do not output any other words.\n\n"
)
PASSAGES_PREFIX = " Answer:"


def variables(texts: Texts, rng: Generator, units: int, context_tokens: int) -> Prompt:
    """A chain of assignments among lines of noise; all of its names are asked for, after a demonstration."""
    shown, names = _chain(rng, 3, DEMONSTRATION_LINES)
    asked, wanted = _chain(rng, 5, units)
    return Prompt(f"{shown}{' '.join(names)}\n\n{asked}", tuple(wanted))


def _chain(rng: Generator, letters: int, lines: int) -> tuple[str, list[str]]:
    names: dict[str, None] = {}
    while len(names) < HOPS + 1:
        names["".join(rng.choice(list(string.ascii_uppercase), letters))] = None
    chain, value = list(names), str(rng.integers(10_000, 99_999))
    statements = [f"VAR {chain[0]} = {value}"]
    statements += [f"VAR {name} = VAR {before} " for before, name in pairwise(chain)]
    places = np.sort(rng.integers(0, lines + 1, len(statements))).tolist()
    mixed: list[str] = []
    for line in range(lines + 1):
        mixed += [text for text, place in zip(statements, places, strict=True) if place == line]
        mixed += [NOISE] if line < lines else []
    question = VARIABLES_QUESTION.format(value=value)
    prefix = VARIABLES_PREFIX.format(value=value, count=len(chain))
    return f"{VARIABLES_TASK}{chr(10).join(mixed)}{question}{prefix}", chain


def common_words(texts: Texts, rng: Generator, units: int, context_tokens: int) -> Prompt:
    """Ten words that occur often among `units` others that occur seldom, after a demonstration."""
    often, seldom = OFTEN if context_tokens >= SHORT_TOKENS else SELDOM
    demonstration = (40, 10, 3) if context_tokens >= SHORT_TOKENS else (20, 3, 1)
    words = texts.some_words(rng, COMMON + units + demonstration[0])
    shown, found = _word_list(rng, words[: demonstration[0]], demonstration[1], demonstration[2])
    asked, wanted = _word_list(rng, words[demonstration[0] :], often, seldom)
    return Prompt(f"{shown} {_numbered(found)}\n{asked}", tuple(wanted))


def _word_list(rng: Generator, words: Sequence[str], often: int, seldom: int) -> tuple[str, list[str]]:
    common, others = list(words[:COMMON]), words[COMMON:]
    every = [word for word in common for _ in range(often)] + [word for word in others for _ in range(seldom)]
    mixed = [every[index] for index in rng.permutation(len(every))]
    return f"{WORDS_TASK}{_numbered(mixed)}{WORDS_QUESTION}{WORDS_PREFIX}", common


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))


def frequent_words(texts: Texts, rng: Generator, units: int, context_tokens: int) -> Prompt:
    """`units` made-up words by Zipf's law; the most frequent one is dots, the next three are asked for."""
    kinds = max(5, (context_tokens - 50) // 50)
    names: dict[str, None] = {}
    while len(names) < kinds:
        names["".join(rng.choice(list(string.ascii_lowercase), CODED_LETTERS))] = None
    vocabulary = ["....", *list(names)[1:]]
    zeta = np.pi**2 / 6  # of the exponent 2
    counts = np.floor(units * np.arange(1, kinds + 1) ** -CODED_EXPONENT / zeta).astype(int)
    for rank in (3, 2, 1):  # in short texts the law makes ties; the three asked for have to be the three
        counts[rank] = max(counts[rank], 2 if rank == 3 else counts[rank + 1] + 1)
    counts[4:] = np.minimum(counts[4:], counts[3] - 1)
    every = np.repeat(np.arange(kinds), counts)
    text = " ".join(vocabulary[index] for index in rng.permutation(every))
    return Prompt(f"{CODED_TASK}{text}{CODED_QUESTION}{CODED_PREFIX}", tuple(vocabulary[1:4]))


def cloze(texts: Texts, rng: Generator, units: int, context_tokens: int) -> Prompt:
    """Which word a line of one of `units` passages leaves out; that passage lies anywhere."""
    passages = _passages(texts, rng, units)
    gold = int(rng.integers(0, len(passages)))
    words = passages[gold].split()
    places = [at for at in range(3, len(words) - 2) if WORD.fullmatch(words[at]) and len(words[at]) >= 4] or [
        len(words) // 2
    ]
    at = int(rng.choice(places))
    line = " ".join([*words[max(0, at - 8) : at], "____", *words[at + 1 : at + 5]])
    return _asked(passages, f'Which word is left out here: "{line}"?', words[at])


def pointer(texts: Texts, rng: Generator, units: int, context_tokens: int) -> Prompt:
    """Two hops: a passage points to another one by number; what is that one's first word?"""
    passages = _passages(texts, rng, max(units, 2))
    start, end = rng.choice(len(passages), 2, replace=False).tolist()
    passages[start] += f" Document {start + 1} goes on in Document {end + 1}."
    question = f"What is the first word of the document in which Document {start + 1} goes on?"
    return _asked(passages, question, passages[end].split()[0])


def _passages(texts: Texts, rng: Generator, units: int) -> list[str]:
    if len(texts.passages) < LEAST_PASSAGES:
        raise DataError("documents: too few paragraphs of 12 to 90 words; give running text")
    repeat = units > len(texts.passages)
    return [texts.passages[index] for index in rng.choice(len(texts.passages), units, replace=repeat)]


def _asked(passages: Sequence[str], question: str, answer: str) -> Prompt:
    listed = "\n\n".join(f"Document {number}:\n{text}" for number, text in enumerate(passages, start=1))
    text = (
        f"{PASSAGES_TASK}The following are given documents.\n\n{listed}\n\n{PASSAGES_TASK}"
        f"Question: {question}{PASSAGES_PREFIX}"
    )
    return Prompt(text, (answer,))
