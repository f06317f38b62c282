"""Figures are those that tests/golden keeps (infra/benchmarks/golden.py): equal to the last bit on a machine
like the one that made them, within the files' tolerances elsewhere."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"
PROGRAM = Path(__file__).parents[2] / "infra" / "benchmarks" / "golden.py"


def checked(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, PROGRAM, "--check", *map(str, arguments)], capture_output=True, text=True
    )


def same(*topics: str) -> None:
    done = checked(*topics)
    if done.returncode == 3:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": 0 differences") == len(topics)


def test_samples_gradients_losses_and_scores_and_that_a_change_is_told(tmp_path: Path) -> None:
    """One of the kept values is changed: that one differs, and no other."""
    topics = ("data", "gradients", "losses", "scores", "answers")
    for topic in topics:
        shutil.copy(GOLDEN / f"values_{topic}.json", tmp_path)
    place = tmp_path / "values_data.json"
    kept = json.loads(place.read_text("utf-8"))
    kept["values"]["batches"]["no mask"] = "0" * 32
    place.write_text(json.dumps(kept), "utf-8")
    done = checked("--into", tmp_path, *topics)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.startswith("data: 1 differences"), done.stdout
    assert "   batches / no mask: '00000" in done.stdout
    assert done.stdout.count(": 0 differences") == len(topics) - 1, done.stdout


@pytest.mark.slow
def test_losses_without_a_mask_and_of_all_parameters() -> None:
    """What `gradients` holds by default, over 50 steps."""
    same("losses-more")


@pytest.mark.slow
def test_the_tiny_suite_a_fit_and_remedies() -> None:
    same("suite-tiny", "remedies")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_and_its_quick_suite() -> None:
    same("demo", "quick")


@pytest.mark.parametrize(
    ("kept", "now", "here", "elsewhere"),
    [
        (1.0, 1.0 + 1e-12, 1, 0),
        (1.0, 1.1, 1, 1),
        (1, 2, 1, 1),
        (1.0, 1, 1, 1),
        ("bits:0", "bits:1", 1, 0),
        ("bits:0", "1", 1, 1),
        ("0", "1", 1, 1),
        ([1], [1, 1], 1, 1),
        ({"a": 1, "b": 1}, {"a": 1, "c": 1}, 2, 2),
        ({"a": [{"b": 0.5}]}, {"a": [{"b": 0.5}]}, 0, 0),
    ],
)
def test_what_counts_as_a_difference(kept: Any, now: Any, here: int, elsewhere: int) -> None:
    """On a machine like the one that made a file, and on another."""
    differences = runpy.run_path(str(PROGRAM))["differences"]
    assert len(list(differences("", kept, now, None))) == here
    assert len(list(differences("", kept, now, 1e-5))) == elsewhere
