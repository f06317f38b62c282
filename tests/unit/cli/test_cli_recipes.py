"""`recipe show` prints a recipe that is the same recipe; `recipe list` names the shipped ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from yarn_ops.recipe import load_recipe
from yarn_ops.shipped import recipes

HOSTILE = """
base.model = "/models/[v2]/:smile:/größe"
rope.factor = 4
data.sources = ["d"]
publish.name = "n"
train.legs = [{context_tokens = 1024, steps = 3}, {context_tokens = 2048, steps = 4, learning_rate = 1e-5}]
publish.tags.plain = "a"
publish.tags."two words" = 'quotes " and \\\\ strokes'
publish.tags.signs = "\\u001b[2J\\u009b\\u007f\\u202e\\U000e0041"
"""


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.stem)
def test_what_is_shown_is_the_same_recipe(yarn_ops: Any, path: Path, tmp_path: Path) -> None:
    shown = yarn_ops("recipe", "show", path.stem, COLUMNS="80")
    assert shown.status == 0
    (tmp_path / "shown.toml").write_text(shown.out, "utf-8")
    assert load_recipe(tmp_path / "shown.toml") == load_recipe(path)
    assert shown.out.endswith(f"# digest {load_recipe(path).digest()}\n")


def test_no_value_is_taken_for_markup(yarn_ops: Any, tmp_path: Path) -> None:
    (tmp_path / "hostile.toml").write_text(HOSTILE, "utf-8")
    shown = yarn_ops("recipe", "show", tmp_path / "hostile.toml", COLUMNS="40")
    (tmp_path / "shown.toml").write_text(shown.out, "utf-8")
    assert load_recipe(tmp_path / "shown.toml") == load_recipe(tmp_path / "hostile.toml")
    assert all(sign.isprintable() or sign == "\n" for sign in shown.out)


def test_json_carries_the_digest_and_every_value(yarn_ops: Any) -> None:
    shown = json.loads(yarn_ops("recipe", "show", "demo", "--json", "--set", "train.steps=20").out)
    assert shown["train"]["steps"] == 20
    path = next(path for path in recipes() if path.stem == "demo")
    assert shown["digest"] == load_recipe(path, ["train.steps=20"]).digest()


def test_every_shipped_recipe_is_listed_with_what_it_is_for(yarn_ops: Any) -> None:
    lines = yarn_ops("recipe", "list").out.splitlines()
    assert [line.split()[0] for line in lines] == [path.stem for path in recipes()]
    assert all(len(line.split()) > 4 for line in lines)
