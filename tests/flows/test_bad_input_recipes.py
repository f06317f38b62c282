"""A recipe or a command that makes no sense is refused in one line, at once, before anything is opened."""

from __future__ import annotations

from pathlib import Path

import pytest
from person import Person, told

AT_ONCE_S = 3.0  # parsing alone, on a machine that has other things to do

WRONG_TEXT = {
    "not TOML": ("factor 4", ["small.toml: not valid TOML: Expected '='", "line 1"]),
    "no rope": ("[base]\n", ["small.toml: rope: missing"]),
    "an unknown key": ("[rope]\nfactr = 4", ["rope.factr: unknown key; did you mean 'factor'?"]),
    "a misspelt section": (
        "[rope]\nfactor = 4\n[tran]\nsteps = 9",
        ["tran: unknown key; did you mean 'train'?"],
    ),
    "a key of another section": (
        "[rope]\nfactor = 4\nwindows = 3",
        ["rope.windows: unknown key", "[evaluate]"],
    ),
    "a section that is a value": ("rope = 4", ["rope: input should be", "(found 4)"]),
    "a wrong type": ("[rope]\nfactor = 'many'", ["rope.factor: input should be a valid number", "'many'"]),
    "factor 0": ("[rope]\nfactor = 0", ["rope.factor: input should be greater than or equal to 1 (found 0)"]),
    "a factor that is no number": ("[rope]\nfactor = nan", ["rope.factor: input should be a finite number"]),
    "neither factor nor target": ("[rope]\n", ["rope: method 'yarn' needs factor or target_context_tokens"]),
    "an unknown method": (
        "[rope]\nfactor = 4\nmethod = 'yarm'",
        ["rope.method: input should be 'none', 'linear'"],
    ),
}

WRONG_SET = {
    "no value": ("train.steps", ["--set train.steps: write section.key=value"]),
    "an unknown key": ("train.stps=20", ["train.stps: unknown key; did you mean 'steps'?"]),
    "no section": ("steps=20", ["--set steps=20: write section.key=value"]),
    "no sources": ("data.sources=[]", ["data.sources: list should have at least 1 item"]),
    "an absurd learning rate": (
        "train.learning_rate=1e30",
        ["train.learning_rate: input should be less than"],
    ),
    "all of it held out": (
        "data.held_out_fraction=1",
        ["data.held_out_fraction: input should be less than 1"],
    ),
    "a reserved alias": (
        "publish.alias=latest",
        ["publish: alias 'latest' is reserved by MLflow; choose another"],
    ),
    "a path as a name": ("publish.name=../up", ["publish.name: input should be at most 128 letters"]),
}

WRONG_COMMAND = {
    "a missing file": (["extend", "nowhere.toml"], ["nowhere.toml: no such recipe; `yarn-ops recipe list`"]),
    "a misspelt shipped name": (["extend", "dmo"], ["dmo: no such recipe; `yarn-ops recipe list`"]),
    "a directory": (["extend", "/"], ["/: cannot be read as a text file"]),
    "no recipe": (["extend"], ["missing argument 'RECIPE'; see `yarn-ops extend --help`"]),
    "an unknown command": (["extnd", "demo"], ["no such command 'extnd'. Did you mean 'extend'?"]),
    "an unknown option": (
        ["extend", "demo", "--step=3"],
        ["no such option: --step", "`yarn-ops extend --help`"],
    ),
}


@pytest.mark.parametrize("fault", WRONG_TEXT)
def test_a_recipe(fault: str, person: Person, small_recipe: Path) -> None:
    text, phrases = WRONG_TEXT[fault]
    small_recipe.write_text(text, "utf-8")
    refused_at_once(person, ["extend", small_recipe], phrases)


@pytest.mark.parametrize("fault", WRONG_SET)
def test_a_value_on_the_command_line(fault: str, person: Person, small_recipe: Path) -> None:
    setting, phrases = WRONG_SET[fault]
    refused_at_once(person, ["extend", small_recipe, "--set", setting], phrases)


@pytest.mark.parametrize("fault", WRONG_COMMAND)
def test_a_command(fault: str, person: Person) -> None:
    command, phrases = WRONG_COMMAND[fault]
    refused_at_once(person, command, phrases)


def test_a_recipe_that_is_no_text(person: Person, small_recipe: Path) -> None:
    small_recipe.write_bytes(b"\xff\xfe\x00")
    refused_at_once(person, ["extend", small_recipe], ["small.toml: cannot be read as a text file"])


def refused_at_once(person: Person, command: list[object], phrases: list[str]) -> None:
    answer = person.types(*command)
    told(answer, *phrases)
    assert answer.seconds < AT_ONCE_S
    assert not person.state.exists()
