"""Needles: values planted in documents under keys, and asked for at the end.

A value is teacher-forced: it counts as found when the likeliest token is the right one at each of its
places. One family under several names, which differ in how they are planted and asked:

- `recall/<template>`: one needle in each equal part of a text, asked for in random order one after the
  other, in one forward; last, so that it cannot help the others, comes a key that was not planted.
- `recall/chain`: the value of a key is the name of another key, and that one's value is the answer.
- `needle/<template>`: a few needles close together in one part of a text, each asked for alone, with the
  others' values as its wrong choices. The grid of one text goes from its end to its start, after a control
  without needles: so each text shares its beginning with the one before it (see `reader`).
- `passkey`: the published prompt, one number in repeated noise.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.random import Generator

from yarn_ops.data.haystack import Encode, Haystack, Ids
from yarn_ops.errors import EvaluationError
from yarn_ops.evals import scoring
from yarn_ops.evals.cells import Block, Cell, ModelUnderTest
from yarn_ops.evals.examples import Example, Needle, Question, draw_equal, plant, questions_of, require_room
from yarn_ops.evals.names import TRAINED
from yarn_ops.evals.sequential import Looks
from yarn_ops.exercises import en, zh
from yarn_ops.exercises.draw import Draw
from yarn_ops.exercises.language import Form
from yarn_ops.scores import Score

KEY_LETTERS = 4
VALUES = range(10_000, 100_000)
NEEDLES = 4
"""of one text of a grid; so the forced choice is among four and chance is .25"""
CHAIN_STEPS = 2
"""a -> b -> value"""


@dataclass(frozen=True)
class Template:
    """One form of a needle; `plant` and `question` hold {key}, `plant` and `answer` hold {value}."""

    plant: str
    question: str
    answer: str
    close: str = ""
    """what ends the answer where another question follows"""

    def needle(self, encode: Encode, key: str, value: str, *, closed: bool = False) -> Needle:
        return Needle(
            tuple(encode(self.plant.format(key=key, value=value))),
            tuple(encode(self.question.format(key=key))),
            tuple(encode(self.answer.format(value=value))),
            tuple(encode(self.close)) if closed else (),
        )


TEMPLATES: Mapping[str, Template] = {
    "code": Template("\nKEY_{key} = {value}\n", "\nassert KEY_{key} ==", " {value}", "\n"),
    "prose": Template(
        "\nThe special magic number for {key} is: {value}.\n",
        "\nWhat is the special magic number for {key}? It is:",
        " {value}",
        ".\n",
    ),
}
IN_CHINESE: Mapping[str, Template] = {
    **TEMPLATES,
    "prose": Template(
        "\n与{key}对应的魔法数字：{value}。\n", "\n与{key}对应的魔法数字是多少？答：", "{value}", "。\n"
    ),
}
# Mohtashami and Jaggi, Landmark Attention (2023), appendix: the passkey prompt that later papers use.
PASSKEY_TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.\n"
)
PASSKEY_NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
PASSKEY = Template(
    "The pass key is {value}. Remember it. {value} is the pass key.\n",
    "\nWhat is the pass key? The pass key is",
    " {value}",
)
FIRST_OF = 64
TRAINED_KINDS = ("person", "constant", "name")
"""of keys, of which there are enough"""


def forms(chinese: bool) -> Mapping[str, Template]:
    """The templates in the documents' language."""
    return IN_CHINESE if chinese else TEMPLATES


