"""The glossary names what is in the code, and a name of a class means one class."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from pages import CHECKOUT

from yarn_ops import records
from yarn_ops.recipe import Recipe

PAGE = CHECKOUT / "infra" / "docs" / "glossary.md"
ROW = re.compile(r"^\| (?!word \|)([^|]+) \| [^|]+ \| (?:`([\w.]+)`|plain) \|$", re.MULTILINE)

SHARED_NAMES: dict[str, int] = {}
"""how many classes have each of these names, still; a name with one class is taken out"""


def entries() -> list[tuple[str, str]]:
    """(word, place in the code or "")."""
    return ROW.findall(PAGE.read_text("utf-8"))


@cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def classes() -> dict[str, list[str]]:
    """{name of a class: where it is defined}, of everything in the product."""
    found: dict[str, list[str]] = defaultdict(list)
    for package in ("yarn_ops", "flows"):
        for path in sorted((CHECKOUT / package).rglob("*.py")):
            for node in ast.walk(syntax(path)):
                if isinstance(node, ast.ClassDef):
                    found[node.name].append(f"{path.relative_to(CHECKOUT)}:{node.lineno}")
    return found


def defined(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """(name, statement) of what a module or a class defines: classes, functions, constants, fields."""
    for node in body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name, node
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name, node
            case ast.Assign(targets=targets):
                yield from ((target.id, node) for target in targets if isinstance(target, ast.Name))


def is_there(place: str) -> bool:
    """Whether `package.module.Class.field` is defined where it says."""
    names = place.split(".")
    folder = CHECKOUT if names[0] == "flows" else CHECKOUT / "yarn_ops"
    while names and (folder / names[0]).is_dir():
        folder /= names.pop(0)
    module = folder / "__init__.py"
    if names and (folder / f"{names[0]}.py").is_file():
        module = folder / f"{names.pop(0)}.py"
    body = syntax(module).body
    for name in names:
        node = dict(defined(body)).get(name)
        if node is None:
            return False
        body = getattr(node, "body", [])
    return True


@pytest.mark.parametrize(("word", "place"), [entry for entry in entries() if entry[1]])
def test_what_a_word_names_is_in_the_code(word: str, place: str) -> None:
    assert is_there(place), f"infra/docs/glossary.md, {word}: there is no {place}"


def test_a_place_that_is_not_there_is_seen() -> None:
    assert is_there("scores.Score.task")
    assert not is_there("scores.Score.tusk")
    assert not is_there("records.Store")
    assert not is_there("recordings.Score")


def test_every_row_of_the_page_is_read_and_every_word_is_there_once() -> None:
    text = PAGE.read_text("utf-8")
    assert len(entries()) == sum(line.startswith("| ") for line in text.splitlines()) - text.count("| word |")
    words = [word for names, _ in entries() for word in names.split(", ")]
    assert sorted(set(words)) == sorted(words)
    assert len(text.splitlines()) <= 110  # a page


def test_every_record_and_every_section_is_listed() -> None:
    listed = {place for _, place in entries()}
    kept = {
        f"records.{record.__name__}"
        for record in records.Record.__subclasses__()
        if record.__module__ == records.__name__
    }
    sections = {field.annotation for field in Recipe.model_fields.values()}
    asked = {f"{one.__module__.removeprefix('yarn_ops.')}.{one.__name__}" for one in sections if one}
    assert kept | asked <= listed


def test_a_class_name_means_one_class() -> None:
    shared = {name: places for name, places in classes().items() if len(places) > 1}
    new = [f"{name}: {', '.join(at)}" for name, at in shared.items() if len(at) > SHARED_NAMES.get(name, 1)]
    assert new == []  # call one of them something else
    left = {name: len(shared[name]) for name in SHARED_NAMES if name in shared}
    assert left == SHARED_NAMES  # fewer share a name now: the list above shrinks
