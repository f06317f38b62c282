"""A suite shared by processes that know of each other through PostgreSQL alone; one is killed midway."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from postgres import PostgresCluster
from sqlalchemy import select

from yarn_ops.registry import Registry, open_registry, upgrade
from yarn_ops.registry.tables import CellRow, MeasurementRow

MODEL, DOCUMENTS, LONGEST = "shipped:base512", "stdlib:asyncio/*.py", 1024
CELLS = 9
"""context and needles, each at 128, 256, 512 and 1,024 tokens, and attention where needles are found"""


def worker(state: Path, database_url: str) -> subprocess.Popen[str]:
    """`yarn-ops evaluate`, as on a machine of its own: nothing in common but the database."""
    command = (
        *(sys.executable, "-m", "yarn_ops.cli", "evaluate", MODEL, "--suite", "tiny", "--json"),
        *("--documents", DOCUMENTS, "--longest", str(LONGEST)),
    )
    variables = {"YARN_OPS_STATE_DIR": str(state), "YARN_OPS_DATABASE_URL": database_url}
    return subprocess.Popen(
        command,
        env={**os.environ, **variables, "YARN_OPS_DEVICE": "cpu"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def cells(registry: Registry) -> list[CellRow]:
    with registry.begin() as session:
        return list(session.scalars(select(CellRow).order_by(CellRow.key)))


def at_work(registry: Registry) -> CellRow | None:
    """A cell that is being measured, once another is finished."""
    rows = cells(registry)
    finished = any(row.finished_at for row in rows)
    return next((row for row in rows if row.finished_at is None and row.lease_expires and finished), None)


def kill_midway(registry: Registry, workers: list[subprocess.Popen[str]]) -> tuple[str, int]:
    """SIGKILL to one that measures a cell: the cell's key, and the process's number."""
    pids = {worker.pid for worker in workers}

    def stopped_at_work() -> tuple[str, int] | None:
        held = at_work(registry)
        if held is None:
            return None
        pid = int(held.holder.partition("@")[0])
        assert pid in pids
        os.kill(pid, signal.SIGSTOP)
        if held.key in {row.key for row in cells(registry) if row.finished_at is None}:
            return held.key, pid
        os.kill(pid, signal.SIGCONT)
        return None

    key, pid = until(stopped_at_work)
    os.kill(pid, signal.SIGKILL)
    return key, pid


def until(found: Callable[[], Any], timeout_s: float = 400.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := found()):
        assert time.monotonic() < deadline, "nothing of the kind came"
        time.sleep(0.1)
    return value


def scores(registry: Registry) -> set[tuple[Any, ...]]:
    """Every score with every item, as it is kept."""
    with registry.begin() as session:
        return {
            (row.cell, row.task, row.context_tokens, row.depth, row.value, row.low, row.high, row.items)
            for row in session.scalars(select(MeasurementRow))
        }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_and_one_killed_find_what_one_finds(postgres: PostgresCluster, tmp_path: Path) -> None:
    shared, alone = postgres.create_database(), f"sqlite:///{tmp_path / 'alone.db'}"
    for url in (shared, alone):
        upgrade(url)
    workers = [worker(tmp_path / name, shared) for name in ("one", "other")]
    registry, registry_alone = open_registry(shared), open_registry(alone)
    try:
        key, pid = kill_midway(registry, workers)
        (left,) = (process for process in workers if process.pid != pid)
        printed, complaints = left.communicate(timeout=400)
        assert left.returncode == 0, complaints
        computed = cells(registry)
        workers.append(worker(tmp_path / "alone", alone))
        printed_alone, _ = workers[-1].communicate(timeout=400)
        assert json.loads(printed) == json.loads(printed_alone)
        assert scores(registry) == scores(registry_alone)
    finally:
        for process in workers:
            process.kill()
            process.wait()
        registry.close()
        registry_alone.close()
    assert len(computed) == CELLS and all(row.finished_at for row in computed)
    assert {row.key: row.fence for row in computed} == {row.key: 1 + (row.key == key) for row in computed}
    assert not any(row.key == key and row.holder.startswith(f"{pid}@") for row in computed)
