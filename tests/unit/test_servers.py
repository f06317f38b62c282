"""The service of a state directory: one at a time, found by others while it lives; ports; health."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from yarn_ops import processes, servers
from yarn_ops.cli.up import USUAL_PORTS, kept_ports
from yarn_ops.errors import SettingsError
from yarn_ops.servers import Server, Service
from yarn_ops.settings import Settings


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path)


@pytest.fixture
def api_url() -> Iterator[str]:
    """The address of something healthy."""
    with HTTPServer((servers.LOOPBACK, 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://{servers.LOOPBACK}:{server.server_port}/api"
        server.shutdown()


@pytest.fixture
def nobody() -> str:
    """An address where nobody listens."""
    return f"http://{servers.LOOPBACK}:{servers.free_port()}/api"


def server_of(code: str, tmp_path: Path, url: str) -> Server:
    process = processes.start([sys.executable, "-c", code], log=tmp_path / "log", env=os.environ)
    return Server("server", process, tmp_path / "log", url)


def test_a_free_port_is_taken_as_wanted() -> None:
    wanted = servers.free_port()
    assert servers.free_port(wanted) == wanted


def test_a_port_in_use_falls_to_a_free_one() -> None:
    with socket.socket() as taken:
        taken.bind((servers.LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert servers.free_port(port) not in (port, 0)


def test_health_is_an_answer_of_200(api_url: str, nobody: str) -> None:
    assert servers.answers(f"{api_url}/health")
    assert not servers.answers(f"{api_url}/elsewhere")
    assert not servers.answers(nobody)
    assert not servers.answers("not an address")


def test_a_server_that_ends_at_its_start_is_told_in_one_line(tmp_path: Path, nobody: str) -> None:
    server = server_of("print('first'); raise SystemExit('no such table')", tmp_path, nobody)
    with pytest.raises(SettingsError) as error:
        server.wait()
    assert str(error.value) == f"the server ended by itself; the end of {tmp_path}/log: first | no such table"


def test_a_server_is_awaited_until_it_is_healthy(tmp_path: Path, api_url: str) -> None:
    server = server_of("import time; time.sleep(600)", tmp_path, api_url)
    server.wait()
    processes.stop(server.process)


def test_a_state_directory_has_one_service(settings: Settings, api_url: str) -> None:
    with servers.only_service(settings):
        with pytest.raises(SettingsError, match="a service is starting or stopping there; stop it first"):
            servers.only_service(settings).__enter__()
        servers.announce(settings, Service(api_url, "http://127.0.0.1:1"), "")
        with pytest.raises(SettingsError, match=f"already runs at {api_url.removesuffix('/api')} there;"):
            servers.only_service(settings).__enter__()
    with servers.only_service(settings):
        assert servers.running_service(settings) is None


def test_a_running_service_is_found(settings: Settings, api_url: str) -> None:
    service = Service(api_url, "http://127.0.0.1:1")
    with servers.only_service(settings):
        servers.announce(settings, service, "")
        assert servers.running_service(settings) == service
    assert servers.running_service(settings) is None


def test_what_a_killed_service_announced_is_not_believed(settings: Settings, api_url: str) -> None:
    with servers.only_service(settings):
        pass
    servers.announce(settings, Service(api_url, "http://127.0.0.1:1"), "")
    assert servers.running_service(settings) is None


def test_a_service_that_does_not_answer_is_not_found(settings: Settings, nobody: str) -> None:
    with servers.only_service(settings):
        servers.announce(settings, Service(nobody, "http://127.0.0.1:1"), "")
        assert servers.running_service(settings) is None


def test_a_run_uses_the_running_service_and_its_mlflow(settings: Settings, api_url: str) -> None:
    with servers.only_service(settings):
        servers.announce(settings, Service(api_url, "http://127.0.0.1:1"), "")
        with servers.run_environment(settings) as environment:
            assert environment["PREFECT_API_URL"] == api_url
            assert environment["YARN_OPS_MLFLOW_URI"] == "http://127.0.0.1:1"
            assert environment["YARN_OPS_STATE_DIR"] == str(settings.home)


def test_a_run_uses_the_server_of_its_settings(tmp_path: Path, api_url: str) -> None:
    settings = Settings(state_dir=tmp_path, prefect_api_url=api_url)
    with servers.run_environment(settings) as environment:
        assert environment["PREFECT_API_URL"] == api_url
        assert "YARN_OPS_MLFLOW_URI" not in environment


def test_ports_are_kept_with_the_state(settings: Settings) -> None:
    free = servers.free_ports(2)
    assert kept_ports(settings, dict(zip(("prefect", "mlflow"), free, strict=True)))[1] == []
    again, told = kept_ports(settings, {"prefect": None, "mlflow": None})
    assert ([*again.values()], told) == (free, [])
    with socket.create_server((servers.LOOPBACK, free[0])):
        with pytest.raises(SettingsError, match=f"port {free[0]} of prefect is taken; stop what listens"):
            kept_ports(settings, {"prefect": None})
        with pytest.raises(SettingsError, match="or give --mlflow-port another"):
            kept_ports(settings, {"mlflow": free[0]})


def test_a_usual_port_that_is_taken_is_replaced_once_and_said(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server((servers.LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setitem(USUAL_PORTS, "prefect", port)
        ports, (line,) = kept_ports(settings, {"prefect": None})
        assert line == f"port {port} is taken: prefect has {ports['prefect']}, from now on"
    assert kept_ports(settings, {"prefect": None}) == (ports, [])
