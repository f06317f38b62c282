"""RULER's eight needle tasks."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator

from yarn_ops.evals.tasks.ruler_text import Prompt, Texts

Kind = Literal["words", "numbers", "uuids"]

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
TASK = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n"
)
QUESTION = "\nWhat are all the special magic {kind} for {query} mentioned in the provided text?"
PREFIX = " The special magic {kind} for {query} mentioned in the provided text are"
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DEPTHS = np.linspace(0, 100, 40).round()


@dataclass(frozen=True)
class Variant:
    """Its haystack, what keys and values are, how many keys, values and queries."""

    haystack: Literal["noise", "essay", "needles"]
    keys_are: Kind = "words"
    values_are: Kind = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1

    def build(self, texts: Texts, rng: Generator, units: int, context_tokens: int) -> Prompt:
        """One prompt whose haystack has `units` lines (noise, needles) or words (essay)."""
        keys = [_value(self.keys_are, texts, rng) for _ in range(max(self.keys, self.queries))]
        values = [[_value(self.values_are, texts, rng) for _ in range(self.values)] for _ in keys]
        needles = [
            NEEDLE.format(kind=self.values_are, key=key, value=value)
            for key, own in zip(keys, values, strict=True)
            for value in own
        ]
        needles = [needles[index] for index in rng.permutation(len(needles))]
        if self.haystack == "essay":
            context = _between_sentences(texts.sentences(rng, units), needles, rng)
        else:
            context = "\n".join(_between_lines(self._lines(texts, rng, units), needles, rng))
        asked = rng.choice(len(keys), self.queries, replace=False).tolist()
        references = tuple(value for index in asked for value in values[index])
        query = _listed([keys[index] for index in asked])
        task, question, prefix = (
            text.format(kind=self.values_are, query=query) for text in (TASK, QUESTION, PREFIX)
        )
        if len(references) == 1:
            task, question, prefix = (_singular(text, self.values_are) for text in (task, question, prefix))
        return Prompt(f"{task}{context}{question}{prefix}", references)

    def _lines(self, texts: Texts, rng: Generator, units: int) -> list[str]:
        if self.haystack == "noise":
            return [NOISE] * units
        return [
            NEEDLE.format(
                kind=self.values_are,
                key=_value(self.keys_are, texts, rng),
                value=_value(self.values_are, texts, rng),
            )
            for _ in range(units)
        ]


VARIANTS: Mapping[str, Variant] = {
    "niah_single_1": Variant("noise"),
    "niah_single_2": Variant("essay"),
    "niah_single_3": Variant("essay", values_are="uuids"),
    "niah_multikey_1": Variant("essay", keys=4),
    "niah_multikey_2": Variant("needles"),
    "niah_multikey_3": Variant("needles", keys_are="uuids", values_are="uuids"),
    "niah_multivalue": Variant("essay", values=4),
    "niah_multiquery": Variant("essay", queries=4),
}


def _value(kind: Kind, texts: Texts, rng: Generator) -> str:
    if kind == "numbers":
        return str(rng.integers(1_000_000, 10_000_000))
    if kind == "uuids":
        return str(uuid.UUID(bytes=rng.bytes(16), version=4))
    return "-".join(texts.some_words(rng, 2))


def _between_sentences(sentences: Sequence[str], needles: Sequence[str], rng: Generator) -> str:
    """Each needle at a depth of its own, in per cent of the sentences."""
    depths = np.sort(rng.choice(DEPTHS, len(needles), replace=False))
    at = [int(len(sentences) * depth / 100) for depth in depths]
    pieces: list[str] = []
    for start, end, needle in zip([0, *at], at, needles, strict=False):
        pieces += [*sentences[start:end], needle]
    return " ".join([*pieces, *sentences[at[-1] :]])


def _between_lines(lines: list[str], needles: Sequence[str], rng: Generator) -> list[str]:
    """Each needle as a line of its own, anywhere with equal chance."""
    mixed = list(lines)
    for place, needle in zip(
        sorted(rng.integers(0, len(lines) + 1, len(needles)))[::-1], needles, strict=True
    ):
        mixed.insert(int(place), needle)
    return mixed


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(keys[:-1]) + f", and {keys[-1]}" if len(keys) > 1 else keys[0]


def _singular(text: str, kind: str) -> str:
    text = text.replace("Some", "A").replace("are all", "is").replace("are", "is")
    return text.replace(kind, kind[:-1])
