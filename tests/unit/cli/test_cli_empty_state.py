"""A machine where nothing has run yet is not a fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from yarn_ops.services import open_run_registry
from yarn_ops.settings import read_settings


def test_no_runs_yet(yarn_ops: Any, state: Path) -> None:
    answer = yarn_ops("runs")
    assert (answer.status, answer.err) == (0, "")
    assert answer.out == "no runs yet; `yarn-ops extend RECIPE` makes one\n"
    assert json.loads(yarn_ops("runs", "--json").out) == []


def test_there_is_no_last_run(yarn_ops: Any) -> None:
    answer = yarn_ops("runs", "show", "--last")
    assert (answer.status, answer.err) == (2, "yarn-ops: no run yet; `yarn-ops extend RECIPE` makes one\n")


def test_no_models_yet(yarn_ops: Any) -> None:
    answer = yarn_ops("models", "--json")
    assert (answer.status, json.loads(answer.out), answer.err) == (0, [], "")
    assert yarn_ops("models").out == "no model version matches\n"


def test_a_shared_database_is_not_made_by_looking(yarn_ops: Any, tmp_path: Path) -> None:
    answer = yarn_ops("runs", YARN_OPS_DATABASE_URL=f"sqlite:///{tmp_path}/shared.db")
    assert answer.status == 2
    assert answer.err.endswith("shared.db: no such database; run `yarn-ops db upgrade`\n")
    assert not (tmp_path / "shared.db").exists()


def test_upgrading_twice_is_fine(yarn_ops: Any, state: Path) -> None:
    for _ in range(2):
        assert yarn_ops("db", "upgrade").out == "registry: up to date\n"
    with_tables = open_run_registry(read_settings())
    assert with_tables.runs() == []
    with_tables.close()
