"""The verdict card and the forms in other languages than English, in which they are written and kept.

A language is a module of tables beside this one; what a table lacks stays English. Records hold the English
card, so that each reader sees it in the language of their own settings.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from yarn_ops.languages import zh

LANGUAGES = {"en": None, "zh": zh}
"""{what YARN_OPS_LANGUAGE says: its tables; None: what the code says}"""


def said(text: str, language: str) -> str:
    """A label, a sentence of a card or a part of one in a language; figures and names stay as they are."""
    for fits, translated, parts in _phrases(language):
        if found := fits(text):
            values = found.groupdict()
            return translated.format(**values | {name: said(values[name], language) for name in parts})
    return text


def described(name: str, language: str) -> str | None:
    """What a deployment does, in Markdown; None where only its English page says it."""
    tables = LANGUAGES[language]
    return None if tables is None else tables.DEPLOYMENTS.get(name)


def in_form(schema: dict[str, Any], owner: str, language: str) -> None:
    """Put titles and descriptions of a form's JSON schema into a language. owner: its flow or definition."""
    tables = LANGUAGES[language]
    if tables is None:
        return
    for name, field in schema.get("properties", {}).items():
        told = tables.FIELDS.get(f"{owner}.{name}")
        field |= dict(zip(("title", "description"), told, strict=False)) if told else {}
    for name, definition in schema.get("definitions", {}).items():
        if name in tables.SECTIONS:
            definition["description"] = tables.SECTIONS[name]
        in_form(definition, name, language)


@cache
def _phrases(language: str) -> tuple[tuple[Callable[[str], re.Match[str] | None], str, list[str]], ...]:
    """What recognises each English phrase, the same in the language, its parts that are phrases too."""
    tables = LANGUAGES[language]
    phrases = {} if tables is None else tables.PHRASES
    return tuple(
        (
            re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+?)", re.escape(english)), re.IGNORECASE).fullmatch,
            translated,
            [name for name in re.findall(r"{(\w+)}", translated) if name.endswith("_")],
        )
        for english, translated in phrases.items()
    )
