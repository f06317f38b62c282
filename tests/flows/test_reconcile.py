"""The reconciler over a real Prefect server: what lost its process goes on, what was missed runs once."""

from __future__ import annotations

import os
import tomllib
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect_here import at, client

from yarn_ops.registry import open_registry, this_process
from yarn_ops.services import open_run_registry
from yarn_ops.settings import Settings, read_settings
from yarn_ops.store import open_store
from yarn_ops.store.trees import put_tree, tree_present

RUNNING = {"type": "RUNNING", "name": "Running"}
GATE = "Flow run encountered an exception: GateFailed: small version 1 was rejected"
STORE = "Flow run encountered an exception: StoreError: s3://b: http://127.0.0.1:1 does not answer"


class Server:
    """A Prefect server with our pools and one deployment, over HTTP."""

    def __init__(self, api_url: str) -> None:
        self._api = client(api_url)
        for pool in ("yarn-ops", "yarn-ops-gpu"):
            self._api.post("/work_pools/", json={"name": pool, "type": "process"})
        flow = self.post("/flows/", name=f"flow-{uuid.uuid4().hex[:8]}")["id"]
        schedule = {"active": False, "schedule": {"cron": "*/5 * * * *", "timezone": "UTC"}}
        self.deployment = self.post(
            "/deployments/", name="d", flow_id=flow, work_pool_name="yarn-ops", schedules=[schedule]
        )["id"]

    def run(self, state: dict[str, Any], process: str = "") -> str:
        """A flow run in this state, signed by this process."""
        run_id = self.post(f"/deployments/{self.deployment}/create_flow_run")["id"]
        if process:
            self._api.patch(f"/flow_runs/{run_id}/labels", json={"yarn_ops.process": process})
        self.post(f"/flow_runs/{run_id}/set_state", state=state, force=True)
        return run_id

    def state(self, run_id: str) -> str:
        return self._api.get(f"/flow_runs/{run_id}").json()["state_type"]

    def schedule(self, hours: int) -> list[str]:
        """The ids of what a schedule would have run in the last hours."""
        begin, end = datetime.now(UTC) - timedelta(hours=hours), datetime.now(UTC)
        found = self._api.get(f"/deployments/{self.deployment}").json()["schedules"][0]["id"]
        self._api.patch(f"/deployments/{self.deployment}/schedules/{found}", json={"active": True})
        self.post(
            f"/deployments/{self.deployment}/schedule",
            start_time=begin.isoformat(), end_time=end.isoformat(), min_runs=3, max_runs=5,
        )  # fmt: skip
        self._api.patch(f"/deployments/{self.deployment}/schedules/{found}", json={"active": False})
        runs = self.post("/flow_runs/filter", deployments={"id": {"any_": [self.deployment]}})
        runs = [run for run in runs if run["auto_scheduled"]]
        return [run["id"] for run in sorted(runs, key=lambda run: run["expected_start_time"])]

    def fail(self, run_id: str) -> None:
        self.post(f"/flow_runs/{run_id}/set_state", state={"type": "FAILED", "name": "Failed"}, force=True)

    def post(self, path: str, **values: Any) -> Any:
        answer = self._api.post(path, json=values).raise_for_status()
        return answer.json() if answer.content else None


@pytest.fixture
def server(prefect_api: str) -> Server:
    return Server(prefect_api)


