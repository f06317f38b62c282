"""One suite by one worker and by two that share it through PostgreSQL, and with one of the two killed.

    python infra/benchmarks/grid.py [--suite tiny] [--longest 2048] [--trials 5]

Every worker is a `yarn-ops evaluate` of the demo's base with a state directory of its own and one thread, so
that two workers have a core each. A worker's own seconds are those of its processor: on a machine that has
other work, too, they say what wall seconds would on an idle one. In each trial one worker is killed (SIGKILL)
at a random moment after its first cell began, and the scores that the other prints are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from yarn_ops.registry import Registry, open_registry, upgrade
from yarn_ops.registry.tables import CellRow
from yarn_ops.servers import free_port
from yarn_ops.stack.part import RunningPart
from yarn_ops.stack.postgres import Postgres

MODEL, DOCUMENTS = "shipped:base512", "stdlib:asyncio/*.py"
POLL_S = 0.1


@dataclass
class Worker:
    """A process that measures, and what it used and printed at its end."""

    process: subprocess.Popen[str]
    output: Path
    processor_s: float = 0.0

    def wait(self) -> None:
        _, status, used = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.processor_s = used.ru_utime + used.ru_stime

    def scores(self) -> Any:
        return json.loads(self.output.read_text("utf-8"))

    def skipped(self) -> Any:
        """Cells for which the documents are too short."""
        (model,) = self.scores()
        return model["skipped"]


def start(asked: argparse.Namespace, url: str, folder: Path) -> Worker:
    folder.mkdir(parents=True)
    command = (
        *(sys.executable, "-m", "yarn_ops.cli", "evaluate", MODEL, "--suite", asked.suite, "--json"),
        *("--documents", DOCUMENTS, "--longest", str(asked.longest)),
    )
    variables = {
        "YARN_OPS_STATE_DIR": str(folder / "state"), "YARN_OPS_DATABASE_URL": url, "YARN_OPS_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    with (folder / "scores.json").open("w") as out, (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **variables}, stdout=out, stderr=log, text=True
        )
    return Worker(process, folder / "scores.json")


def cells(registry: Registry) -> list[CellRow]:
    with registry.begin() as session:
        return list(session.scalars(select(CellRow)))


def pid_of(row: CellRow) -> int:
    return int(row.holder.partition("@")[0])


def together(asked: argparse.Namespace, url: str, folder: Path, count: int) -> tuple[list[Worker], float]:
    upgrade(url)
    began = time.perf_counter()
    workers = [start(asked, url, folder / str(number)) for number in range(count)]
    for worker in workers:
        worker.wait()
        assert worker.process.returncode == 0, (worker.output.parent / "log").read_text()
    return workers, time.perf_counter() - began


def killed(asked: argparse.Namespace, url: str, folder: Path, wait_s: float) -> tuple[Worker, list[CellRow]]:
    """(who was left, the cells)"""
    upgrade(url)
    registry = open_registry(url)
    workers = [start(asked, url, folder / str(number)) for number in range(2)]
    victim, left = workers
    while not any(pid_of(row) == victim.process.pid for row in cells(registry)):
        assert victim.process.poll() is None, (victim.output.parent / "log").read_text()
        time.sleep(POLL_S)
    time.sleep(wait_s)
    victim.process.send_signal(signal.SIGKILL)
    victim.wait()
    left.wait()
    assert left.process.returncode == 0, (left.output.parent / "log").read_text()
    found = cells(registry)
    registry.close()
    return left, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--suite", default="tiny")
    parser.add_argument("--longest", type=int, default=2048)
    parser.add_argument("--trials", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        postgres = Postgres(folder / "postgres", port=free_port(), password="benchmark", durable=False)
        postgres.prepare()
        server = RunningPart.start(postgres.part(), folder / "logs")
        try:
            server.wait()
            measure(asked, postgres, folder)
        finally:
            server.stop()


def measure(asked: argparse.Namespace, postgres: Postgres, folder: Path) -> None:
    import psycopg

    def database(name: str) -> str:
        with psycopg.connect(postgres.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
        return postgres.url(name)

    print("| workers | cells of each | processor s of each | wall s |\n|---|---|---|---|", flush=True)
    alone: Any = None
    for count in (1, 2):
        url = database(f"w{count}")
        workers, wall_s = together(asked, url, folder / f"w{count}", count)
        registry = open_registry(url)
        found = cells(registry)
        registry.close()
        finished = [row for row in found if row.finished_at]
        assert all(row.fence == 1 for row in finished)
        assert len(found) - len(finished) == len(workers[0].skipped())
        measured = Counter(map(pid_of, finished))
        each = ", ".join(str(measured[worker.process.pid]) for worker in workers)
        used = ", ".join(f"{worker.processor_s:.0f}" for worker in workers)
        print(f"| {count} | {each} | {used} | {wall_s:.0f} |", flush=True)
        alone = alone or workers[0].scores()
        assert all(worker.scores() == alone for worker in workers)
    print("\n| trial | killed after s | cells begun twice | scores |\n|---|---|---|---|")
    rng = random.Random(0)
    for trial in range(asked.trials):
        wait_s = rng.uniform(0, 4)
        left, found = killed(asked, database(f"t{trial}"), folder / f"t{trial}", wait_s)
        twice = sum(row.fence - 1 for row in found if row.finished_at)
        same = "the same" if left.scores() == alone else "OTHERS"
        print(f"| {trial + 1} | {wait_s:.1f} | {twice} | {same} |", flush=True)


if __name__ == "__main__":
    main()
