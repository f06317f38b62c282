"""Keys, values and places of one window's exercises, drawn from its generator alone."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.random import Generator

from yarn_ops.exercises.language import Kind, Language

Item = TypeVar("Item", bound=Hashable)

LATEST_FACT = 0.97
"""as a fraction of the window: a fact needs room for its question behind it"""
TOWARDS_BEGIN = 1.6
"""exponent that draws facts to the window's begin: one question in nine reaches over seven eighths of it"""
TOWARDS_END = 3
"""exponent that draws questions to the window's end"""
NUMBER_DIGITS = (3, 4, 6)
"""evaluations ask for numbers of five and seven digits"""
PHRASE_WORDS = 5
TRIES = 64
"""draws of a key of one text until it is made of one text more"""
LETTERS = "bcdfghjkmnpqrstvwxz"
DIGITS = "23456789"
FEWEST_SYMBOLS = 6
"""of a code: with few, only the whole of it tells one code from another"""


@dataclass(frozen=True)
class Alphabet:
    """Symbols and lengths of codes. Evaluations ask for eight hexadecimal digits in small letters, for words
    of three to six letters and for numbers of five and seven digits: none of these is a code."""

    symbols: str
    lengths: tuple[int, ...]


ALPHABETS = (
    Alphabet(LETTERS.upper() + DIGITS, (6, 9, 10)),
    Alphabet(LETTERS + DIGITS, (9, 10, 11)),
    Alphabet("0123456789", (6, 9, 10)),
)


class Draw:
    """Draws for one window. Keys are distinct within it."""

    def __init__(self, rng: Generator, language: Language, room: int) -> None:
        """`room`: tokens that the exercises may take, all together."""
        self.rng, self.language, self.room = rng, language, room
        self._used: set[str] = set()
        self._taken: set[Hashable] = set()

    def one_of(self, items: Sequence[Item]) -> Item:
        return items[int(self.rng.integers(len(items)))]

    def count(self, least: int, most: int) -> int:
        """Uniform over least .. most."""
        return int(self.rng.integers(least, most + 1))

    def log_count(self, least: int, most: int) -> int:
        """Log-uniform over least .. most: as often between 10 and 20 as between 100 and 200."""
        return int(least * (most / least) ** float(self.rng.random()))

    def place(self) -> float:
        """A fact's place, as a fraction of the window."""
        return float(self.rng.random()) ** TOWARDS_BEGIN * LATEST_FACT

    def places(self, count: int) -> list[float]:
        """Places of several facts, ascending."""
        return sorted(self.place() for _ in range(count))

    def later(self, place: float) -> float:
        """A place after `place`, for a question about what stands there."""
        return place + (1 - place) * (1 - float(self.rng.random()) ** TOWARDS_END)

    def unused(self, items: Sequence[Item], count: int) -> list[Item]:
        """Different items that were not taken in this window before; none where fewer are left."""
        left = [item for item in items if item not in self._taken]
        if len(left) < count:
            return []
        taken = [left[index] for index in self.rng.choice(len(left), count, replace=False).tolist()]
        self._taken.update(taken)
        return taken

    def key(self, kind: Kind) -> str:
        """A text of this kind that no other key of the window equals; two or more in one where nearly all
        are used: a long window may ask for more words than there are."""
        tries = 0
        while (text := "".join(self.text(kind) for _ in range(1 + tries // TRIES))) in self._used:
            tries += 1
        self._used.add(text)
        return text

    def keys_alike(self, kind: Kind, count: int) -> list[str]:
        """Distinct keys that differ in one part alone, their first or their last."""
        first = self.key(kind)
        cut, from_cut = self._middle(kind, first), self.rng.random() < 0.5
        keys = [first]
        while len(keys) < count:
            other = self.text(kind)
            at = self._middle(kind, other)
            alike = first[:cut] + other[at:] if from_cut else other[:at] + first[cut:]
            if alike not in self._used:
                self._used.add(alike)
                keys.append(alike)
        return keys

    def _middle(self, kind: Kind, text: str) -> int:
        """Where the first part of a key of this kind ends."""
        join = {"person": self.language.joint, "constant": "_", "tag": "-"}[kind]
        return text.index(join) if join else len(text) // 2

    def alphabet(self) -> Alphabet:
        """Some symbols of one of the alphabets, `FEWEST_SYMBOLS` of them at least."""
        whole = self.one_of(ALPHABETS)
        number = self.count(FEWEST_SYMBOLS, min(16, len(whole.symbols)))
        chosen = self.rng.choice(len(whole.symbols), number, replace=False).tolist()
        return Alphabet("".join(whole.symbols[index] for index in chosen), (self.one_of(whole.lengths),))

    def code(self, alphabet: Alphabet) -> str:
        return self._codes(alphabet, 1)[0]

    def codes(self, alphabet: Alphabet, count: int) -> list[str]:
        """Distinct codes, none of which is a key of the window already; from now on all of them are."""
        found: dict[str, None] = {}
        while len(found) < count:
            drawn = self._codes(alphabet, count - len(found))
            found.update(dict.fromkeys(code for code in drawn if code not in self._used))
        self._used.update(found)
        return list(found)

    def _codes(self, alphabet: Alphabet, count: int) -> list[str]:
        """Codes of one length."""
        length = self.one_of(alphabet.lengths)
        indices = self.rng.integers(len(alphabet.symbols), size=(count, length))
        symbols = np.array(list(alphabet.symbols))[indices]
        return ["".join(row) for row in symbols.tolist()]

    def distinct(self, kind: Kind, count: int) -> list[str]:
        """So many distinct texts of this kind."""
        found: dict[str, None] = {}
        while len(found) < count:
            found[self.text(kind)] = None
        return list(found)

    def text(self, kind: Kind) -> str:
        language, rng = self.language, self.rng
        match kind:
            case "name":
                return self._syllables(language.name_syllables, self.count(2, 3)).capitalize()
            case "person":
                return language.joint.join(
                    self._syllables(language.name_syllables, 2).capitalize() for _ in range(2)
                )
            case "place":
                return self._syllables(language.name_syllables, 2).capitalize() + self.one_of(
                    language.place_endings
                )
            case "word":
                return self._syllables(language.word_syllables, 2)
            case "pair":
                return language.joint.join(self.one_of(language.words) for _ in range(2))
            case "phrase":
                return language.joint.join(self.one_of(language.words) for _ in range(PHRASE_WORDS))
            case "constant":
                halves = ["".join(self.one_of(LETTERS) for _ in range(4)) for _ in range(2)]
                return "_".join(halves).upper()
            case "hex":
                return f"{rng.integers(16**4):04X}"
            case "code":
                return self.code(self.alphabet())
            case "tag":
                return f"{self.one_of(LETTERS)}{self.one_of(LETTERS)}-{rng.integers(100, 1000)}"
            case "number":
                digits = self.one_of(NUMBER_DIGITS)
                return str(rng.integers(10 ** (digits - 1), 10**digits))

    def _syllables(self, syllables: Sequence[str], count: int) -> str:
        return "".join(self.one_of(syllables) for _ in range(count))
