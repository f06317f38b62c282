"""A registered model scored again: it holds, or it falls and an event says so."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect_here import AUTH, post

from yarn_ops import processes, servers
from yarn_ops.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SCORE_AGAIN = """
from flows.reevaluate import reevaluate
from flows.outcome import run_here
print(run_here(reevaluate, None, 'small', 'champion', 1))
"""


@pytest.fixture
def api_with_events(tmp_path: Path) -> Iterator[str]:
    """A Prefect server that keeps events; the session's has no services."""
    (tmp_path / "prefect").mkdir()
    server = servers.start_prefect(
        Settings(state_dir=tmp_path / "prefect", prefect_auth=AUTH), servers.free_port(), services=True
    )
    server.wait()
    yield server.url
    processes.stop(server.process)


def score_again(environment: dict[str, str], api: str) -> subprocess.CompletedProcess[str]:
    environment = {**environment, "YARN_OPS_PREFECT_API_URL": api, "PREFECT_API_URL": api}
    return subprocess.run(
        [sys.executable, "-c", SCORE_AGAIN], env=environment, capture_output=True, text=True, timeout=400
    )


def events(api: str, name: str) -> list[dict[str, Any]]:
    """Of this name; the server keeps what it was sent a moment later."""
    for _ in range(20):
        found = post(api, "/events/filter", filter={"event": {"name": [name]}})["events"]
        if found:
            return found
        time.sleep(0.5)
    return []


def test_a_model_holds_and_then_falls(
    cli, small_recipe: Path, environment, state: Path, api_with_events: str
):
    assert cli("extend", small_recipe).returncode == 0
    held = score_again(environment, api_with_events)
    assert held.returncode == 0, held.stderr

    with sqlite3.connect(state / "registry.db") as database:  # as if its gate had asked for more
        rows = database.execute("SELECT id, recipe FROM runs").fetchall()
        for run, text in rows:
            recipe = json.loads(text)
            recipe["gate"]["min_recall"] = 1.0
            database.execute("UPDATE runs SET recipe = ? WHERE id = ?", (json.dumps(recipe), run))
    fell = score_again(environment, api_with_events)
    assert fell.returncode != 0
    assert "fell below its gate" in fell.stderr
    found = events(api_with_events, "yarn-ops.release.fell")
    assert found and found[0]["payload"]["name"] == "small"
    assert any("below 1" in reason for reason in found[0]["payload"]["reasons"])
    assert events(api_with_events, "yarn-ops.release.held")