@pytest.fixture
def settings(
    prefect_api: str, tmp_path: Path, mlflow_here: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Settings]:
    """In this process, over this server."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("YARN_OPS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("YARN_OPS_MLFLOW_URI", mlflow_here)
    for name, value in at(prefect_api).items():
        monkeypatch.setenv(name, value)
    settings = read_settings()
    open_run_registry(settings).close()
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        yield settings


@pytest.fixture(scope="module")
def mlflow_here(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for all: it takes seconds to make."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def settle(settings: Settings) -> dict[str, list[str]]:
    from flows import reconcile

    return reconcile.settle(settings)


def test_a_run_without_its_process_goes_on(server: Server, settings: Settings) -> None:
    here = this_process().partition("@")[2]
    killed = server.run(RUNNING, f"999999@{here}")
    far = server.run(RUNNING, "999999@elsewhere/0/0")
    just_begun = server.run(RUNNING)
    cancelled = server.run({"type": "CANCELLING", "name": "Cancelling"}, f"999999@{here}")
    settle(settings)
    runs = (killed, far, just_begun, cancelled)
    assert [server.state(run) for run in runs] == ["SCHEDULED", "RUNNING", "RUNNING", "CANCELLED"]
    assert settle(settings)["flow run taken up again"] == []


def test_what_failed_by_a_service_is_tried_again_and_a_rejection_is_not(
    server: Server, settings: Settings
) -> None:
    crashed = server.run({"type": "CRASHED", "name": "Crashed"})
    away = server.run({"type": "FAILED", "name": "Failed", "message": STORE})
    rejected = server.run({"type": "FAILED", "name": "Failed", "message": GATE})
    done = server.run({"type": "COMPLETED", "name": "Completed"})
    settle(settings)
    runs = (crashed, away, rejected, done)
    assert [server.state(run) for run in runs] == ["SCHEDULED", "SCHEDULED", "FAILED", "COMPLETED"]


def test_missed_schedules_run_once(server: Server, settings: Settings) -> None:
    missed = server.schedule(hours=1)
    assert len(missed) >= 3
    settle(settings)
    assert [server.state(run) for run in missed] == ["CANCELLED"] * (len(missed) - 1) + ["SCHEDULED"]


def test_an_urgent_run_is_the_next(server: Server, settings: Settings) -> None:
    from prefect.client.orchestration import get_client

    from flows.deploy import ensure_pool

    pool = f"pool-{uuid.uuid4().hex[:8]}"
    with get_client(sync_client=True) as client:
        ensure_pool(client, pool, runs_at_once=3)
    flow = server.post("/flows/", name=pool)["id"]
    asked = {}
    for queue in ("default", "urgent"):
        place = {"work_pool_name": pool, "work_queue_name": queue}
        deployment = server.post("/deployments/", name=queue, flow_id=flow, **place)["id"]
        asked[queue] = server.post(f"/deployments/{deployment}/create_flow_run")["id"]
    (next_one,) = server.post(f"/work_pools/{pool}/get_scheduled_flow_runs", limit=1)
    assert next_one["flow_run"]["id"] == asked["urgent"]


def test_the_registry_hears_how_prefect_ended_a_run(server: Server, settings: Settings) -> None:
    registry = open_registry(settings.database)
    flow_run = server.run({"type": "CANCELLED", "name": "Cancelled"})
    run = registry.begin_run({}, "a" * 64, flow_run_id=flow_run)
    going_on = registry.begin_run({}, "b" * 64, flow_run_id=server.run(RUNNING))
    elsewhere = registry.begin_run({}, "c" * 64, flow_run_id=str(uuid.uuid4()))
    assert settle(settings)["run closed"] == [f"{run.id}: stopped"]
    statuses = [registry.run_view(one.id).status for one in (run, going_on, elsewhere)]
    assert statuses == ["stopped", "running", "running"]


def test_a_sweep_leaves_a_store_that_may_be_somebody_elses(settings: Settings, tmp_path: Path) -> None:
    """What lies here is collected all the same."""
    from flows import reconcile

    store = open_store(settings.store)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "a").write_bytes(b"in use, by an earlier program")
    tree = put_tree(store, tmp_path / "made")
    old = settings.home / "work" / "observations" / "tmp0"
    old.mkdir(parents=True)
    for path in (old, *settings.home.joinpath("store").rglob("*")):
        os.utime(path, (0, 0))
    done = reconcile.settle(settings, sweep=True)
    assert done["garbage removed"] == ["work tmp0, 0.0 KiB"]
    (line,) = done["the store is not swept"]
    assert "no registry claims 1 directory" in line and "\n" not in line
    assert tree_present(store, tree)


def test_a_tagged_version_is_extended_once(server: Server, settings: Settings, small_recipe: Path) -> None:
    from prefect.logging import disable_run_logger

    from flows.watch import recipe_for, tag_of, watch
    from yarn_ops.recipe import parse_recipe
    from yarn_ops.release import open_tracking

    recipe = parse_recipe(tomllib.loads(small_recipe.read_text("utf-8")))
    tracking = open_tracking(settings)
    mlflow_run = tracking.start_run("somebody", "theirs", {})
    for name, tag in (("asks", "1024"), ("asks-wrongly", "a lot; DROP TABLE runs")):
        tracking.register(name, f"{tracking.artifact_uri(mlflow_run)}/{name}", mlflow_run, {})
        tracking.set_tag(name, 1, "yarn_ops.extend_to", tag)
    extension = server.post("/flows/", name="extend-context")["id"]
    server.post("/deployments/", name="extend-context", flow_id=extension, work_pool_name="yarn-ops-gpu")

    with disable_run_logger():
        assert watch.fn(recipe) == ["asks 1 -> asks-1024"]
        assert watch.fn(recipe) == []
        (version,) = [found for found in tracking.asking("yarn_ops.extend_to") if found.name == "asks"]
        wanted = recipe_for(version, recipe)
        (run,) = server.post("/flow_runs/filter", flow_runs={"tags": {"all_": [tag_of(wanted)]}})
        assert run["parameters"]["recipe"]["base"]["model"] == "models:/asks/1"
        server.post(
            f"/flow_runs/{run['id']}/set_state", state={"type": "FAILED", "name": "Failed"}, force=True
        )
        assert watch.fn(recipe) == ["asks 1 -> asks-1024"]  # it failed: once more
        registry = open_registry(settings.database)
        begun = registry.begin_run(wanted.model_dump(mode="json"), wanted.digest())
        registry.finish_run(begun.id, "completed")
        (_, again) = server.post("/flow_runs/filter", flow_runs={"tags": {"all_": [tag_of(wanted)]}})
        server.post(
            f"/flow_runs/{again['id']}/set_state", state={"type": "FAILED", "name": "Failed"}, force=True
        )
        assert watch.fn(recipe) == []  # finished
    assert os.environ["YARN_OPS_STATE_DIR"] == str(settings.home)
