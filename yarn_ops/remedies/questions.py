"""Questions about a document, the same for every remedy.

Three families. `code` and `prose` are the samples of the recall evaluation (`yarn_ops.evals.recall`), taken
apart: the document ends where the first question begins, and each question is asked of the document alone.
`chain` needs two steps or more: the value of a key is the name of another key, and that one's value is the
answer (`KEY_abcd = efgh` … `KEY_efgh = 12345`), at places drawn independently of each other.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

from yarn_ops.errors import EvaluationError
from yarn_ops.evals.forward import Ids
from yarn_ops.evals.recall import KEY_LETTERS, TEMPLATES, VALUES, Encode, Sample, make_samples

Decode = Callable[[Sequence[int]], str]
"""token ids -> text"""

CONTINUATION_TOKENS = 64
CHAIN = "chain"
CHAIN_STEPS = 2
"""a -> b -> value"""
LINE = TEMPLATES["code"]


@dataclass(frozen=True)
class Question:
    """What is asked, what is expected, and where it lies."""

    text: str
    ids: tuple[int, ...]
    answer: tuple[int, ...]
    part: int | None
    """the equal part of the document that holds the answer, 0 = farthest; None: no part, or not planted"""
    planted: bool = True
    follow: Callable[[str], str | None] = lambda reply: None
    """the next question's text, if a reply only points on"""


@dataclass(frozen=True)
class Case:
    """A document and the questions asked of it, each alone."""

    document: Ids
    questions: tuple[Question, ...]
    continuation: Ids = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """what the text goes on with where the document ends; may be empty"""


def recall_cases(
    texts: Sequence[Ids],
    encode: Encode,
    decode: Decode,
    template: str,
    context_tokens: int,
    pairs: int,
    seed: int,
) -> list[Case]:
    """The recall evaluation's samples of `context_tokens` tokens as documents and separate questions."""
    samples = make_samples(texts, encode, template, context_tokens, pairs, seed)
    return [_take_apart(sample, encode, decode, template) for sample in samples]


def _take_apart(sample: Sample, encode: Encode, decode: Decode, template: str) -> Case:
    asked = TEMPLATES[template].question
    shape = re.compile(re.escape(asked).replace(re.escape("{key}"), f"([a-z]{{{KEY_LETTERS}}})") + "$")
    questions = []
    for answer in sample.answers:
        found = shape.search(decode(sample.ids[max(0, answer.start - 64) : answer.start].tolist()))
        assert found, "a sample of the recall evaluation holds no question where its answer begins"
        words = asked.format(key=found[1])
        ids = tuple(sample.ids[answer.start : answer.end].tolist())
        planted = answer.part is not None
        questions.append(Question(words, tuple(encode(words)), ids, answer.part, planted))
    return Case(sample.ids[: sample.answers[0].start - len(questions[0].ids)], tuple(questions))


def chain_cases(
    texts: Sequence[Ids],
    encode: Encode,
    context_tokens: int,
    chains: int,
    seed: int,
    steps: int = CHAIN_STEPS,
) -> list[Case]:
    """`chains` chains of `steps` lines in a document, which with a question and its answer has
    `context_tokens` at most.

    EvaluationError when the length cannot hold them.
    """
    rng = np.random.default_rng([seed, context_tokens, *CHAIN.encode()])
    return [_chain_case(text, encode, context_tokens, chains, steps, rng) for text in texts]


def _chain_case(
    text: Ids, encode: Encode, context_tokens: int, chains: int, steps: int, rng: Generator
) -> Case:
    keys = _distinct_keys(chains * steps, rng)
    values = [str(VALUES[int(index)]) for index in rng.choice(len(VALUES), chains, replace=False)]
    lines: list[Sequence[int]] = []
    questions = []
    for chain, value in enumerate(values):
        names = keys[chain * steps : (chain + 1) * steps]
        targets = [*names[1:], value]
        lines += [
            encode(LINE.plant.format(key=name, value=target))
            for name, target in zip(names, targets, strict=True)
        ]
        asked = LINE.question.format(key=names[0])
        answer = tuple(encode(LINE.answer.format(value=value)))
        questions.append(Question(asked, tuple(encode(asked)), answer, None, follow=follow_key))
    longest = max(len(question.ids) + len(question.answer) for question in questions)
    filler = context_tokens - longest - sum(map(len, lines))
    if filler < len(lines):
        raise EvaluationError(
            f"{context_tokens} tokens cannot hold {chains} chains of {steps} lines; ask for a longer context"
        )
    cuts = np.sort(rng.integers(0, filler, len(lines)))
    pieces: list[Sequence[int]] = []
    for line, start, end in zip(rng.permutation(len(lines)), [0, *cuts[:-1]], cuts, strict=True):
        pieces += [text[start:end].tolist(), lines[line]]
    pieces.append(text[cuts[-1] : filler].tolist())
    document = np.fromiter((token for piece in pieces for token in piece), dtype=np.int64)
    return Case(document, tuple(questions))


def text_cases(texts: Sequence[Ids], context_tokens: int) -> list[Case]:
    """Documents as they are and how they go on, `context_tokens` together; nothing is planted, nothing asked.

    A model that learned to be asked about what is planted expects a question where a document with planted
    pairs ends, so perplexity is measured on text alone.
    """
    cut = context_tokens - CONTINUATION_TOKENS
    return [Case(text[:cut], (), text[cut:context_tokens]) for text in texts]


def follow_key(reply: str) -> str | None:
    """The question for the key that a reply names instead of a value."""
    found = re.match(rf" ([a-z]{{{KEY_LETTERS}}})\b", reply)
    return LINE.question.format(key=found[1]) if found else None


def _distinct_keys(count: int, rng: Generator) -> list[str]:
    keys: dict[str, None] = {}
    while len(keys) < count:
        keys["".join(rng.choice(list(string.ascii_lowercase), KEY_LETTERS))] = None
    return list(keys)
