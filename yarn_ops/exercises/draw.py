"""Keys, values and places of one window's exercises, drawn from its generator alone."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

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
LETTERS = "bcdfghjkmnpqrstvwxz"
CODES = ("ABCDEFGHJKLMNPQRSTUVWXYZ23456789", "ghjkmnpqrstvwxyz23456789")
"""evaluations ask for lines of hexadecimal digits in small letters"""


class Draw:
    """Draws for one window. Keys are distinct within it."""

    def __init__(self, rng: Generator, language: Language) -> None:
        self.rng, self.language = rng, language
        self._used: set[str] = set()
        self._taken: set[Hashable] = set()

    def one_of(self, items: Sequence[Item]) -> Item:
        return items[int(self.rng.integers(len(items)))]

    def count(self, least: int, most: int) -> int:
        """Uniform over least .. most."""
        return int(self.rng.integers(least, most + 1))

    def place(self) -> float:
        """Of a fact, as a fraction of the window."""
        return float(self.rng.random()) ** TOWARDS_BEGIN * LATEST_FACT

    def places(self, count: int) -> list[float]:
        """Of several facts, ascending."""
        return sorted(self.place() for _ in range(count))

    def later(self, place: float) -> float:
        """Of a question about what stands at `place`."""
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
        """A text of this kind that no other key of the window equals."""
        while (text := self.text(kind)) in self._used:
            pass
        self._used.add(text)
        return text

    def keys_alike(self, kind: Kind, count: int) -> list[str]:
        """Distinct keys that differ in their last part alone."""
        first = self.key(kind)
        join = {"person": self.language.joint, "constant": "_", "tag": "-"}[kind]
        stem = first.rpartition(join)[0] if join else first[:2]
        keys = [first]
        while len(keys) < count:
            text = self.text(kind)
            last = text.rpartition(join)[2] if join else text[2:]
            alike = f"{stem}{join}{last}"
            if alike not in self._used:
                self._used.add(alike)
                keys.append(alike)
        return keys

    def distinct(self, kind: Kind, count: int) -> list[str]:
        """Values of which no two are equal."""
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
                letters = self.one_of(CODES)
                rest = "".join(self.one_of(letters) for _ in range(self.count(4, 10)))
                return f"{self.one_of(LETTERS).upper()}{self.one_of('23456789')}{rest}"
            case "tag":
                return f"{self.one_of(LETTERS)}{self.one_of(LETTERS)}-{rng.integers(100, 1000)}"
            case "number":
                digits = self.one_of(NUMBER_DIGITS)
                return str(rng.integers(10 ** (digits - 1), 10**digits))

    def _syllables(self, syllables: Sequence[str], count: int) -> str:
        return "".join(self.one_of(syllables) for _ in range(count))
