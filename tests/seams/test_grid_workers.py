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

from yarn_ops.cli.evaluate import evaluate, facts
from yarn_ops.registry import Registry, open_registry, upgrade
from yarn_ops.registry.tables import CellRow, MeasurementRow
from yarn_ops.settings import Settings

MODEL, DOCUMENTS, LONGEST = "shipped:base512", "stdlib:asyncio/*.py", 1024
CELLS = 5
"""context, and needles at 128, 256, 512 and 1,024 tokens"""


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
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def cells(registry: Registry) -> list[CellRow]:
    with registry.begin() as session:
        return list(session.scalars(select(CellRow).order_by(CellRow.key)))


def held_by(registry: Registry, process: subprocess.Popen[str]) -> CellRow | None:
    """The cell that a worker is measuring, once it has finished another."""
    ours = [row for row in cells(registry) if row.holder.startswith(f"{process.pid}@")]
    finished = any(row.finished_at for row in ours)
    return next((row for row in ours if row.finished_at is None and finished), None)


def kill_midway(registry: Registry, process: subprocess.Popen[str]) -> str:
    """SIGKILL while it measures its second cell or a later one; the cell's key."""

    def stopped_at_work() -> str | None:
        if held_by(registry, process) is None:
            return None
        process.send_signal(signal.SIGSTOP)
        held = held_by(registry, process)
        if held is None:
            process.send_signal(signal.SIGCONT)
        return held and held.key

    key = until(stopped_at_work)
    process.kill()
    process.wait()
    return key


def until(found: Callable[[], Any], timeout_s: float = 280.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := found()):
        assert time.monotonic() < deadline, "nothing of the kind came"
        time.sleep(0.1)
    return value


@pytest.mark.timeout(600)
def test_two_workers_and_one_killed_find_what_one_finds(postgres: PostgresCluster, tmp_path: Path) -> None:
    url = postgres.create_database()
    upgrade(url)
    lost, left = worker(tmp_path / "lost", url), worker(tmp_path / "left", url)
    registry = open_registry(url)
    try:
        key = kill_midway(registry, lost)
        printed, complaints = left.communicate(timeout=280)
        assert left.returncode == 0, complaints
        computed = cells(registry)
        with registry.begin() as session:
            rows = session.scalars(select(MeasurementRow)).all()
    finally:
        for process in (lost, left):
            process.kill()
        registry.close()
    assert len(computed) == CELLS and all(row.finished_at for row in computed)
    assert {row.key: row.fence for row in computed} == {row.key: 1 + (row.key == key) for row in computed}
    assert len({row.holder for row in computed}) == 2
    alone = evaluate(
        Settings(state_dir=tmp_path / "alone", device="cpu"), MODEL, "tiny", base=None,
        documents=[DOCUMENTS], longest=LONGEST, seed=0, out=None,
    )  # fmt: skip
    assert json.loads(printed) == json.loads(json.dumps(facts(alone)))
    kept = {(row.task, row.context_tokens, row.depth): tuple(row.items or ()) for row in rows}
    for score in alone[0].scores:
        depth = -1.0 if score.depth is None else score.depth
        assert kept[score.task, score.context_tokens, depth] == score.items
