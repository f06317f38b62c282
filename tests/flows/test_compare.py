"""Methods side by side through the real flow: shared stages once, every arm in the table."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from person import Person, fails, told


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_arms_share_what_they_can(cli: Any, small_recipe: Path) -> None:
    done = cli(
        "compare", small_recipe, "--methods", "ntk,yarn", "--arms", "zero-shot,lora-only+r4",
        "--set", "train.steps=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "winner: yarn" in done.stdout
    run = json.loads(cli("runs", "show", "--last", "--json").stdout)
    used = Counter(stage["stage"] for stage in run["stages"])
    once = dict.fromkeys(["base", "documents", "shards", "compare"], 1)
    assert used == {**once, "patch": 2, "rehearse": 2, "train": 2, "merge": 2, "evaluate": 5}
    assert run["release"] is None


def test_an_arm_that_cannot_train_is_told_before_documents_are_read(
    person: Person, small_recipe: Path
) -> None:
    arms = ("--methods", "yarn", "--arms", "zero-shot,lora", "--set", 'train.targets=["qq_proj"]')
    fails(person, ["compare", small_recipe, *arms], "no linear layer is named 'qq_proj'")
    run = json.loads(person.types("runs", "show", "--last", "--json").out)
    assert [stage["stage"] for stage in run["stages"]] == ["base", "patch", "rehearse"]


def test_an_unknown_method_is_named(person: Person, small_recipe: Path) -> None:
    answer = person.types("compare", small_recipe, "--methods", "yarn,rope")
    told(answer, "method 'rope' is unknown; known are none, linear, ntk")


def test_an_unknown_arm_is_named(person: Person, small_recipe: Path) -> None:
    answer = person.types("compare", small_recipe, "--arms", "lora,lora+biases")
    told(answer, "arm 'lora+biases' is unknown; known are zero-shot, full, lora")
    assert answer.out == ""
