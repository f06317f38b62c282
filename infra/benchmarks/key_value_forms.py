r"""Why key-value lines are not learnt: the same pairs in three forms, by three alphabets.

    python infra/benchmarks/key_value_forms.py BASE DOCUMENTS_GLOB OUT ARM [ARM …] --factor 1 --batch 4 \
        --lengths .037,.122,.366

An ARM as in use.py, e.g. exercises:families=table:context=2048:steps=100. Of each cell: how often the value's
first token is right, its tokens one by one, the whole value (teacher-forced), and how often its first is
the key's. `json` is the evaluation's form of lines, `quoted` and `settings` are forms that exercises compose.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from use import Bench, main

from yarn_ops.evals.tasks.pairs import KEY_VALUE, KEY_VALUE_TASK
from yarn_ops.exercises.draw import DIGITS, LETTERS

TEXTS, QUESTIONS = 4, 8
ALPHABETS = {
    "hex": ("0123456789abcdef", 8),
    "letters": (LETTERS.upper() + DIGITS, 9),
    "digits": ("0123456789", 9),
}
FORMS = {
    "json": (KEY_VALUE_TASK, KEY_VALUE.plant, KEY_VALUE.question, KEY_VALUE.answer),
    "quoted": ("\n# environment\n", '{key}="{value}"\n', '\nenv of {key} printed: "', "{value}"),
    "settings": ("\nsettings:\n", "  {key}: {value}\n", "\nsettings.{key} ==>", " {value}"),
}


class FormsBench(Bench):
    """Trains as `Bench` does, and asks for key-value lines alone."""

    def measure(self, arm: str, model: Any, ruler_samples: int) -> None:
        began, found = time.perf_counter(), {}
        for form in FORMS:
            for alphabet in ALPHABETS:
                for tokens in self.lengths():
                    found[f"{form}/{alphabet}/{tokens}"] = shares(model, self.encode, form, alphabet, tokens)
        self.note(arm, found, began)


def shares(
    model: Any, encode: Callable[[str], list[int]], form: str, alphabet: str, tokens: int
) -> tuple[float, ...]:
    """Shares of first tokens, of all tokens and of whole values that are right; of first tokens that are
    wrong and the key's."""
    rng = np.random.default_rng([tokens, *alphabet.encode()])
    firsts, every, wholes, keys = [], [], [], []
    for _ in range(TEXTS):
        context, questions = lines(rng, encode, form, alphabet, tokens)
        for prompt, answer, key in questions:
            said = likeliest(model, [*context, *prompt], answer)
            right = [one == other for one, other in zip(said, answer, strict=True)]
            firsts.append(right[0])
            every += right
            wholes.append(all(right))
            keys.append(said[0] == key and not right[0])
    return tuple(round(float(np.mean(hits)), 2) for hits in (firsts, every, wholes, keys))


def lines(
    rng: Generator, encode: Callable[[str], list[int]], form: str, alphabet: str, tokens: int
) -> tuple[list[int], list[tuple[list[int], list[int], int]]]:
    """Lines up to so many tokens, and (prompt, answer, first token of the key) of some, evenly spread."""
    heading, plant, question, answer = FORMS[form]
    context, pairs = encode(heading), []
    while True:
        key, value = code(rng, alphabet), code(rng, alphabet)
        line = encode(plant.format(key=key, value=value))
        if len(context) + len(line) > tokens:
            break
        context += line
        asked = encode(question.format(key=key)), encode(answer.format(value=value))
        pairs.append((*asked, encode(answer.format(value=key))[0]))
    return context, [pairs[at] for at in np.linspace(0, len(pairs) - 1, QUESTIONS).astype(int).tolist()]


def code(rng: Generator, alphabet: str) -> str:
    symbols, length = ALPHABETS[alphabet]
    return "".join(symbols[index] for index in rng.integers(len(symbols), size=length).tolist())


@torch.inference_mode()
def likeliest(model: Any, prompt: list[int], answer: list[int]) -> list[int]:
    """The likeliest token at each place of the answer, given what stands before it."""
    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1]
    return logits.argmax(-1).tolist()


if __name__ == "__main__":
    main(FormsBench, __doc__)
