"""A service in processes of its own, and its Prefect API as anybody uses it: over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from yarn_ops import servers
from yarn_ops.servers import Service
from yarn_ops.train.launch import PID

READY = "Ctrl-C stops everything."
DEPLOYMENT = "extend-context/extend-context"
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class _Patient(httpx.HTTPTransport):
    """Asks again where a Prefect server answers 503: its database is busy, on a machine that is."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for _ in range(60):
            response = super().handle_request(request)
            if response.status_code != 503:
                break
            time.sleep(1)
        return response


class Remote:
    """A service that runs somewhere, from a shell with `environment` and over its API."""

    def __init__(
        self, environment: dict[str, str], service: Service, auth: tuple[str, str] | None = None
    ) -> None:
        self.environment = environment
        self.service = service
        self._api = httpx.Client(
            base_url=service.prefect_api_url, timeout=30, auth=auth, transport=_Patient()
        )
        self._runs: dict[str, str] = {}

    @property
    def deployment(self) -> dict[str, Any]:
        return self._get(f"/deployments/name/{DEPLOYMENT}")

    @property
    def short(self) -> dict[str, Any]:
        """The deployment with the form of five fields."""
        return self._get("/deployments/name/extend-model/extend-model")

    def command(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """`yarn-ops …` in another shell."""
        return subprocess.run(
            [sys.executable, "-m", "yarn_ops.cli", *map(str, arguments)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def submit(self, recipe: dict[str, Any]) -> httpx.Response:
        """Ask for a run of the deployment."""
        return self._api.post(
            f"/deployments/{self.deployment['id']}/create_flow_run", json={"parameters": {"recipe": recipe}}
        )

    def cancel(self, run_id: str) -> None:
        """As the button in the UI does."""
        state = {"type": "CANCELLING", "name": "Cancelling"}
        self._api.post(f"/flow_runs/{run_id}/set_state", json={"state": state}).raise_for_status()

    def resume(self, run_id: str, answer: dict[str, Any]) -> dict[str, Any]:
        """As the form of a suspended run does."""
        return self.post(f"/flow_runs/{run_id}/resume", run_input=answer)

    def run(self, run_id: str) -> dict[str, Any]:
        return self._get(f"/flow_runs/{run_id}")

    def begin(self, recipe: dict[str, Any]) -> str:
        """The run of this recipe; asked for once, whoever asks."""
        key = json.dumps(recipe)
        if key not in self._runs:
            self._runs[key] = self.submit(recipe).raise_for_status().json()["id"]
        return self._runs[key]

    def run_of(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """The finished run of this recipe."""
        return self.finished(self.begin(recipe))

    def finished(self, run_id: str) -> dict[str, Any]:
        """The run, once it has ended."""
        wait_until(lambda: self.run(run_id)["state_type"] in FINAL, timeout_s=240)
        return self.run(run_id)

    def find(self, kind: str, run_id: str) -> list[dict[str, Any]]:
        """The `task_runs`, `artifacts` or `logs` of a run."""
        answer = self._api.post(f"/{kind}/filter", json={"flow_runs": {"id": {"any_": [run_id]}}})
        return answer.raise_for_status().json()

    def runs(self) -> list[dict[str, Any]]:
        """All runs that have begun, newest first."""
        answer = self._api.post("/flow_runs/filter", json={"sort": "START_TIME_DESC"})
        return [run for run in answer.raise_for_status().json() if run["start_time"]]

    def change_deployment(self, **values: Any) -> None:
        """What a person changes of it in the UI."""
        self._api.patch(f"/deployments/{self.deployment['id']}", json=values).raise_for_status()

    def switch_on(self, schedule: dict[str, Any], active: bool = True) -> None:
        path = f"/deployments/{self.deployment['id']}/schedules/{schedule['id']}"
        self._api.patch(path, json={"active": active}).raise_for_status()

    def emit(self, name: str, resource: str, payload: dict[str, Any]) -> None:
        """An event, as a flow emits it."""
        event = {
            "occurred": datetime.now(UTC).isoformat(), "event": name, "id": str(uuid.uuid4()),
            "resource": {"prefect.resource.id": resource}, "payload": payload,
        }  # fmt: skip
        self._api.post("/events", json=[event]).raise_for_status()

    def post(self, path: str, **values: Any) -> Any:
        return self._api.post(path, json=values).raise_for_status().json()

    def _get(self, path: str) -> Any:
        return self._api.get(path).raise_for_status().json()


class Up(Remote):
    """A service on `state`, started and healthy: the checkout's, or what `program` starts."""

    def __init__(
        self,
        state: Path,
        program: tuple[str, ...] = (sys.executable, "-m", "yarn_ops.cli"),
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        environment = {**environment, "YARN_OPS_STATE_DIR": str(state)}
        self._log = state.with_name(f"{state.name}-up.log")
        self._log.unlink(missing_ok=True)
        command = [
            *(*program, "up"),
            *("--prefect-port", str(servers.free_port()), "--mlflow-port", str(servers.free_port())),
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=environment, cwd=state.parent, stdout=log, stderr=log
            )
        wait_until(lambda: READY in self.printed or self._process.poll() is not None, timeout_s=200)
        assert self._process.poll() is None, self.printed
        service = Service(**json.loads((state / "service.json").read_text()))
        user, _, password = str(service.prefect_auth).partition(":")
        super().__init__(environment, service, (user, password))

    @property
    def printed(self) -> str:
        return self._log.read_text()

    @property
    def for_mlflow(self) -> dict[str, str]:
        """What plain MLflow wants to know of the service."""
        return {
            "MLFLOW_TRACKING_URI": self.service.mlflow_uri,
            "MLFLOW_TRACKING_USERNAME": str(self.service.mlflow_username),
            "MLFLOW_TRACKING_PASSWORD": str(self.service.mlflow_password),
        }

    @property
    def addresses(self) -> dict[str, str]:
        """What was printed for a browser, by the name of the server."""
        lines = (line.partition(" UI ") for line in self.printed.splitlines())
        return {name: address.strip() for name, ui, address in lines if ui}

    def processes(self) -> list[psutil.Process]:
        """The service and all that it has started."""
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]

    def trains(self) -> bool:
        """Whether a trainer is at work on its job."""
        at_work = Path(self.environment["YARN_OPS_STATE_DIR"], "work").glob(f"*/{PID}")
        return any(psutil.pid_exists(json.loads(record.read_bytes())["pid"]) for record in at_work)

    def end(self, number: signal.Signals) -> list[psutil.Process]:
        """Send the signal; what is still alive half a minute later."""
        started = self.processes()
        self._process.send_signal(number)
        self._process.wait(timeout=60)
        deadline = time.monotonic() + 30
        while (left := [process for process in started if _alive(process)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left


def wait_until(holds: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
