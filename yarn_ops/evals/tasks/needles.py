"""Needles: values planted in documents under keys, and asked for at the end.

A value is teacher-forced: it counts as found when the likeliest token is the right one at each of its
places. One family under several names, which differ in how they are planted and asked (and `recall`):

- `needle/<template>`: a few needles close together in one part of a text, each asked for alone, with the
  others' values as its wrong choices. The grid of one text goes from its end to its start, after a control
  without needles: so each text shares its beginning with the one before it (see `reader`). Long texts hold
  needles of every form in the same part, and are read once for all.
- `passkey`: the published prompt, one number in repeated noise.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.random import Generator

from yarn_ops.data.haystack import Encode, Haystack, Ids
from yarn_ops.evals.examples import Example, Needle, Question, draw_equal, plant, questions_of, require_room
from yarn_ops.evals.names import TRAINED
from yarn_ops.exercises import en, zh
from yarn_ops.exercises.draw import Draw
from yarn_ops.exercises.language import Form

KEY_LETTERS = 4
VALUES = range(10_000, 100_000)
NEEDLES = 4
"""of one text of a grid; so the forced choice is among four and chance is .25"""
FACT_ROOM_TOKENS = 256
"""of the shortest text, for each fact, where facts of several forms are planted in one"""


@dataclass(frozen=True)
class Template:
    """One form of a needle; `plant` and `question` hold {key}, `plant` and `answer` hold {value}."""

    plant: str
    question: str
    answer: str
    close: str = ""
    """what ends the answer where another question follows"""

    def needle(self, encode: Encode, key: str, value: str, *, closed: bool = False, form: str = "") -> Needle:
        return Needle(
            tuple(encode(self.plant.format(key=key, value=value))),
            tuple(encode(self.question.format(key=key))),
            tuple(encode(self.answer.format(value=value))),
            tuple(encode(self.close)) if closed else (),
            form,
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


def planted_together(templates: Sequence[str], facts: int, shortest: int) -> list[tuple[str, ...]]:
    """Which forms are planted in one text, so that it is read once for all of them: all, where the shortest
    length has room for so many `facts` of each; else every form has texts of its own. The same at all lengths
    of an evaluation, since one is judged by another."""
    if shortest >= FACT_ROOM_TOKENS * facts * len(templates):
        return [tuple(templates)]
    return [(template,) for template in templates]


def grid(
    templates: Sequence[str], haystack: Haystack, context_tokens: int, parts: int, texts: int, seed: int
) -> list[Example]:
    """Needles of these forms in `parts` equal parts of each of `texts` runs of the documents, the control
    first.

    DataError when the length cannot hold needles and question.
    """
    rng = np.random.default_rng([seed, context_tokens, parts, *"+".join(templates).encode()])
    used: set[str] = set()

    def draw(form: str) -> Needle:
        while (key := _key(rng)) in used:
            pass
        used.add(key)
        return forms(haystack.chinese)[form].needle(haystack.encode, key, value_of(rng), form=form)

    return [
        example
        for _ in range(texts)
        for example in _one_text(
            " and ".join(f"needle/{form}" for form in templates), [partial(draw, form) for form in templates],
            lambda tokens: haystack.run(rng, tokens), context_tokens, parts, len(haystack.prefix), rng,
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
        for example in _one_text("passkey", [draw], filler, context_tokens, parts, len(head), rng, needles=1)
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
        examples += _one_text(TRAINED, [needle], run, context_tokens, parts, len(haystack.prefix), rng)
    return examples


def _of_exercises(form: Form, draw: Draw, encode: Encode) -> Callable[[], Needle]:
    """Draws needles of a form; the first is as long as most are, since the others are to be as long."""

    def fresh() -> Needle:
        key, value = draw.key(form.key), draw.text(form.value)
        pieces = form.plant.format(k=key, v=value), form.ask.format(k=key), form.answer.format(v=value)
        planted, prompt, answer = (tuple(encode(piece)) for piece in pieces)
        return Needle(planted, prompt, answer)

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
    draws: Sequence[Callable[[], Needle]],
    filler_of: Callable[[int], Ids],
    context_tokens: int,
    parts: int,
    head: int,
    rng: Generator,
    needles: int = NEEDLES,
) -> list[Example]:
    """The control and, from the last part to the first, one example a part, with `needles` of each form. The
    longest form's questions end at the length, the others' before it."""
    by_form = [_drawn(draw, parts, needles) for draw in draws]
    asking = max(groups[0][0].asking for groups in by_form)
    text = filler_of(context_tokens - asking)  # what a needle takes is cut off its end

    def asked(part: int, told: int, distances: Sequence[int], *, planted: bool) -> tuple[Question, ...]:
        return tuple(
            question
            for form, groups in enumerate(by_form)
            for question in questions_of(
                groups[part], [told] * needles, distances[form * needles :][:needles], planted=planted
            )
        )

    examples = [Example(text, asked(parts - 1, 0, [0] * needles * len(by_form), planted=False))]
    for part in reversed(range(parts)):
        plants = [needle.plant for groups in by_form for needle in groups[part]]
        tokens = context_tokens - asking - sum(map(len, plants))
        require_room(task, tokens - head, 2 * parts, context_tokens)
        edges = np.linspace(head, tokens + 1, parts + 1).astype(int)  # the offsets head..tokens, split evenly
        offsets = rng.integers(edges[part], edges[part + 1], len(plants)).tolist()
        context, starts = plant(text[:tokens], plants, offsets)
        distances = [len(context) - start for start in starts]
        examples.append(Example(context, asked(part, part, distances, planted=True)))
    return examples


def _drawn(draw: Callable[[], Needle], parts: int, needles: int) -> list[list[Needle]]:
    """Needles of each part, as many tokens to ask for all of them."""
    groups = [draw_equal(needles, draw)]
    while len(groups) < parts:
        waiting = [groups[0][0]]
        groups.append(draw_equal(needles + 1, lambda: waiting.pop() if waiting else draw())[1:])  # noqa: B023
    return groups


def distinct_keys(count: int, rng: Generator) -> list[str]:
    keys: dict[str, None] = {}
    while len(keys) < count:
        keys[_key(rng)] = None
    return list(keys)


def _key(rng: Generator) -> str:
    return "".join(rng.choice(list(string.ascii_lowercase), KEY_LETTERS))


def value_of(rng: Generator) -> str:
    return str(rng.integers(10_000, 100_000))
