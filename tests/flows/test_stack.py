"""`infra/stack`: the production shape starts, works, refuses strangers, outlives deaths, keeps all data."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from attacks import Target, attack, mlflow_of, prefect_of
from botocore.exceptions import ClientError
from kills import kill
from listeners import ports_of
from service import Service
from service_up import Remote, wait_until

from yarn_ops.registry import open_registry
from yarn_ops.settings import Settings
from yarn_ops.stack.parts import Stack
from yarn_ops.stack.plan import StackPaths, ensure_plan
from yarn_ops.stack.postgres import find_programs
from yarn_ops.stack.supervisor import members
from yarn_ops.train.events import read_events

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(find_programs() is None, reason="no PostgreSQL here: apt-get install postgresql"),
]


class Running(Remote):
    """A stack that was started on `state`."""

    def __init__(self, state: Path) -> None:
        self.paths = StackPaths(state)
        self._own = {**os.environ, "YARN_OPS_STATE_DIR": str(state), "YARN_OPS_DEVICE": "cpu"}
        self.up()
        self.stack = Stack(Settings(state_dir=state), self.paths, ensure_plan(self.paths))
        self.settings = self.stack.settings
        assert self.settings.prefect_auth is not None
        user, _, password = self.settings.prefect_auth.get_secret_value().partition(":")
        lines = self.paths.environment.read_text().splitlines()
        variables = {name: value.strip("'") for name, _, value in (line.partition("=") for line in lines)}
        super().__init__({**os.environ, **variables}, self.stack.service, (user, password))

    def up(self) -> str:
        return self.ask("up")

    def ask(self, command: str, status: int = 0) -> str:
        """`infra/stack …`; what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "yarn_ops.stack", command],
            env=self._own,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def part(self, name: str) -> dict[str, Any]:
        """Its pid and restarts."""
        found: dict[str, Any] = json.loads(self.paths.status.read_bytes())["parts"][name]
        return found


@pytest.fixture(scope="module")
def stack() -> Iterator[Running]:
    """One for all; it ends without leaving a process."""
    state = Path(tempfile.mkdtemp(prefix="stack-"))
    try:
        running = Running(state)
        yield running
        running.ask("down")
        assert members(running.paths) == []
        assert "not running" in running.ask("status", status=1)
    finally:
        for process in members(StackPaths(state)):
            process.kill()
        shutil.rmtree(StackPaths(state).postgres, ignore_errors=True)
        shutil.rmtree(state, ignore_errors=True)


def test_every_part_is_healthy(stack: Running) -> None:
    answer = stack.ask("status")
    assert answer.splitlines()[0].startswith("healthy in ")
    assert [line[0] for line in answer.splitlines()[1:]] == ["✓"] * len(stack.stack.all())
    assert "it runs already" in stack.up()


def test_secrets_lie_in_closed_files_and_in_no_command_line_or_log(stack: Running) -> None:
    closed = (stack.paths.plan, stack.paths.environment)
    assert [stat.S_IMODE(path.stat().st_mode) for path in closed] == [0o600] * 2
    secrets = [secret.get_secret_value() for _, secret in stack.stack.plan.secrets]
    open_texts = [" ".join(process.cmdline()) for process in members(stack.paths)]
    open_texts += [log.read_text() for log in stack.paths.logs.iterdir()]
    assert len(open_texts) > 20
    assert [text for text in open_texts if any(secret in text for secret in secrets)] == []


def test_a_stranger_is_refused_by_every_server(stack: Running) -> None:
    users = ("registry", "prefect", "mlflow")
    for user in (*users, "yarn"):
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(stack.stack.postgres.url(user if user in users else "registry", user, "hunter2"))
    for user in users:
        for other in {*users, "postgres", "template1"} - {user}:
            with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry"):
                psycopg.connect(stack.stack.postgres.url(other, user, stack.stack.plan.secrets.plain(user)))
    version = f"{stack.service.prefect_api_url}/admin/version"
    experiments = f"{stack.service.mlflow_uri}/api/2.0/mlflow/experiments/search?max_results=1"
    page = f"{stack.service.mlflow_uri}/"
    for url in (version, experiments, page):
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, auth=("yarn-ops", "hunter2")).status_code == 401
    swift = stack.stack.swift
    right, swift.secret_key = swift.secret_key, "hunter2"
    try:
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            swift.client().list_buckets()
    finally:
        swift.secret_key = right


def test_no_attack_passes_the_servers_of_the_stack(stack: Running) -> None:
    plan = stack.stack.plan
    prefect, mlflow = (f"yarn-ops:{plan.secrets.plain(name)}" for name in ("prefect_user", "mlflow_user"))
    attack(prefect_of(stack.service.prefect_api_url, prefect))
    attack(mlflow_of(stack.service.mlflow_uri, mlflow))
    attack(Target(plan.ports["metrics"], prefect, "/metrics", "/metrics", {}))


