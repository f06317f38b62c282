"""Metrics, on SQLite and PostgreSQL: what the registry holds, and which service is away."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacks import Target, attack

from yarn_ops import processes, servers
from yarn_ops.errors import SettingsError
from yarn_ops.metrics import Collector, application, render
from yarn_ops.records import Report
from yarn_ops.registry import Registry
from yarn_ops.settings import Settings


def test_stages_and_runs_are_counted(
    registry: Registry, database_url: str, run_id: str, tmp_path: Path
) -> None:
    for key, seconds in (("a" * 64, 2.5), ("b" * 64, 1.5)):
        lease = registry.claim(key, stage="train", run_id=run_id, holder="me", lease_s=60)
        assert lease is not None
        registry.complete(lease, Report(tree=None, parents=(), pictures=()))
        registry.note_use(run_id, key, reused=False, seconds=seconds)
    assert registry.claim("c" * 64, stage="merge", run_id=run_id, holder="me", lease_s=60)
    told = render(Collector(Settings(state_dir=tmp_path, database_url=database_url))).decode()
    for line in (
        'yarn_ops_up{service="registry"} 1.0',
        'yarn_ops_runs{status="running"} 1.0',
        'yarn_ops_stages{stage="train",status="completed"} 2.0',
        'yarn_ops_stages{stage="merge",status="running"} 1.0',
        'yarn_ops_stage_seconds_count{stage="train"} 2.0',
        'yarn_ops_stage_seconds_sum{stage="train"} 4.0',
    ):
        assert line in told


def test_a_service_that_is_away_is_told_and_hides_nothing(database_url: str, tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{servers.free_port()}/api"
    settings = Settings(state_dir=tmp_path, database_url=database_url, prefect_api_url=nobody)
    told = render(Collector(settings)).decode()  # the database is there, its tables are not
    assert 'yarn_ops_up{service="registry"} 0.0' in told
    assert 'yarn_ops_up{service="prefect"} 0.0' in told


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Metrics of an empty registry, served as the stack serves them."""
    folder, port = tmp_path_factory.mktemp("metrics"), servers.free_port()
    environment = {"YARN_OPS_STATE_DIR": str(folder), "YARN_OPS_PREFECT_AUTH": "me:hunter2"}
    command = [sys.executable, "-m", "yarn_ops.metrics", "--port", str(port)]
    process = processes.start(command, log=folder / "log", env={**os.environ, **environment})
    servers.Server("metrics", process, folder / "log", f"http://127.0.0.1:{port}").wait()
    yield Target(port, "me:hunter2", "/metrics", "/metrics", {})
    processes.stop(process)


def test_the_page_is_for_who_knows_the_password(page: Target) -> None:
    assert "yarn_ops_up" in page.ask()[1]
    assert page.ask("GET", "/health", password=False)[0] == 200
    assert page.ask("GET", "/elsewhere")[0] == 404
    attack(page)


def test_no_page_without_a_password(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="YARN_OPS_PREFECT_AUTH: not set"):
        application(Settings(state_dir=tmp_path))
