"""Training that cannot be done, or comes to nothing, is told in one line; the rest of the run stays good."""

from __future__ import annotations

from pathlib import Path

import pytest
from person import Person, fails

QUICK = ["--set", "evaluate.windows=1", "--set", "evaluate.recall_windows=1", "--set", "train.steps=3"]

DIES_OF_BF16 = """
import os, signal, sys
if sys.orig_argv[1:2] == ["-c"]:
    os.kill(os.getpid(), signal.SIGILL)
"""
"""In a child process that tries something out, and nowhere else."""


@pytest.mark.parametrize(
    ("setting", "phrases"),
    [
        (
            'train.targets=["qq_proj"]',
            ["train.targets: no linear layer is named 'qq_proj'; choose from", "q_proj"],
        ),
        (
            "train.legs=[{context_tokens=1024, steps=0}]",
            ["train.legs.0.steps: input should be greater than 0"],
        ),
    ],
)
def test_what_is_asked_for_is_not_there(
    setting: str, phrases: list[str], person: Person, small_recipe: Path
) -> None:
    answer = fails(person, ["extend", small_recipe, "--set", setting], *phrases)
    assert not {"documents", "shards"} & {*answer.stages}


def test_a_cpu_that_cannot_multiply_in_bf16(person: Person, small_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(DIES_OF_BF16, "utf-8")
    """Told before documents are read, as every fault of a recipe's training on a base is."""
    answer = fails(
        person,
        ["extend", small_recipe, "--set", "train.precision=bf16"],
        "train.precision: a bf16 matrix product does not run on this CPU (SIGILL); use fp32 or auto",
        PYTHONPATH=str(tmp_path),
    )
    assert not {"documents", "shards"} & {*answer.stages}


def test_a_loss_that_is_not_finite(person: Person, small_recipe: Path) -> None:
    answer = fails(
        person,
        ["extend", small_recipe, *QUICK, "--set", "train.alpha=1e38", "--set", "train.warmup_steps=0"],
        "training: the ",
        "of step ",
        "is not finite; its documents are stdlib:",
        "lower train.learning_rate",
    )
    assert answer.stages[-1] == "shards"
    run = person.types("runs", "show", "--last")
    assert ": failed\ntraining: the" in run.out
    stage, cost = (line.split() for line in run.out.splitlines() if line.startswith("train "))
    assert stage[1] == "failed" and float(cost[1]) > 0
