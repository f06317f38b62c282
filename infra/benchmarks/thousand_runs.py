"""How long `yarn-ops runs` and `yarn-ops models` take with 1,000 finished runs.

Fills a registry (SQLite, or the PostgreSQL of YARN_OPS_DATABASE_URL) and an MLflow database in a temporary
state directory, then times the commands, their queries alone, and the start of the interpreter. MLflow is
asked as a file and as a server over it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from yarn_ops import processes, servers
from yarn_ops.passwords import new_password, with_passwords
from yarn_ops.recipe import load_recipe
from yarn_ops.registry import Registry
from yarn_ops.registry.tables import ArtifactRow, ReleaseRow, RunRow, RunStageRow, ScoreRow, StageRunRow
from yarn_ops.release import Tracking, open_tracking
from yarn_ops.services import open_run_registry
from yarn_ops.settings import Settings, as_environment, read_settings
from yarn_ops.shipped import recipe_path

RUNS = 1000
MODELS = 20
STAGES = (
    *("base", "patch", "documents", "shards", "rehearse", "evaluate"),
    *("train", "merge", "evaluate", "gate", "report", "publish"),
)
REPEATS = 3


def fill(registry: Registry, tracking: Tracking) -> None:
    """RUNS finished runs with all their stages, 24 scores each, and one model version each."""
    began = datetime.now(UTC) - timedelta(days=RUNS)
    with registry.begin() as session:
        for number in range(RUNS):
            for kind in rows(number, began + timedelta(days=number)):
                session.add_all(kind)
                session.flush()  # rows that others refer to first
    run = tracking.start_run("yarn-ops", "one", {})
    for number in range(RUNS):
        tags = {"gate": "passed", "context_length": "2048", "rope_method": "yarn", "factor": "4", "base": "b"}
        source = f"{tracking.artifact_uri(run)}/{number}"
        tracking.register(f"model-{number % MODELS}", source, run, tags)


def rows(number: int, when: datetime) -> tuple[list[Any], ...]:
    run_id = f"run-{number:06d}"
    recipe = load_recipe(recipe_path("demo"), [f"data.seed={number}"]).model_dump(mode="json")
    runs: list[Any] = [
        RunRow(
            id=run_id, recipe_digest=f"{number:064x}", recipe=recipe, status="completed", attempts=1,
            started_at=when, finished_at=when + timedelta(minutes=3),
        )
    ]  # fmt: skip
    stages, found = list[Any](), list[Any]()
    keys = [f"{number * len(STAGES) + index:064x}" for index in range(len(STAGES))]
    for key, stage in zip(keys, STAGES, strict=True):
        stages.append(
            StageRunRow(
                key=key, stage=stage, run_id=run_id, status="completed", attempts=1, fence=1,
                started_at=when, finished_at=when, output={"tree": None, "parents": []},
            )
        )  # fmt: skip
        found.append(
            ArtifactRow(key=key, digest=key, kind="Record", size_bytes=1, files=1, uri=f"s3://b/{key}")
        )
        found.append(RunStageRow(run_id=run_id, key=key, reused=False, seconds=1.0))
    for cell in range(24):
        found.append(
            ScoreRow(
                key=keys[8], checkpoint_digest=keys[7], task="recall/code", context_tokens=512 * (cell + 1),
                depth=-1.0, seed=0, value=0.9, samples=64,
            )
        )  # fmt: skip
    found.append(
        ReleaseRow(
            key=keys[-1], name=f"model-{number % MODELS}", version=number // MODELS + 1, mlflow_run_id="m",
            gate="passed", alias=None, tags={}, released_at=when,
        )
    )  # fmt: skip
    return runs, stages, found


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """(wall, processor) time, medians of several; the second says what it takes on a machine of its own."""
    walls, processor = [], []
    for _ in range(REPEATS):
        began, used = time.perf_counter(), _processor_s()
        work()
        walls.append(time.perf_counter() - began)
        processor.append(_processor_s() - used)
    return statistics.median(walls), statistics.median(processor)


def _processor_s() -> float:
    """Of this process and of the commands that it waited for."""
    return sum(os.times()[:4])


def command(*arguments: str, **variables: str) -> Callable[[], Any]:
    line = [sys.executable, "-m", "yarn_ops.cli", *arguments]
    return lambda: subprocess.run(line, check=True, capture_output=True, env={**os.environ, **variables})


BY_CLIENT = """
import sys
from yarn_ops import release
from yarn_ops.settings import read_settings
release.read_versions = lambda *_: None
print(len(release.open_tracking(read_settings()).models()))
"""
"""what `yarn-ops models` lists, by MLflow's client alone"""


def by_client(**variables: str) -> Callable[[], Any]:
    line = [sys.executable, "-c", BY_CLIENT]
    return lambda: subprocess.run(line, check=True, capture_output=True, env={**os.environ, **variables})


@contextmanager
def mlflow_server(settings: Settings) -> Iterator[str]:
    """The address of a server over the same database."""
    ours = with_passwords(settings, new_password())
    server = servers.start_mlflow(ours, servers.free_port())
    os.environ |= as_environment(ours, ("mlflow_username", "mlflow_password"))
    try:
        server.wait()
        yield server.url
    finally:
        processes.stop(server.process)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["YARN_OPS_STATE_DIR"] = folder
        settings: Settings = read_settings()
        registry, tracking = open_run_registry(settings), open_tracking(settings)
        Path(folder, "store").mkdir()
        fill(registry, tracking)
        with mlflow_server(settings) as address:
            measure(registry, tracking, address)
        registry.close()


def measure(registry: Registry, tracking: Tracking, address: str) -> None:
    """One line a question."""
    print(f"{RUNS} runs, {MODELS} models of {RUNS // MODELS} versions; medians of {REPEATS}, seconds")
    print("| what | wall s | processor s |\n|---|---|---|")
    for name, work in {
        "registry.runs(20)": lambda: registry.runs(20),
        "registry.runs(1000)": lambda: registry.runs(RUNS),
        "registry.run_view(last)": lambda: registry.run_view("last"),
        "tracking.models()": lambda: tracking.models(),
        "yarn-ops --help": command("--help"),
        "yarn-ops runs": command("runs"),
        "yarn-ops runs --limit 1000": command("runs", "--limit", str(RUNS)),
        "yarn-ops models": command("models"),
        "yarn-ops models (server)": command("models", YARN_OPS_MLFLOW_URI=address),
        "the same versions by MLflow's client": by_client(),
        "the same versions by MLflow's client (server)": by_client(YARN_OPS_MLFLOW_URI=address),
    }.items():
        wall, processor = seconds(work)
        print(f"| `{name}` | {wall:.2f} | {processor:.2f} |", flush=True)


if __name__ == "__main__":
    main()