def test_the_table_of_ports_leaves_none_out(stack: Running) -> None:
    told = stack.command("doctor", "--security", "--json")
    table = json.loads(told.stdout)
    assert {door["port"] for door in table} == ports_of(member.pid for member in members(stack.paths))
    assert {door["address"] for door in table} == {"127.0.0.1"}
    ports = {port: name for name, port in stack.stack.plan.ports.items()}
    assert {ports.get(door["port"], "channel") for door in table} == {*ports.values(), "channel"}
    assert [door for door in table if not door["closed"]] == []
    assert told.returncode == 0, told.stderr


def test_doctor_finds_the_stack_healthy(stack: Running) -> None:
    found = {one["name"]: one for one in json.loads(stack.command("doctor", "--json").stdout)}
    assert [name for name, one in found.items() if not one["healthy"]] == []
    assert found["workers"]["found"] == "of yarn-ops, yarn-ops-gpu"


def test_doctor_names_every_password_that_is_wrong(stack: Running) -> None:
    wrong = ("YARN_OPS_PREFECT_AUTH", "YARN_OPS_MLFLOW_PASSWORD", "YARN_OPS_S3_SECRET_KEY")
    right = dict(stack.environment)
    stack.environment |= dict.fromkeys(wrong, "hunter2")
    try:
        answer = stack.command("doctor", "--json")
    finally:
        stack.environment = right
    sick = {found["name"]: found["remedy"] for found in json.loads(answer.stdout) if not found["healthy"]}
    assert list(sick) == ["store", "mlflow", "prefect", "workers"]
    assert "check YARN_OPS_S3_ACCESS_KEY" in sick["store"]
    assert "check YARN_OPS_MLFLOW_USERNAME and YARN_OPS_MLFLOW_PASSWORD" in sick["mlflow"]
    assert "write user:password" in sick["prefect"]
    assert "hunter2" not in answer.stdout


@pytest.mark.slow
def test_one_run_trains_another_prepares_and_goes_on_when_the_first_is_cancelled(
    stack: Running, small_recipe: Path
) -> None:
    recipe = tomllib.loads(small_recipe.read_text("utf-8"))
    long = tomllib.loads(small_recipe.read_text("utf-8"))
    long["train"]["steps"], long["data"]["seed"], long["publish"]["name"] = 2000, 1, "long"
    registry = open_registry(stack.settings.database)
    first = stack.submit(long).raise_for_status().json()["id"]

    def at_work() -> dict[str, tuple[str, bool]]:
        """{model: (stage, whether it waits for the device)} of runs that go on."""
        return {
            run.recipe["publish"]["name"]: (run.at_work[-1].stage, run.at_work[-1].waits)
            for run in registry.runs()
            if run.at_work
        }

    wait_until(lambda: at_work().get("long") == ("train", False), timeout_s=180)
    second = stack.begin(recipe)
    wait_until(lambda: at_work().get("small", ("", False))[1], timeout_s=120)
    assert at_work() == {"long": ("train", False), "small": ("train", True)}
    done = [stage.stage for stage in registry.run_view().stages if stage.status == "completed"]
    assert done == ["base", "patch", "rehearse", "documents", "shards"]

    (running,) = [run for run in registry.runs() if run.recipe["publish"]["name"] == "long"]
    (key,) = (one.key for one in registry.run_view(running.id).stages if one.stage == "train")
    work = stack.paths.home / "work" / key[:16]
    wait_until(lambda: any(event["event"] == "step" for event in events(work)), timeout_s=180)
    stack.cancel(first)
    assert stack.finished(first)["state_type"] == "CANCELLED"
    assert [event["event"] for event in events(work)][-2:] == ["checkpoint", "stopped"]
    assert stack.finished(second)["state_type"] == "COMPLETED"
    told = " ".join(log["message"] for log in stack.find("logs", second))
    assert f"waits for {platform.node()}/cpu: train of run " in told
    (cancelled,) = [run for run in registry.runs() if run.recipe["publish"]["name"] == "long"]
    assert cancelled.status == "stopped"
    registry.close()


def events(work: Path) -> list[Any]:
    """Those of the trainer that was at work in this stage's folder, or below it in one last."""
    logs = sorted(work.glob("**/events.jsonl"), key=lambda log: log.stat().st_mtime)
    return list(read_events(logs[-1])) if logs else []