def recall_cell(
    texts: Ids, encode: Encode, template: str, context_tokens: int, pairs: int, seed: int, text: str,
    *, chinese: bool = False, head: int = 0,
) -> Cell:  # fmt: skip
    """`recall/<template>` at a length. texts: int64, of that length at least, whose first `head` tokens stay
    first; text: digest of what they are from. EvaluationError when the length cannot hold the pairs."""
    task = f"recall/{template}"
    examples = recall_examples(list(texts), encode, template, context_tokens, pairs, seed, chinese, head)
    looks = Looks.at(len(texts), pairs)

    def measure(some: range, under_test: ModelUnderTest) -> tuple[Score, ...]:
        asked = scoring.ask_in_turn(under_test.model, examples[some.start : some.stop])
        return scoring.recall(task, asked, context_tokens, pairs, seed, scoring.every_outcome)

    def join(found: Sequence[tuple[Score, ...]]) -> tuple[Score, ...]:
        return scoring.joined(found, lambda name, depth: (name, depth) == (task, None), looks)

    groups = [range(*edge) for edge in pairwise((0, *looks.texts))]
    blocks = tuple(
        Block(task if number == 1 else f"{task} {number}/{len(groups)}", context_tokens,
              len(some) * context_tokens, partial(measure, some))
        for number, some in enumerate(groups, start=1)
    )  # fmt: skip
    return Cell(
        task, context_tokens, (text, len(texts), pairs, looks.texts), blocks, join,
        tuple(range(1, len(groups))), partial(scoring.decided, looks),
    )  # fmt: skip


def recall_examples(
    texts: Sequence[Ids], encode: Encode, template: str, context_tokens: int, pairs: int, seed: int,
    chinese: bool = False, head: int = 0,
) -> list[Example]:  # fmt: skip
    """One example from each text (int64, long enough), of exactly `context_tokens` tokens with all questions
    and answers.

    Draws depend on seed, template and length alone, so every model is asked the same. EvaluationError when
    the length cannot hold the pairs.
    """
    rng = np.random.default_rng([seed, context_tokens, *template.encode()])
    draw = partial(forms(chinese)[template].needle, encode, closed=True)
    return [_recall_example(text, draw, template, context_tokens, pairs, rng, head) for text in texts]


def _recall_example(
    text: Ids, needle: Callable[[str, str], Needle], template: str, context_tokens: int, pairs: int,
    rng: Generator, head: int,
) -> Example:  # fmt: skip
    keys = distinct_keys(pairs + 1, rng)
    values = [str(VALUES[index]) for index in rng.choice(len(VALUES), pairs + 1, replace=False)]
    *planted, control = map(needle, keys, values)
    needed = sum(len(needle.plant) + needle.asking for needle in planted) + control.asking
    filler = context_tokens - needed
    if filler < pairs:
        raise EvaluationError(
            f"evaluate.lengths: {context_tokens} tokens cannot hold {pairs} {template} pairs and questions "
            f"({needed + pairs} tokens); measure longer windows or lower evaluate.recall_pairs"
        )
    cuts = ((np.arange(pairs) + rng.random(pairs)) / pairs * filler).astype(int).tolist()
    cuts = [max(cut, head) for cut in cuts]
    context, _ = plant(text[:filler], [needle.plant for needle in planted], cuts)
    asked = [planted[part].question(part) for part in rng.permutation(pairs).tolist()]
    return Example(context, (*asked, control.question(None, planted=False)))


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


def grid(
    template: str, haystack: Haystack, context_tokens: int, parts: int, texts: int, seed: int
) -> list[Example]:
    """Needles in `parts` equal parts of each of `texts` runs of the documents, the control first.

    DataError when the length cannot hold needles and question.
    """
    rng = np.random.default_rng([seed, context_tokens, parts, *template.encode()])
    used: set[str] = set()

    def draw() -> Needle:
        while (key := _key(rng)) in used:
            pass
        used.add(key)
        return forms(haystack.chinese)[template].needle(haystack.encode, key, value_of(rng))

    return [
        example
        for _ in range(texts)
        for example in _one_text(
            f"needle/{template}", draw, lambda tokens: haystack.run(rng, tokens), context_tokens, parts,
            len(haystack.prefix), rng,
        )
    ]  # fmt: skip


def passkey(haystack: Haystack, context_tokens: int, parts: int, texts: int, seed: int) -> list[Example]:
    """The published prompt: one number in repeated noise, said twice, at a place uniform in each part."""
    rng = np.random.default_rng([seed, context_tokens, parts, *b"passkey"])
    encode = haystack.encode
    head = np.asarray([*haystack.prefix, *encode(PASSKEY_TASK)], dtype=np.int64)
    noise = np.asarray(encode(PASSKEY_NOISE), dtype=np.int64)

    def filler(tokens: int) -> Ids:
        return np.concatenate([head, np.resize(noise, max(0, tokens - len(head)))])

    def draw() -> Needle:
        return PASSKEY.needle(encode, "", value_of(rng))

    return [
        example
        for _ in range(texts)
        for example in _one_text("passkey", draw, filler, context_tokens, parts, len(head), rng, needles=1)
    ]


