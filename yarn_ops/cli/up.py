"""The whole service on loopback, from one command."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

from rich.console import Console

from yarn_ops import processes, servers
from yarn_ops.errors import SettingsError
from yarn_ops.servers import Server, Service
from yarn_ops.settings import Settings, adopt_environment


def run_service(settings: Settings, *, prefect_port: int, mlflow_port: int) -> None:
    """Start the servers in dependency order, register the deployments, watch until SIGINT or SIGTERM.

    Raises SettingsError when a service already runs on this state directory, or a part of it ends.
    """
    console = Console(highlight=False)
    running = servers.running_service(settings)
    if running is not None:
        raise SettingsError(
            f"{settings.home}: a service already runs there at {running.prefect_ui_url}; stop it first"
        )
    previous = signal.signal(signal.SIGTERM, _interrupt)
    started: list[Server] = []
    try:
        console.print("starting: registry, Prefect server, MLflow server, worker …")
        _prepare(settings)
        service = _start(settings, started, prefect_port, mlflow_port)
        console.print(f"Prefect UI   {service.prefect_ui_url}/deployments")
        console.print(f"MLflow UI    {service.mlflow_uri}")
        console.print(f"state, logs  {settings.home}")
        console.print("Ctrl-C stops everything.")
        _watch(started)
    except KeyboardInterrupt:
        console.print("stopping …")
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for server in reversed(started):
            processes.stop(server.process)
        servers.forget_service(settings)
        signal.signal(signal.SIGTERM, previous)
    console.print("stopped.")


def _prepare(settings: Settings) -> None:
    from yarn_ops import registry

    settings.make_home()
    if settings.database_url is None:
        registry.upgrade(settings.database)


def _start(settings: Settings, started: list[Server], prefect_port: int, mlflow_port: int) -> Service:
    """All parts, each healthy before what needs it starts; the two servers come up side by side."""
    prefect = servers.start_prefect(settings, servers.free_port(prefect_port), services=True)
    started.append(prefect)
    mlflow = servers.start_mlflow(settings, servers.free_port(mlflow_port))
    started.append(mlflow)
    prefect.wait()
    mlflow.wait()
    service = Service(os.getpid(), prefect.url, mlflow.url)

    environment = servers.client_environment(settings, service.prefect_api_url)
    adopt_environment(environment)
    from flows.deploy import register_deployments

    register_deployments()
    started.append(servers.start_worker(settings, service))
    servers.write_service(settings, service)
    return service


def _watch(started: list[Server]) -> None:
    while True:
        for server in started:
            if server.process.poll() is not None:
                raise SettingsError(
                    f"{server.name} ended: {processes.last_lines(server.log)} (whole log: {server.log})"
                )
        time.sleep(0.5)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
