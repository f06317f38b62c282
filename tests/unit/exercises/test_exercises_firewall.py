"""No surface form, alphabet or range of values of an evaluation occurs in training."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import pkgutil
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import numpy as np
import pytest

import yarn_ops.evals
from yarn_ops.evals.tasks import facts, natural
from yarn_ops.evals.tasks.pairs import KEY_VALUE
from yarn_ops.exercises.draw import Draw
from yarn_ops.exercises.en import ENGLISH
from yarn_ops.exercises.language import Form, Kind, Language
from yarn_ops.exercises.rows import row_form
from yarn_ops.exercises.zh import CHINESE

LANGUAGES = (ENGLISH, CHINESE)
TOKENS = 8192
WORDS = 3
"""in a row that two forms may not have in common"""
CHARACTERS = 4
"""likewise of Chinese"""
GRAMMARS = {
    "a key of recall and needles": r"[a-z]{4}",
    "a value of recall and needles, a passkey": r"[1-9][0-9]{4}",
    "a value of RULER": r"[1-9][0-9]{6}",
    "an identifier of key-value lines": r"[0-9a-f]{8}",
    "a UUID": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "a variable of RULER": r"[A-Z]{3}|[A-Z]{5}",
    "a coded word of RULER": r"[a-z]{6}",
}


def texts_in(value: Any, seen: set[int]) -> Iterator[str]:
    """Every string in a value: of dataclasses, mappings and sequences too."""
    if isinstance(value, str):
        yield value
        return
    if id(value) in seen or isinstance(value, type | bytes):
        return
    seen.add(id(value))
    if dataclasses.is_dataclass(value):
        parts: Any = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        parts = value
    else:
        return
    for part in parts:
        yield from texts_in(part, seen)


def forms_of_evaluations() -> set[str]:
    """Every text at module level in `yarn_ops.evals`: what is shown to a model is among them."""
    found: set[str] = set()
    for module in pkgutil.walk_packages(yarn_ops.evals.__path__, "yarn_ops.evals."):
        values = vars(importlib.import_module(module.name))
        for name, value in values.items():
            if not name.startswith("__"):
                found.update(texts_in(value, set()))
    return found


def forms_of(language: Language) -> set[str]:
    skipped = ("name", "name_syllables", "word_syllables", "words", "place_endings", "ordinals")
    return {
        text
        for field in dataclasses.fields(language)
        if field.name not in skipped
        for text in texts_in(getattr(language, field.name), set())
    }


def runs_of_words(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z]+", re.sub(r"\{.*?\}", " | ", text.lower()))
    return set(zip(*(words[at:] for at in range(WORDS)), strict=False))


def runs_of_characters(text: str) -> set[str]:
    found = re.findall("[\u4e00-\u9fff]+", re.sub(r"\{.*?\}", "|", text))
    return {run[at : at + CHARACTERS] for run in found for at in range(len(run) - CHARACTERS + 1)}


def skeleton(text: str) -> str:
    """What stands around and between the names of a form: `"{key}": "{value}",` is `"#": "#",`."""
    return re.sub(r"\{.*?\}", "#", text).strip()


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_no_form_has_the_signs_of_an_evaluation_s(language: Language) -> None:
    asked = {signs for form in forms_of_evaluations() if "#" in (signs := skeleton(form)).replace("#", "", 1)}
    assert '"#": "#",' in asked
    trained = {skeleton(form) for form in forms_of(language) if "{k}" in form}
    assert not asked & trained


def composed_rows(language: Language) -> Iterator[Form]:
    for seed in range(400):
        form, _ = row_form(Draw(np.random.default_rng(seed), language, TOKENS))
        yield form


def plain_signs(text: str) -> str:
    """The skeleton with every run of words as `w` and every kind of quotation mark as `"`."""
    return re.sub(
        r"[a-z\u4e00-\u9fff]+( [a-z]+)*",
        "w",
        re.sub("['“”]", '"', skeleton(text).lower().replace("：", ": ")),
    )


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_no_composed_row_has_the_signs_of_key_value_lines(language: Language) -> None:
    line, question = plain_signs(KEY_VALUE.plant), plain_signs(KEY_VALUE.question)
    assert line == '"#": "#",' and question.endswith('w: "#"\nw: "')
    for form in composed_rows(language):
        row, asked = plain_signs(form.plant), plain_signs(form.ask)
        assert not re.search('"[^"#]*#[^#]*:', row), form  # a key in quotation marks, then a colon
        assert not re.search(':[^w#]*"', asked), form  # a colon, then a quotation mark, signs between or not


def test_composed_rows_hardly_repeat() -> None:
    assert len({(form.plant, form.ask) for form in composed_rows(ENGLISH)}) > 390


def test_evaluations_are_found() -> None:
    forms = forms_of_evaluations()
    assert any("special magic number" in form for form in forms)
    assert any("pass key" in form for form in forms)
    assert any("Extract the value" in form for form in forms)
    assert any("chain(s) of variable assignment" in form for form in forms)
    for words in (facts.ENGLISH, facts.CHINESE):
        assert {words.link, words.ballot, words.about, *itertools.chain(*words.bonds)} <= forms
    assert {*natural.REFERENCE_ASKED, natural.LABEL} <= forms
    assert any("对应的魔法数字是多少" in form for form in forms)


@pytest.mark.parametrize("pair", [(ENGLISH, facts.ENGLISH), (CHINESE, facts.CHINESE)], ids=["en", "zh"])
def test_no_bond_of_meaning_is_trained(pair: tuple[Language, facts.Wording]) -> None:
    """Neither what was done nor what is asked of it is a clue, or an answer to one, of an exercise."""
    language, words = pair
    trained = {text for one in language.associations for text in (one.clue, one.asked)}
    asked = set(itertools.chain(*words.bonds))
    assert not asked & trained
    assert not [(one, other) for one in asked for other in trained if one in other or other in one]


@pytest.mark.parametrize("runs", [runs_of_words, runs_of_characters])
@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_no_form_shares_a_run_of_words_with_an_evaluation(language: Language, runs: Any) -> None:
    asked = {run: form for form in forms_of_evaluations() for run in runs(form)}
    trained = {run: form for form in forms_of(language) for run in runs(form)}
    shared = sorted(set(asked) & set(trained))
    assert not shared, [(run, asked[run], trained[run]) for run in shared]


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
@pytest.mark.parametrize("kind", get_args(Kind))
def test_no_key_or_value_is_of_an_evaluation_s_grammar(kind: Kind, language: Language) -> None:
    draw = Draw(np.random.default_rng(0), language, TOKENS)
    for text in itertools.islice(iter(lambda: draw.text(kind), None), 500):
        for name, grammar in GRAMMARS.items():
            assert not re.fullmatch(grammar, str(text)), f"{text} is {name}"
