"""The whole service on loopback, from one command."""

from __future__ import annotations

import json
import math
import platform
import signal
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console

from yarn_ops import notify, processes, servers, services
from yarn_ops.errors import GateFailed, SettingsError
from yarn_ops.passwords import for_browser, kept_password, with_passwords, write_private
from yarn_ops.recipe import Recipe, recorded_recipe
from yarn_ops.registry import approvals
from yarn_ops.servers import Server, Service
from yarn_ops.settings import Settings, adopt_environment
from yarn_ops.standby import ADDRESS

WATCH_S = 0.5
NEXT_S = 20.0
"""from when the ready process has taken a run to when the next one begins to import, which slows the run"""
USUAL_PORTS = {"prefect": 4200, "mlflow": 5000}


def run_service(settings: Settings, wanted_ports: Mapping[str, int | None]) -> None:
    """Start the servers in dependency order, register the deployments, watch until asked to stop.

    wanted_ports: {"prefect": …, "mlflow": …}; None: the port of the last start, to which links lead.
    SIGINT, SIGTERM and SIGHUP stop everything. Raises SettingsError when a service already runs on this
    state directory, or a part of it ends. Servers that the settings name elsewhere are used, not started.
    """
    console = Console(highlight=False)
    settings.make_home()
    with servers.only_service(settings):
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, processes.interrupt)
        started: list[Server] = []
        standby: Standby | None = None
        try:
            console.print("starting: registry, Prefect server, MLflow server, workers …")
            services.open_run_registry(settings).close()
            services.try_store(settings)
            services.try_prefect(settings)
            settings = with_passwords(settings, kept_password(settings))
            service, lines = _start(settings, started, wanted_ports)
            for line in lines:
                console.print(line, soft_wrap=True)
            standby = Standby(settings, service) if settings.standby else None
            console.print(f"state, logs  {settings.home}", soft_wrap=True)
            console.print("Each address lets its browser in. Ctrl-C stops everything.", soft_wrap=True)
            _watch(settings, started, standby, console)
        except KeyboardInterrupt:
            console.print("stopping …")
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            _stop(started)
            if standby is not None:
                standby.stop()
    console.print("stopped.")


def make_schedule(settings: Settings, recipe: Recipe, name: str, cron: str, *, active: bool) -> str:
    """Have the running service run the recipe at these times; a line that says so, when next, and its page.

    SettingsError where no service runs, and where the times or the name are none.
    """
    _within_service(settings)
    from flows import deploy

    first = deploy.next_run(cron)
    deploy.require_free_name(name)
    page = deploy.schedule(recipe, name, cron, active=active, language=settings.language)
    return f"{name}: {cron}, {f'next {first:%Y-%m-%d %H:%M} UTC' if active else 'paused'}; {page}"


def decide(settings: Settings, run_id: str, person: str, note: str, *, approved: bool) -> str:
    """Keep who promotes or rejects the release of a run and why, and let the run go on; a line that says so.

    A run that waits in Prefect goes on there; any other here. RegistryError where it waits for nobody.
    """
    registry = services.open_run_registry(settings)
    run_id = registry.run_view(run_id).id
    decided = approvals.decide(registry, run_id, approved=approved, person=person, note=note)
    view = registry.run_view(run_id)
    told = f"{decided.name} version {decided.version}: {decided.decision} by {decided.person}"
    if view.status != "stopped":
        return told
    if not decided.suspended:
        adopt_environment(servers.client_environment(settings, servers.prefect_url(servers.free_port())))
        from flows.extend import extend
        from flows.run import reuse_all

        try:
            reuse_all(extend, view.name, recorded_recipe(view.recipe, run_id))
        except GateFailed:  # by the person, as asked
            return told
        return f"{told}; alias {view.recipe['publish']['alias']} moved"
    try:
        _within_service(settings)
    except SettingsError:
        return f"{told}; its run goes on when the service runs"
    from flows.approval import resume

    resume(str(view.flow_run_id), decided)
    return f"{told}; its run goes on in Prefect"


def _within_service(settings: Settings) -> None:
    """Work with the running service from here on; SettingsError where none runs."""
    if settings.prefect_api_url is not None:
        environment = servers.client_environment(settings, settings.prefect_api_url)
    elif service := servers.running_service(settings):
        environment = servers.service_environment(settings, service)
    else:
        raise SettingsError("no service runs on this state directory; start it with `yarn-ops up`")
    adopt_environment(environment)


