"""Copying without meaning: a random run of tokens again, and single-token pairs (MQAR).

Tokens are drawn from those of the documents, so that none is foreign to the model, and independently, so
that nothing but the context tells what comes next.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from yarn_ops.errors import DataError
from yarn_ops.evals.suite.haystack import Haystack
from yarn_ops.evals.suite.sample import (
    WRONG_CHOICES,
    Ids,
    Item,
    Question,
    Sample,
    plant,
    questions_of,
    require_room,
)

RUN_TOKENS = 16
"""of a copied run: the first half is given, the second is to follow"""
RUNS = 4
PAIRS = 16


def copy(haystack: Haystack, context_tokens: int, parts: int, texts: int, seed: int) -> list[Sample]:
    """Random runs planted in random tokens, uniform over each part; scored by tokens continued rightly."""
    rng = np.random.default_rng([seed, context_tokens, *b"copy"])
    words = np.unique(haystack.ids)
    head = len(haystack.prefix)
    require_room("copy", context_tokens - head - (RUNS + 1) * RUN_TOKENS, 2 * parts, context_tokens)
    samples = []
    for _ in range(texts):
        text = _noise(haystack, words, context_tokens, rng)
        control = [_run(words, rng) for _ in range(RUNS)]
        whole = context_tokens - RUN_TOKENS
        samples.append(Sample(text[:whole], questions_of(control, [0] * RUNS, [0] * RUNS, planted=False)))
        for part in reversed(range(parts)):
            items = [_run(words, rng) for _ in range(RUNS)]
            tokens = whole - RUNS * RUN_TOKENS
            edges = np.linspace(head, tokens + 1, parts + 1).astype(int)
            offsets = [int(offset) for offset in rng.integers(edges[part], edges[part + 1], RUNS)]
            context, starts = plant(text[:tokens], [item.plant for item in items], offsets)
            distances = [len(context) - start for start in starts]
            samples.append(Sample(context, questions_of(items, [part] * RUNS, distances)))
    return samples


def mqar(haystack: Haystack, context_tokens: int, parts: int, texts: int, seed: int) -> list[Sample]:
    """Multi-query associative recall (Arora et al., Zoology, 2023): pairs of tokens, uniform over distance.

    Keys occur once; values are distinct from keys and from one another.
    """
    rng = np.random.default_rng([seed, context_tokens, *b"mqar"])
    words = np.unique(haystack.ids)
    tokens = context_tokens - 2 * PAIRS - 2
    require_room("mqar", tokens, 2 * PAIRS, context_tokens)
    if len(words) < 4 * PAIRS:
        raise DataError(f"mqar: documents of {len(words)} different tokens; give more documents")
    samples = []
    for _ in range(texts):
        drawn = rng.permutation(words)
        keys, values, noise = drawn[: PAIRS + 1], drawn[PAIRS + 1 : 2 * PAIRS + 2], drawn[2 * PAIRS + 2 :]
        items = [
            Item((int(key), int(value)), (int(key),), (int(value),))
            for key, value in zip(keys, values, strict=True)
        ]
        control, planted = items[0], items[1:]
        text = _noise(haystack, noise, tokens, rng)
        offsets = [int(offset) for offset in rng.integers(len(haystack.prefix), tokens + 1, PAIRS)]
        context, starts = plant(text, [item.plant for item in planted], offsets)
        where = [min(parts - 1, parts * start // len(context)) for start in starts]
        questions = questions_of(planted, where, [len(context) - start for start in starts])
        others = tuple(item.answer for item in planted[:WRONG_CHOICES])
        lost = Question(control.prompt, control.answer, others, None, 0, planted=False)
        samples.append(Sample(context, (*questions, lost)))
    return samples


def _run(words: Ids, rng: Generator) -> Item:
    run = tuple(int(word) for word in rng.choice(words, RUN_TOKENS))
    return Item(run, run[: RUN_TOKENS // 2], run[RUN_TOKENS // 2 :])


def _noise(haystack: Haystack, words: Ids, tokens: int, rng: Generator) -> Ids:
    """What the tokenizer begins a text with, and random words."""
    head = np.asarray(haystack.prefix, dtype=np.int64)
    return np.concatenate([head, rng.choice(words, tokens - len(head))])
