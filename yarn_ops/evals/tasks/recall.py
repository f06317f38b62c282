"""Recall: needles of a text that are all asked for at its end, one after the other, in one forward.

- `recall/<template>`: one needle in each equal part of a text, asked for in random order; last, so that it
  cannot help the others, comes a key that was not planted. A long text holds needles of every form, each in
  each part, and is read once for all: their questions are mixed.
- `recall/chain`: the value of a key is the name of another key, and that one's value is the answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.random import Generator

from yarn_ops.data.haystack import Encode, Ids
from yarn_ops.errors import EvaluationError
from yarn_ops.evals import scoring
from yarn_ops.evals.cells import Block, Cell, ModelUnderTest
from yarn_ops.evals.examples import Example, Needle, Question, plant
from yarn_ops.evals.sequential import Looks
from yarn_ops.evals.tasks.needles import KEY_LETTERS, TEMPLATES, VALUES, distinct_keys, forms
from yarn_ops.scores import Score

CHAIN_STEPS = 2
"""a -> b -> value"""


def name_of(templates: Sequence[str]) -> str:
    """Of a cell: recall/code, recall/code+prose."""
    return f"recall/{'+'.join(templates)}"


def recall_cell(
    texts: Ids, encode: Encode, templates: Sequence[str], context_tokens: int, pairs: int, seed: int,
    text: str, *, chinese: bool = False, head: int = 0,
) -> Cell:  # fmt: skip
    """`recall/<template>` of these forms at a length, planted in the same texts. texts: int64, of that length
    at least, whose first `head` tokens stay first; text: digest of what they are from. EvaluationError when
    the length cannot hold the pairs."""
    name, tasks = name_of(templates), [f"recall/{template}" for template in templates]
    examples = recall_examples(list(texts), encode, templates, context_tokens, pairs, seed, chinese, head)
    looks = Looks.at(len(texts), pairs)

    def measure(some: range, under_test: ModelUnderTest) -> tuple[Score, ...]:
        asked = scoring.ask_in_turn(under_test.model, examples[some.start : some.stop])
        return scoring.recall_of(tasks, asked, context_tokens, pairs, seed, scoring.every_outcome)

    def keeps(task: str, depth: float | None) -> bool:
        return task in tasks and depth is None

    groups = [range(*edge) for edge in pairwise((0, *looks.texts))]
    blocks = tuple(
        Block(name if number == 1 else f"{name} {number}/{len(groups)}", context_tokens,
              len(some) * context_tokens, partial(measure, some))
        for number, some in enumerate(groups, start=1)
    )  # fmt: skip
    return Cell(
        name, context_tokens, (text, len(texts), pairs, looks.texts), blocks,
        partial(scoring.joined, tasks, keeps=keeps, looks=looks),
        tuple(range(1, len(groups))), partial(scoring.decided, looks, tasks),
    )  # fmt: skip


def recall_examples(
    texts: Sequence[Ids], encode: Encode, templates: Sequence[str], context_tokens: int, pairs: int,
    seed: int, chinese: bool = False, head: int = 0,
) -> list[Example]:  # fmt: skip
    """One example from each text (int64, long enough), of exactly `context_tokens` tokens with all questions
    and answers: `pairs` of each form.

    Draws depend on seed, templates and length alone, so every model is asked the same. EvaluationError when
    the length cannot hold the pairs.
    """
    rng = np.random.default_rng([seed, context_tokens, *"+".join(templates).encode()])
    return [
        _recall_example(text, encode, templates, context_tokens, pairs, rng, chinese, head) for text in texts
    ]


def _recall_example(
    text: Ids, encode: Encode, templates: Sequence[str], context_tokens: int, pairs: int, rng: Generator,
    chinese: bool, head: int,
) -> Example:  # fmt: skip
    count = len(templates) * (pairs + 1)
    keys = distinct_keys(count, rng)
    values = [str(VALUES[index]) for index in rng.choice(len(VALUES), count, replace=False)]
    planted: list[Needle] = []
    controls: list[Needle] = []
    for number, template in enumerate(templates):
        mine = slice(number * (pairs + 1), (number + 1) * (pairs + 1))
        needle = partial(forms(chinese)[template].needle, encode, closed=True, form=template)
        *some, control = map(needle, keys[mine], values[mine])
        planted += some
        controls.append(control)
    needed = sum(len(needle.plant) + needle.asking for needle in planted)
    needed += sum(control.asking for control in controls)
    filler = context_tokens - needed
    if filler < pairs:
        raise EvaluationError(
            f"evaluate.lengths: {context_tokens} tokens cannot hold {pairs} {' and '.join(templates)} pairs "
            f"and questions ({needed + pairs} tokens); measure longer windows or lower evaluate.recall_pairs"
        )
    cuts: list[int] = []
    for _ in templates:
        cuts += ((np.arange(pairs) + rng.random(pairs)) / pairs * filler).astype(int).tolist()
    cuts = [max(cut, head) for cut in cuts]
    context, _ = plant(text[:filler], [needle.plant for needle in planted], cuts)
    asked = [planted[number].question(number % pairs) for number in rng.permutation(len(planted)).tolist()]
    return Example(context, (*asked, *(control.question(None, planted=False) for control in controls)))


def chain_examples(
    texts: Sequence[Ids],
    encode: Encode,
    context_tokens: int,
    chains: int,
    seed: int,
    steps: int = CHAIN_STEPS,
) -> list[Example]:
    """`chains` chains of `steps` lines at places drawn independently of each other, in a context that with a
    question and its answer has `context_tokens` at most.

    EvaluationError when the length cannot hold them.
    """
    rng = np.random.default_rng([seed, context_tokens, *b"chain"])
    return [_chain_example(text, encode, context_tokens, chains, steps, rng) for text in texts]


def _chain_example(
    text: Ids, encode: Encode, context_tokens: int, chains: int, steps: int, rng: Generator
) -> Example:
    line = TEMPLATES["code"]
    keys = distinct_keys(chains * steps, rng)
    values = [str(VALUES[index]) for index in rng.choice(len(VALUES), chains, replace=False)]
    lines: list[Sequence[int]] = []
    questions = []
    for chain, value in enumerate(values):
        names = keys[chain * steps : (chain + 1) * steps]
        links = [
            line.needle(encode, name, target) for name, target in zip(names, [*names[1:], value], strict=True)
        ]
        lines += [link.plant for link in links]
        questions.append(Question(links[0].prompt, links[-1].answer, follow=follow_key))
    filler = context_tokens - max(question.tokens for question in questions) - sum(map(len, lines))
    if filler < len(lines):
        raise EvaluationError(
            f"{context_tokens} tokens cannot hold {chains} chains of {steps} lines; ask for a longer context"
        )
    cuts = np.sort(rng.integers(0, filler, len(lines))).tolist()
    order = rng.permutation(len(lines)).tolist()
    context, _ = plant(text[:filler], [lines[number] for number in order], cuts)
    return Example(context, tuple(questions))


def follow_key(reply: str) -> str | None:
    """The question for the key that a reply names instead of a value."""
    found = re.match(rf" ([a-z]{{{KEY_LETTERS}}})\b", reply)
    return TEMPLATES["code"].question.format(key=found[1]) if found else None