def _start(
    settings: Settings, started: list[Server], wanted_ports: Mapping[str, int | None]
) -> tuple[Service, list[str]]:
    """All parts, each healthy before what needs it starts; the two servers come up side by side.

    Returns the service, and lines for a person: the addresses for a browser, and the ports that had to be
    others.
    """
    prefect_url, mlflow_uri = settings.prefect_api_url, settings.mlflow
    here = {"prefect": prefect_url is None, "mlflow": not mlflow_uri.startswith("http")}
    ports, told = kept_ports(settings, {name: wanted_ports[name] for name in here if here[name]})
    if prefect_url is None:
        started.append(servers.start_prefect(settings, ports["prefect"], services=True))
        prefect_url = started[-1].url
    if not mlflow_uri.startswith("http"):
        started.append(servers.start_mlflow(settings, ports["mlflow"]))
        mlflow_uri = started[-1].url
    service = Service.of(settings, prefect_url, mlflow_uri)
    with servers.registering_deployments(settings, service):
        for server in started:
            server.wait()
    for pool in servers.WORK_POOLS:
        started.append(servers.start(settings, f"worker-{pool}", *servers.work_on(settings, service, pool)))
    prefect_ui, mlflow_ui = f"{service.prefect_ui_url}/deployments", f"{mlflow_uri}/"
    if settings.prefect_api_url is None:
        prefect_ui = for_browser(settings, prefect_ui)
    if mlflow_uri != settings.mlflow:
        mlflow_ui = f"{for_browser(settings, mlflow_ui)}#/models"
    addresses = f"Prefect UI   {prefect_ui}\nMLflow UI    {mlflow_ui}"
    servers.announce(settings, service, addresses)
    return service, [*told, addresses]


def kept_ports(settings: Settings, wanted: Mapping[str, int | None]) -> tuple[dict[str, int], list[str]]:
    """The port of each server, kept with the state, and what a person is to know about them.

    wanted: by its name; None: the one of the last start, at first the server's usual one or, where somebody
    has that, a free one. SettingsError where a wanted or kept one is taken: links lead to it.
    """
    file = settings.home / "ports.json"
    try:
        kept: dict[str, int] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        kept = {}
    ports, told = {}, []
    for name, asked in wanted.items():
        port = asked or kept.get(name) or USUAL_PORTS[name]
        ports[name] = servers.free_port(port)
        if ports[name] != port and (asked or name in kept):
            raise SettingsError(
                f"port {port} of {name} is taken; stop what listens there, or give --{name}-port another"
            )
        if ports[name] != port:
            told.append(f"port {port} is taken: {name} has {ports[name]}, from now on")
    write_private(file, json.dumps({**kept, **ports}))
    return ports, told


class Standby:
    """Keeps one process ready for the next run (`yarn_ops.standby`), and knows those that have taken one."""

    def __init__(self, settings: Settings, service: Service) -> None:
        self._settings = settings
        self._address = settings.home / ADDRESS
        self._address.unlink(missing_ok=True)
        self._command = [sys.executable, "-m", "flows.engine", "--wait", str(self._address)]
        self._environment = servers.work_on(settings, service, servers.GPU_POOL)[1]
        self._processes: list[Server] = []
        self._ready = False
        self._next = time.monotonic()

    def keep(self) -> None:
        """Start a process where none is ready or on its way. Call it often.

        A process that ended before it took a run is not replaced: runs begin by themselves, and its log says
        why.
        """
        there = self._address.exists()
        if self._ready and not there:
            self._next = time.monotonic() + NEXT_S
        elif not self._ready and self._next < time.monotonic():
            self._next = math.inf
            self._processes = [one for one in self._processes if one.process.poll() is None]
            self._processes.append(servers.start(self._settings, "standby", self._command, self._environment))
        self._ready = there

    def stop(self) -> None:
        """End the ready process, and any whose run has not ended with the workers."""
        for one in self._processes:
            processes.stop(one.process)
        self._address.unlink(missing_ok=True)


def _watch(settings: Settings, started: list[Server], standby: Standby | None, console: Console) -> None:
    """Until a part ends by itself, of which somebody is told: SettingsError."""
    while True:
        for server in started:
            try:
                server.check()
            except SettingsError as fell:
                rows = (
                    ("fell", str(fell)),
                    ("next", "Start it again with yarn-ops up: runs go on where they were"),
                )
                notice = notify.Notice("fell", f"the service on {platform.node()} stopped", rows)
                for fault in notify.tell(settings, notice):
                    console.print(fault, soft_wrap=True)
                raise
        if standby is not None:
            standby.keep()
        time.sleep(WATCH_S)


def _stop(started: list[Server]) -> None:
    """The workers first, side by side: each may be ending a run and needs the servers for that."""
    workers = [server for server in started if not server.url]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda worker: processes.stop(worker.process), workers))
        list(pool.map(lambda server: processes.stop(server.process), [s for s in started if s.url]))
