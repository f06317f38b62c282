"""Metrics, on SQLite and PostgreSQL: what the registry holds, and which service is away."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from threading import Thread

from pydantic import SecretStr

from yarn_ops import servers
from yarn_ops.metrics import Collector, render, serve
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


def test_the_page_is_served_on_loopback(database_url: str, tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, database_url=database_url, prefect_auth=SecretStr("me:hunter2"))
    with serve(settings, 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        host, port = server.server_address[:2]
        assert host == "127.0.0.1"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
            assert answer.status == 200
        request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics")
        request.add_header("Authorization", "Basic bWU6aHVudGVyMg==")
        with urllib.request.urlopen(request) as answer:
            assert b"yarn_ops_up" in answer.read()
        server.shutdown()
