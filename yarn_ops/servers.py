"""The embedded servers: Prefect, MLflow and a worker on loopback, started and stopped by our own commands.

Each server stands behind our guard and asks for a password: the one in the settings, that of the state
directory (`yarn-ops up`), or one that lives as long as the process (a single run).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from yarn_ops import processes
from yarn_ops.errors import SettingsError
from yarn_ops.passwords import new_password, with_passwords, write_private
from yarn_ops.settings import Settings, as_environment, child_environment, mlflow_environment

LOOPBACK = "127.0.0.1"
START_S = 180.0  # a first start creates its database: 11 s seen on 2 cores, a minute when others use them
POLL_S = 0.1
WORKER_POLL_S = 1  # what a person waits for at most after "Submit"; Prefect's own is 10
CPU_POOL = "yarn-ops"
GPU_POOL = "yarn-ops-gpu"
"""for flows that train or measure; on a machine without a GPU the processor does it"""
WORK_POOLS = (CPU_POOL, GPU_POOL)

QUIET = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
"""a terminal shows our own progress"""


@dataclass(frozen=True)
class Service:
    """A running service, as `yarn-ops up` leaves it in the state directory: its addresses and passwords."""

    prefect_api_url: str
    mlflow_uri: str
    prefect_auth: str | None = field(default=None, repr=False)
    mlflow_username: str | None = None
    mlflow_password: str | None = field(default=None, repr=False)
    pid: int = 0
    """of the process that holds it"""

    @classmethod
    def of(cls, settings: Settings, prefect_api_url: str, mlflow_uri: str) -> Service:
        """The service at these addresses, with the passwords of the settings."""
        auth, password = settings.prefect_auth, settings.mlflow_password
        return cls(
            prefect_api_url,
            mlflow_uri,
            None if auth is None else auth.get_secret_value(),
            settings.mlflow_username,
            None if password is None else password.get_secret_value(),
            os.getpid(),
        )

    def settings(self, settings: Settings) -> Settings:
        """The settings of who works with this service."""
        values = {name: value for name, value in vars(self).items() if value is not None and name != "pid"}
        return Settings.model_validate(dict(settings) | values)

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
        """Until its health page answers; SettingsError in one line when it does not."""
        deadline = time.monotonic() + START_S
        while not answers(f"{self.url}/health"):
            self.check()
            if time.monotonic() > deadline:
                raise SettingsError(f"the {self.name} does not answer at {self.url}; see {self.log}")
            time.sleep(POLL_S)

    def check(self) -> None:
        """SettingsError in one line with the end of its log when the process has ended."""
        if self.process.poll() is not None:
            raise SettingsError(f"the {self.name} ended by itself; {self.last_words}")

    @property
    def last_words(self) -> str:
        return f"the end of {self.log}: {processes.last_lines(self.log)}"


def answers(url: str) -> bool:
    """Whether an HTTP GET of `url` succeeds within two seconds."""
    import httpx

    try:  # a context of certificates takes longer than the answer
        return httpx.get(url, timeout=2, verify=url.startswith("https://")).status_code == 200
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


# The service of a state directory: it lives exactly as long as somebody holds the lock.


@contextmanager
def only_service(settings: Settings) -> Iterator[None]:
    """Be the one service of this state directory; SettingsError when another process is."""

    def refusal() -> str:
        service = running_service(settings)
        found = f"already runs at {service.prefect_ui_url}" if service else "is starting or stopping"
        return f"{settings.home}: a service {found} there; stop it first"

    with processes.locked(_lock_file(settings), refusal):
        try:
            yield
        finally:
            for left in (_service_file(settings), _addresses_file(settings)):
                left.unlink(missing_ok=True)


def announce(settings: Settings, service: Service, addresses: str) -> None:
    """Tell other commands on this state directory where the service is, and the person `addresses`."""
    write_private(_service_file(settings), json.dumps(vars(service)))
    write_private(_addresses_file(settings), addresses)


def running_service(settings: Settings) -> Service | None:
    """The service that `yarn-ops up` runs on this state directory, when it is up."""
    if not processes.is_locked(_lock_file(settings)):
        return None  # what is announced was left by a service that was killed
    try:
        service = Service(**json.loads(_service_file(settings).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return service if answers(f"{service.prefect_api_url}/health") else None


def _lock_file(settings: Settings) -> Path:
    return settings.home / "service.lock"


def _service_file(settings: Settings) -> Path:
    return settings.home / "service.json"


def _addresses_file(settings: Settings) -> Path:
    return settings.home / "addresses"


# What runs need around them


@contextmanager
def run_environment(
    settings: Settings,
    meanwhile: Callable[[dict[str, str]], None] = lambda environment: None,
    needless: Callable[[dict[str, str]], bool] = lambda environment: False,
) -> Iterator[dict[str, str]]:
    """The environment of a run in this process. Its Prefect API is the one in the settings, the running
    service's (then with the service's MLflow, to whose pages a report can link), or our own while it lasts.

    meanwhile: what to do with it before the server answers, which takes seconds where it is our own.
    needless: asked before one of our own is started: whether nobody will need it.
    """
    settings.make_home()
    server = None
    if settings.prefect_api_url is not None:
        environment = client_environment(settings, settings.prefect_api_url)
    elif service := running_service(settings):
        environment = service_environment(settings, service)
    else:
        ours, port = with_passwords(settings, new_password()), free_port()
        environment = client_environment(ours, prefect_url(port)) | QUIET
        if not needless(environment):
            server = start_prefect(ours, port, services=False)
    environment |= QUIET
    try:
        meanwhile(environment)
        if server is not None:
            server.wait()
        yield environment
    finally:
        if server is not None:
            processes.stop(server.process)


def service_environment(settings: Settings, service: Service) -> dict[str, str]:
    """What a process needs in its environment to run flows as part of the service."""
    inside = service.settings(settings)
    told = ("mlflow_uri", "mlflow_username", "mlflow_password", "prefect_auth")
    return client_environment(inside, service.prefect_api_url) | {
        **as_environment(inside, told),
        **mlflow_environment(inside),
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the run's report links there
    }


def client_environment(settings: Settings, api_url: str) -> dict[str, str]:
    """What a process needs in its environment to use this Prefect API and keep to our state directory."""
    home = settings.home / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    auth = {}
    if settings.prefect_auth is not None:
        auth["PREFECT_API_AUTH_STRING"] = settings.prefect_auth.get_secret_value()
    return auth | {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_API_URL": api_url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",  # Prefect's client
        "YARN_OPS_STATE_DIR": str(settings.home),
    }


# The processes: what to run with which variables


def prefect_server(
    settings: Settings, port: int, database_url: str, *, services: bool
) -> tuple[list[str], dict[str, str]]:
    """A Prefect server on loopback that asks for the settings' password.

    `services`: scheduler and automations too.
    """
    command = [sys.executable, "-m", "flows.prefect_server", "--host", LOOPBACK, "--port", str(port)]
    environment = client_environment(settings, prefect_url(port)) | {
        **as_environment(settings, ("prefect_auth", "session_key")),
        "PREFECT_API_DATABASE_CONNECTION_URL": database_url,
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_UI_API_URL": "/api",  # wherever the browser has found the UI
    }
    return command if services else [*command, "--no-services"], environment


def mlflow_server(
    settings: Settings, port: int, database_url: str, *, workers: int = 1
) -> tuple[list[str], dict[str, str]]:
    """An MLflow server on loopback that asks for the settings' password; clients reach artifacts directly."""
    command = [
        *(sys.executable, "-m", "yarn_ops.mlflow_server", "--host", LOOPBACK, "--port", str(port)),
        *("--workers", str(workers)),
    ]
    environment = mlflow_environment(settings) | {
        **as_environment(settings, ("mlflow_username", "mlflow_password", "session_key")),
        "MLFLOW_BACKEND_STORE_URI": database_url,  # not an argument: it may hold a password
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": f"{settings.store}/mlflow",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes for what we do not use
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return command, environment


def work_on(settings: Settings, service: Service, pool: str) -> tuple[list[str], dict[str, str]]:
    """A process worker of a work pool; the runs it starts report to the service's MLflow."""
    command = [
        *(sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"),
        *("--name", pool, "--install-policy", "never", "--no-create-pool-if-not-found"),
    ]
    environment = {"PREFECT_WORKER_QUERY_SECONDS": str(WORKER_POLL_S)}
    return command, service_environment(settings, service) | environment


def deploy(settings: Settings, service: Service) -> tuple[list[str], dict[str, str]]:
    """What registers the deployments and takes up the runs that an earlier service left unfinished.

    A process of its own, so that what flows import does not stay in ours.
    """
    return [sys.executable, "-m", "flows.deploy", "--alone"], service_environment(settings, service)


def prefect_url(port: int) -> str:
    return f"http://{LOOPBACK}:{port}/api"


# The processes of `yarn-ops up`


def start_prefect(settings: Settings, port: int, *, services: bool) -> Server:
    """A Prefect server over SQLite."""
    database_url = f"sqlite+aiosqlite:///{settings.home / 'prefect/prefect.db'}"
    return start(
        settings,
        "prefect-server",
        *prefect_server(settings, port, database_url, services=services),
        prefect_url(port),
    )


def start_mlflow(settings: Settings, port: int) -> Server:
    """An MLflow server over the same database and artifacts as the command line uses."""
    process = mlflow_server(settings, port, settings.mlflow)
    return start(settings, "mlflow-server", *process, f"http://{LOOPBACK}:{port}")


@contextmanager
def registering_deployments(settings: Settings, service: Service) -> Iterator[None]:
    """Register the deployments as soon as the servers that the block waits for answer; SettingsError when
    that fails."""
    registration = start(settings, "deployments", *deploy(settings, service))
    try:
        yield
        status = registration.process.wait()
    finally:
        processes.stop(registration.process)
    if status != 0:
        raise SettingsError(f"the deployments were not registered; {registration.last_words}")


def start(
    settings: Settings, name: str, command: list[str], environment: dict[str, str], url: str = ""
) -> Server:
    """A process of the service, which logs under its name."""
    log = settings.home / "logs" / f"{name}.log"
    return Server(name, processes.start(command, log=log, env=child_environment(environment)), log, url)


def free_port(wanted: int = 0) -> int:
    """`wanted` if it is free, else any free port of the loopback interface."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SettingsError("no free port on the loopback interface; close something that listens")


def free_ports(count: int) -> list[int]:
    """So many free ports; held together until all are found, so that they differ."""
    listeners = [socket.create_server((LOOPBACK, 0)) for _ in range(count)]
    try:
        return [int(listener.getsockname()[1]) for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()
