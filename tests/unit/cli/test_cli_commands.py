"""Every command and every option says what it does; what is typed wrong is told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pages
import pytest
import typer

from yarn_ops.cli import app
from yarn_ops.recipe import Rope


def commands(group: Any, path: str = "yarn-ops") -> Iterator[tuple[str, Any]]:
    """(how it is typed, command) of everything below a group that does something."""
    for name, command in group.commands.items():
        typed = f"{path} {name}"
        if not hasattr(command, "commands") or command.invoke_without_command:
            yield typed, command
        if hasattr(command, "commands"):
            yield from commands(command, typed)


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("typed", COMMANDS)
def test_a_command_is_explained(typed: str) -> None:
    command = COMMANDS[typed]
    assert command.help
    assert command.get_short_help_str(200).endswith(".")


@pytest.mark.parametrize("typed", COMMANDS)
def test_options_that_are_not_their_own_explanation_are_explained(typed: str) -> None:
    silent = [p.name for p in COMMANDS[typed].params if not getattr(p, "help", None) and p.name != "help"]
    assert set(silent) <= {"version", "run_id"}  # a version is a version, an ID is an ID


@pytest.mark.parametrize("typed", COMMANDS)
def test_a_number_is_bounded_at_both_ends(typed: str) -> None:
    """So that no infinity, NaN, port or seed that is none reaches what cannot take it."""
    numbers = [p for p in COMMANDS[typed].params if getattr(p, "type_descriptor", None) is not None]
    numbers = [p for p in numbers if p.type_descriptor.annotation in (int, float)]
    if typed == "yarn-ops rope show":  # of a recipe's section, which checks them
        numbers = [p for p in numbers if p.name not in Rope.model_fields]
    assert [p.name for p in numbers if p.min is None or p.max is None] == []


@pytest.mark.parametrize("typed", COMMANDS)
def test_a_command_is_in_the_pages(typed: str) -> None:
    assert typed in pages.text()


@pytest.mark.parametrize("typed", pages.mentioned())
def test_what_a_sentence_of_the_pages_mentions_is_a_command_with_such_options(typed: str) -> None:
    command, words = typer.main.get_command(app), typed.split()[1:]
    while words and hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= {*known, "--help"}


@pytest.mark.parametrize("group", ["", "recipe", "db"])
def test_a_group_typed_alone_shows_its_help(yarn_ops: Any, group: str) -> None:
    answer = yarn_ops(*group.split())
    assert answer.status == 2
    assert answer.err.startswith("Usage: yarn-ops")


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("extnd", "yarn-ops: no such command 'extnd'. Did you mean 'extend'?; see `yarn-ops --help`"),
        ("extend", "yarn-ops: missing argument 'RECIPE'; see `yarn-ops extend --help`"),
        ("pull small", "yarn-ops: missing option '--to'; see `yarn-ops pull --help`"),
        (
            "export model",
            "yarn-ops: missing option '--for'. Choose from: transformers, vllm, vllm-0.29, sglang, "
            "llama.cpp, ollama, lm-studio, mlx, tgi, tensorrt-llm; see `yarn-ops export --help`",
        ),
        ("runs\u202e\x1b[2J-x", "yarn-ops: no such command 'runs\\u202e\\x1b[2J-x'; see `yarn-ops --help`"),
        (
            "pull a --to b --tag c",
            "yarn-ops: invalid value: write --tag key=value; see `yarn-ops pull --help`",
        ),
        (
            "plan demo --gpu-hour nan",
            "yarn-ops: invalid value for '--gpu-hour': Input should be less than or equal to 1000000000; "
            "see `yarn-ops plan --help`",
        ),
        (
            "up --mlflow-port 65536",
            "yarn-ops: invalid value for '--mlflow-port': Input should be less than or equal to 65535; "
            "see `yarn-ops up --help`",
        ),
        ("runs show", "yarn-ops: invalid value: give a run's id, or --last; see `yarn-ops runs show --help`"),
    ],
)
def test_a_mistyped_command(yarn_ops: Any, typed: str, line: str) -> None:
    answer = yarn_ops(*typed.split())
    assert (answer.status, answer.out, answer.err) == (2, "", line + "\n")
