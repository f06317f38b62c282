"""What a language has to bring for exercises: surface forms and words, as one table.

A form's texts hold `{k}` (the key) and `{v}` (the value); families that need more names say so at their
field. `plant` states a fact, `ask` asks for it later, `answer` is what follows and is learnt with weight,
`close` leads back to ordinary text. No form, alphabet or range of values here occurs in an evaluation
(`tests/unit/exercises/test_exercises_firewall.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "name", "person", "place", "word", "pair", "phrase", "constant", "hex", "tag", "number", "code"
]
"""what a key or a value is made of; `draw.Draw.text` draws one"""


@dataclass(frozen=True)
class Form:
    """A fact and its question."""

    key: Kind
    value: Kind
    plant: str
    ask: str
    answer: str = " {v}"
    close: str = "\n"


@dataclass(frozen=True)
class ChainForm:
    """References that lead on: `link` names {a} and the next, {b}; `end` gives the last its {v}."""

    key: Kind
    value: Kind
    link: str
    end: str
    ask: str
    """for the value alone, from the first key {k}"""
    trace: str
    """for the way there: the answer names every key passed, joined by `step`, then the value"""
    step: str
    answer: str = " {v}"
    close: str = "\n"


@dataclass(frozen=True)
class Association:
    """Two texts that share no word and mean the same to who knows the world: what somebody did, and what is
    asked of it. `plant` and `ask` frame them (Modarressi et al., NoLiMa, 2025, is the idea)."""

    clue: str
    asked: str


@dataclass(frozen=True)
class Language:
    """One language's table. Every tuple of forms needs at least three members."""

    name: str
    name_syllables: tuple[str, ...]
    """of invented names of persons and places"""
    word_syllables: tuple[str, ...]
    place_endings: tuple[str, ...]
    words: tuple[str, ...]
    """ordinary ones, that phrases are made of"""
    joint: str
    """between the words of a phrase and between names"""
    comma: str
    """between the items of a list"""
    ordinals: tuple[str, ...]
    lookup: tuple[Form, ...]
    values: tuple[Form, ...]
    """several values of one key; `ask` asks for all, in order"""
    updates: tuple[Form, ...]
    """one key that changes its value; `ask` asks for the last before it"""
    row_headings: tuple[str, ...]
    """above rows that stand together (`rows.row_form`)"""
    row_questions: tuple[tuple[str, str], ...]
    """of a row: before the key, and between the key and the value"""
    count: tuple[Form, ...]
    """`plant` says that {k} happened once more; the answer is a number"""
    ordinal: tuple[Form, ...]
    """`plant` is a request that is always the same and its reply {v}; `ask` has {i}, an ordinal"""
    chain: tuple[ChainForm, ...]
    associations: tuple[Association, ...]
    association: tuple[Form, ...]
    """`plant` has {k}, a person, and {clue}; `ask` has {asked}; the answer is the person"""
    passage: tuple[tuple[str, str, str], ...]
    """before the quoted beginning of a passage, before what follows it, after it"""
    heading: tuple[str, ...]
    """of a section called {k}"""
    section: tuple[tuple[str, str, str], ...]
    """before a quoted run of text, before the name of its section, after it"""
