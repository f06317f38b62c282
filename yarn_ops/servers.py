"""The embedded servers: Prefect, MLflow and a worker on loopback, started and stopped by our own commands."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from yarn_ops import processes
from yarn_ops.errors import SettingsError
from yarn_ops.settings import Settings, child_environment

LOOPBACK = "127.0.0.1"
START_S = 120.0  # a first start creates its database: 11 s seen on 2 cores
WORK_POOL = "yarn-ops"


@dataclass(frozen=True)
class Service:
    """Addresses of a running service, as `yarn-ops up` leaves them in the state directory."""

    pid: int
    prefect_api_url: str
    mlflow_uri: str

    @property
    def prefect_ui_url(self) -> str:
        return self.prefect_api_url.removesuffix("/api")


@dataclass(frozen=True)
class Server:
    """One server process and how to see that it is up."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    url: str = ""

    def wait(self) -> None:
        """Until its health page answers; SettingsError in one line with the end of its log when it does not."""
        deadline = time.monotonic() + START_S
        while not answers(f"{self.url}/health"):
            if self.process.poll() is not None:
                raise SettingsError(
                    f"{self.name} ended at its start: {processes.last_lines(self.log)} (whole log: {self.log})"
                )
            if time.monotonic() > deadline:
                raise SettingsError(f"{self.name} does not answer at {self.url}; see {self.log}")
            time.sleep(0.1)


def answers(url: str) -> bool:
    """Whether an HTTP GET of `url` succeeds within two seconds."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def running_service(settings: Settings) -> Service | None:
    """The service that `yarn-ops up` runs on this state directory, when it is alive."""
    try:
        service = Service(**json.loads(_service_file(settings).read_text("utf-8")))
        os.kill(service.pid, 0)
    except (OSError, ValueError, TypeError):
        return None
    return service if answers(f"{service.prefect_api_url}/health") else None


@contextmanager
def prefect_api(settings: Settings) -> Iterator[str]:
    """Address of a Prefect API for one run: the one in the settings, the running service's, or our own."""
    if settings.prefect_api_url is not None:
        yield settings.prefect_api_url
        return
    service = running_service(settings)
    if service is not None:
        yield service.prefect_api_url
        return
    server = start_prefect(settings, free_port(), services=False)
    try:
        server.wait()
        yield server.url
    finally:
        processes.stop(server.process)


def start_prefect(settings: Settings, port: int, *, services: bool) -> Server:
    """A Prefect server on loopback; `services`: scheduler and automations too."""
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)]
    url = f"http://{LOOPBACK}:{port}/api"
    log = settings.home / "logs" / "prefect-server.log"
    database = f"sqlite+aiosqlite:///{settings.home / 'prefect' / 'prefect.db'}"
    process = processes.start(
        command if services else [*command, "--no-services"],
        log=log,
        env=child_environment(
            {**client_environment(settings, url), "PREFECT_API_DATABASE_CONNECTION_URL": database}
        ),
    )
    return Server("the Prefect server", process, log, url)


def start_mlflow(settings: Settings, port: int) -> Server:
    """An MLflow server on loopback over the same database and artifacts as the command line uses."""
    log = settings.home / "logs" / "mlflow-server.log"
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1",
        "--backend-store-uri", settings.mlflow, "--default-artifact-root", f"{settings.store}/mlflow",
    ]  # fmt: skip
    process = processes.start(command, log=log, env=child_environment({"MLFLOW_DISABLE_TELEMETRY": "true"}))
    return Server("the MLflow server", process, log, f"http://{LOOPBACK}:{port}")


def start_worker(settings: Settings, service: Service) -> Server:
    """A process worker of our work pool; the runs it starts report to the service's MLflow."""
    log = settings.home / "logs" / "worker.log"
    command = [
        sys.executable, "-m", "prefect", "worker", "start", "--pool", WORK_POOL, "--type", "process",
        "--install-policy", "never",
    ]  # fmt: skip
    environment = {
        **client_environment(settings, service.prefect_api_url),
        "YARN_OPS_MLFLOW_URI": service.mlflow_uri,
    }
    return Server("the worker", processes.start(command, log=log, env=child_environment(environment)), log)


def client_environment(settings: Settings, api_url: str) -> dict[str, str]:
    """What a process needs in its environment to use this Prefect API and keep to our state directory."""
    home = settings.home / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_API_URL": api_url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # our own progress is what a terminal shows
        "YARN_OPS_STATE_DIR": str(settings.home),
    }


def free_port(wanted: int = 0) -> int:
    """`wanted` if nobody listens there, else any free port of the loopback interface."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SettingsError("no free port on the loopback interface; close something that listens")


def write_service(settings: Settings, service: Service) -> None:
    """Tell other commands on this state directory where the service is."""
    _service_file(settings).write_text(json.dumps(vars(service)), "utf-8")


def forget_service(settings: Settings) -> None:
    _service_file(settings).unlink(missing_ok=True)


def _service_file(settings: Settings) -> Path:
    return settings.home / "service.json"
