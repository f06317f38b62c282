"""Copying without meaning: a random run of tokens again, and single-token pairs (MQAR).

Tokens are drawn from those of the documents, so that none is foreign to the model, and independently, so
that nothing but the context tells what comes next.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from yarn_ops.data.haystack import Haystack, Ids
from yarn_ops.errors import DataError
from yarn_ops.evals.examples import Example, Needle, control_of, plant, questions_of, require_room
from yarn_ops.evals.tasks.pairs import asked_where

RUN_TOKENS = 16
"""of a copied run: the first half is given, the second is to follow"""
RUNS = 4
PAIRS = 16


def copy(haystack: Haystack, context_tokens: int, parts: int, texts: int, seed: int) -> list[Example]:
    """Random runs planted in random tokens, uniform over each part; scored by tokens continued rightly."""
    rng = np.random.default_rng([seed, context_tokens, *b"copy"])
    words = np.unique(haystack.ids)
    head = len(haystack.prefix)
    require_room("copy", context_tokens - head - (RUNS + 1) * RUN_TOKENS, 2 * parts, context_tokens)
    examples = []
    for _ in range(texts):
        text = _noise(haystack, words, context_tokens, rng)
        control = [_run(words, rng) for _ in range(RUNS)]
        whole = context_tokens - RUN_TOKENS
        examples.append(Example(text[:whole], questions_of(control, [0] * RUNS, [0] * RUNS, planted=False)))
        for part in reversed(range(parts)):
            runs = [_run(words, rng) for _ in range(RUNS)]
            tokens = whole - RUNS * RUN_TOKENS
            edges = np.linspace(head, tokens + 1, parts + 1).astype(int)
            offsets = rng.integers(edges[part], edges[part + 1], RUNS).tolist()
            context, starts = plant(text[:tokens], [run.plant for run in runs], offsets)
            distances = [len(context) - start for start in starts]
            examples.append(Example(context, questions_of(runs, [part] * RUNS, distances)))
    return examples


def mqar(haystack: Haystack, context_tokens: int, parts: int, texts: int, seed: int) -> list[Example]:
    """Multi-query associative recall (Arora et al., Zoology, 2023): pairs of tokens, uniform over distance.

    Keys occur once; values are distinct from keys and from one another.
    """
    rng = np.random.default_rng([seed, context_tokens, *b"mqar"])
    words = np.unique(haystack.ids)
    tokens = context_tokens - 2 * PAIRS - 2
    require_room("mqar", tokens, 2 * PAIRS, context_tokens)
    if len(words) < 4 * PAIRS:
        raise DataError(f"mqar: documents of {len(words)} different tokens; give more documents")
    examples = []
    for _ in range(texts):
        drawn = rng.permutation(words)
        keys, values, noise = drawn[: PAIRS + 1], drawn[PAIRS + 1 : 2 * PAIRS + 2], drawn[2 * PAIRS + 2 :]
        control, *planted = (
            Needle((int(key), int(value)), (int(key),), (int(value),))
            for key, value in zip(keys, values, strict=True)
        )
        text = _noise(haystack, noise, tokens, rng)
        offsets = rng.integers(len(haystack.prefix), tokens + 1, PAIRS).tolist()
        context, starts = plant(text, [pair.plant for pair in planted], offsets)
        questions = asked_where(planted, starts, len(context), parts)
        examples.append(Example(context, (*questions, control_of(control, planted))))
    return examples


def _run(words: Ids, rng: Generator) -> Needle:
    run = tuple(int(word) for word in rng.choice(words, RUN_TOKENS))
    return Needle(run, run[: RUN_TOKENS // 2], run[RUN_TOKENS // 2 :])


def _noise(haystack: Haystack, words: Ids, tokens: int, rng: Generator) -> Ids:
    """What the tokenizer begins a text with, and random words."""
    head = np.asarray(haystack.prefix, dtype=np.int64)
    return np.concatenate([head, rng.choice(words, tokens - len(head))])