@pytest.mark.slow
def test_a_cancelled_run_goes_on_from_its_checkpoint(stack: Running, small_recipe: Path) -> None:
    recipe = tomllib.loads(small_recipe.read_text("utf-8"))
    recipe["train"]["steps"], recipe["publish"]["name"] = 2000, "cancelled"
    work, last = stack.paths.home / "work", 0
    for _ in range(2):
        asked_at = time.time()
        run_id = stack.submit(recipe).raise_for_status().json()["id"]
        wait_until(lambda since=asked_at: steps(work, since) != [], timeout_s=180)  # type: ignore[misc]
        assert steps(work, asked_at)[0] == last + 1
        cancelled_at = time.time()
        stack.cancel(run_id)
        assert stack.finished(run_id)["state_type"] == "CANCELLED"
        checkpoint, stopped = events(work)[-2:]
        assert (checkpoint["event"], stopped["event"]) == ("checkpoint", "stopped")
        print(f"stopped {stopped['time'] - cancelled_at:.1f} s after the cancellation")
        last = checkpoint["step"]


def steps(work: Path, since: float) -> list[int]:
    """Those that a trainer has taken since then."""
    return [one["step"] for one in events(work) if one["event"] == "step" and one["time"] > since]


@pytest.mark.slow
def test_a_run_asked_for_over_the_api(stack: Running, small_recipe: Path) -> None:
    run = stack.run_of(tomllib.loads(small_recipe.read_text("utf-8")))
    assert run["state_type"] == "COMPLETED", run["state"]
    (version,) = json.loads(stack.command("models", "--json").stdout)
    assert version["source"].startswith("s3://yarn-ops/store/mlflow/")
    told = [run, *(stack.find(kind, run["id"]) for kind in ("task_runs", "artifacts", "logs")), version]
    told.append(json.loads(stack.command("runs", "show", "--last", "--json").stdout))
    mlflow_run = httpx.get(
        f"{stack.service.mlflow_uri}/api/2.0/mlflow/runs/get",
        params={"run_id": version["mlflow_run_id"]},
        auth=("yarn-ops", stack.stack.plan.secrets.plain("mlflow_user")),
    )
    told.append(mlflow_run.raise_for_status().json())
    assert "rope.method" in json.dumps(told[-1])
    secrets = [secret.get_secret_value() for _, secret in stack.stack.plan.secrets]
    assert not any(secret in json.dumps(one) for one in told for secret in secrets)


@pytest.mark.slow
def test_metrics_tell_runs_queues_and_stages(stack: Running, small_recipe: Path) -> None:
    stack.run_of(tomllib.loads(small_recipe.read_text("utf-8")))
    page = f"http://127.0.0.1:{stack.stack.plan.ports['metrics']}/metrics"
    assert httpx.get(page).status_code == 401
    assert httpx.get(page, auth=("yarn-ops", "hunter2")).status_code == 401
    told = httpx.get(page, auth=("yarn-ops", stack.stack.plan.secrets.plain("prefect_user"))).text
    for line in (
        'yarn_ops_up{service="registry"} 1.0',
        'yarn_ops_up{service="prefect"} 1.0',
        'yarn_ops_runs{status="completed"} 1.0',
        'yarn_ops_stages{stage="train",status="completed"} 1.0',
        'yarn_ops_stage_seconds_count{stage="train"} 1.0',
        'yarn_ops_flow_runs{pool="yarn-ops-gpu",state="running"} 0.0',
    ):
        assert line in told


def test_a_killed_server_is_started_again(stack: Running) -> None:
    before = stack.part("s3")
    os.kill(before["pid"], signal.SIGKILL)
    wait_until(lambda: stack.part("s3")["restarts"] == before["restarts"] + 1, timeout_s=60)
    (server,) = [part for part in stack.stack.storage() if part.name == "s3"]
    wait_until(server.ready, timeout_s=60)


def test_a_flow_killed_in_training_is_finished_once(stack: Running) -> None:
    """One cell of the kill matrix; `infra/faults` runs all."""
    before = dict(os.environ)
    try:
        outcome = kill(Service(stack.paths.home), "flow", "train")
    finally:  # MLflow's client is told its password by the environment
        os.environ.clear()
        os.environ.update(before)
    assert outcome is not None
    assert (outcome.fault, outcome.attempts) == ("", 2)


@pytest.mark.slow
def test_nothing_is_lost_over_a_restart(stack: Running, small_recipe: Path) -> None:
    finished = stack.run_of(tomllib.loads(small_recipe.read_text("utf-8")))["id"]
    known = [stack.command(*command).stdout for command in (("runs", "--json"), ("models", "--json"))]
    stack.ask("down")
    assert members(stack.paths) == []
    stack.up()
    assert [stack.command(*command).stdout for command in (("runs", "--json"), ("models", "--json"))] == known
    assert stack.run(finished)["state_type"] == "COMPLETED"
    pulled = stack.command("pull", "small", "--to", stack.paths.home / "pulled")
    assert pulled.returncode == 0, pulled.stderr
