"""An evaluation with a suite: in the gate, in MLflow, in the registry, on the page; measured once."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from prefect_here import post

from yarn_ops.registry import RunView, open_registry
from yarn_ops.release import open_tracking
from yarn_ops.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SUITE = """\
suite = "tiny"
[gate]
conditions = [
  {score = "needle/code", at_least = 0.01},
  {score = "capacity/uses", measure = "difference", at_least = 1},
]
"""


def last_run(state: Path) -> RunView:
    registry = open_registry(Settings(state_dir=state).database)
    try:
        return registry.run_view("last")
    finally:
        registry.close()


def cells_of(state: Path) -> list[tuple[Any, ...]]:
    """Every cell that was measured, and when."""
    with sqlite3.connect(state / "registry.db") as database:
        return database.execute("SELECT key, fence, finished_at FROM cells ORDER BY key").fetchall()


def artifact(api: str, key: str) -> dict[str, Any]:
    """The newest of this key in Prefect."""
    return post(api, "/artifacts/filter", artifacts={"key": {"any_": [key]}}, sort="CREATED_DESC", limit=1)[0]


def test_a_run_with_a_suite(cli, small_recipe: Path, state: Path, prefect_api: str):
    recipe = small_recipe.read_text("utf-8")
    small_recipe.write_text(recipe.replace("[gate]\n", SUITE), "utf-8")
    done = cli("extend", small_recipe)
    assert done.returncode == 0, done.stderr
    assert "needle/code at 1,024 tokens is" in done.stdout
    assert "capacity/uses at 1,024 tokens less base's is" in done.stdout
    assert "\nsees " in done.stdout and "\nuses " in done.stdout

    run = last_run(state)
    measured = [stage for stage in run.stages if stage.stage == "evaluate"]
    assert len(measured) == 2
    tasks = {score.task for score in run.scores if score.stage == "evaluate"}
    assert {"perplexity/last-quarter", "recall/code", "needle/code", "loss/same-targets"} <= tasks
    assert {"capacity/sees", "capacity/uses"} <= tasks
    with sqlite3.connect(state / "registry.db") as database:
        kept = database.execute(
            "SELECT checkpoint_digest, cell, cell_tokens, seed, length(items) FROM measurements "
            "WHERE task = 'needle/code' AND depth = -1 ORDER BY id"
        ).fetchall()
    assert len({row[0] for row in kept}) == 2 and {row[2] for row in kept} == {128, 256, 512, 1024}
    assert {row[4] for row in kept} == {1 + 4}  # 2 texts of 4 parts of 4 needles, a bit each

    from mlflow import MlflowClient

    settings = Settings(state_dir=state)
    client = MlflowClient(settings.mlflow, settings.mlflow)
    experiment = client.get_experiment_by_name("yarn-ops")
    (found,) = client.search_runs([experiment.experiment_id])
    uses = next(s for s in measured[1].record["scores"] if s["task"] == "capacity/uses")
    assert found.data.metrics["uses_tokens"] == uses["value"]
    assert {"sees_tokens", "needle/code/after"} <= set(found.data.metrics)
    pictures = {Path(file.path).name for file in client.list_artifacts(found.info.run_id, "pictures")}
    assert {"capacity.html", "capacity.png"} <= pictures
    assert open_tracking(settings).models()

    shown = artifact(prefect_api, "capacity")
    assert shown["description"].startswith("small sees ")
    assert "**base** sees" in shown["data"] and "](data:image/png;base64," in shown["data"]

    again = cli("extend", small_recipe, "--set", "gate.max_short_growth=3")  # another gate measures nothing
    assert again.returncode == 0, again.stderr
    reused = {stage.stage: stage.reused for stage in last_run(state).stages}
    assert reused["evaluate"] and not reused["gate"]
    cells = cells_of(state)
    alone = ("--set", "evaluate.suite=none", "--set", "gate.conditions=[]")
    without = cli("extend", small_recipe, *alone)  # nor does another suite score anew
    assert without.returncode == 0, without.stderr
    reused = {stage.stage: stage.reused for stage in last_run(state).stages}
    assert not reused["evaluate"] and reused["train"]
    assert cells_of(state) == cells