def trained(haystack: Haystack, context_tokens: int, parts: int, texts: int, seed: int) -> list[Example]:
    """As `grid`, in forms that exercises have: what training taught, apart from what it carries over to."""
    rng = np.random.default_rng([seed, context_tokens, parts, *TRAINED.encode()])
    language = zh.CHINESE if haystack.chinese else en.ENGLISH
    lookups = [form for form in language.lookup if form.key in TRAINED_KINDS and form.value == "number"]
    examples = []
    for _ in range(texts):
        form, draw = lookups[int(rng.integers(len(lookups)))], Draw(rng, language, context_tokens)
        needle, run = _of_exercises(form, draw, haystack.encode), partial(haystack.run, rng)
        examples += _one_text(TRAINED, needle, run, context_tokens, parts, len(haystack.prefix), rng)
    return examples


def _of_exercises(form: Form, draw: Draw, encode: Encode) -> Callable[[], Needle]:
    """Draws needles of a form; the first is as long as most are, since the others are to be as long."""

    def fresh() -> Needle:
        key, value = draw.key(form.key), draw.text(form.value)
        pieces = form.plant.format(k=key, v=value), form.ask.format(k=key), form.answer.format(v=value)
        return Needle(*(tuple(encode(piece)) for piece in pieces))

    by_length: dict[tuple[int, int], list[Needle]] = {}
    for needle in (fresh() for _ in range(FIRST_OF)):
        by_length.setdefault((len(needle.prompt), len(needle.answer)), []).append(needle)
    first = max(by_length.values(), key=len)[:1]
    return lambda: first.pop() if first else fresh()


def draw_many(template: str, haystack: Haystack, count: int, rng: Generator) -> list[Needle]:
    """`count` needles that are asked for in as many tokens, with different values."""
    form = forms(haystack.chinese)[template]
    return draw_equal(count, lambda: form.needle(haystack.encode, _key(rng), value_of(rng)))


def _one_text(
    task: str,
    draw: Callable[[], Needle],
    filler_of: Callable[[int], Ids],
    context_tokens: int,
    parts: int,
    head: int,
    rng: Generator,
    needles: int = NEEDLES,
) -> list[Example]:
    """The control and, from the last part to the first, one example a part."""
    groups = [draw_equal(needles, draw)]
    first = groups[0][0]
    while len(groups) < parts:  # as many tokens to ask for as the first
        waiting = [first]
        groups.append(draw_equal(needles + 1, lambda: waiting.pop() if waiting else draw())[1:])  # noqa: B023
    text = filler_of(context_tokens - first.asking)  # what a needle takes is cut off its end
    control = questions_of(groups[-1], [0] * needles, [0] * needles, planted=False)
    examples = [Example(text, control)]
    for part in reversed(range(parts)):
        group = groups[part]
        tokens = context_tokens - first.asking - sum(len(needle.plant) for needle in group)
        require_room(task, tokens - head, 2 * parts, context_tokens)
        edges = np.linspace(head, tokens + 1, parts + 1).astype(int)  # the offsets head..tokens, split evenly
        offsets = rng.integers(edges[part], edges[part + 1], needles).tolist()
        context, starts = plant(text[:tokens], [needle.plant for needle in group], offsets)
        distances = [len(context) - start for start in starts]
        examples.append(Example(context, questions_of(group, [part] * needles, distances)))
    return examples


def distinct_keys(count: int, rng: Generator) -> list[str]:
    keys: dict[str, None] = {}
    while len(keys) < count:
        keys[_key(rng)] = None
    return list(keys)


def _key(rng: Generator) -> str:
    return "".join(rng.choice(list(string.ascii_lowercase), KEY_LETTERS))


def value_of(rng: Generator) -> str:
    return str(rng.integers(10_000, 100_000))
