"""One service of `yarn-ops up` for a module of tests; who is told by it; what calls out."""

from __future__ import annotations

import json
import signal
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from service_up import Up


@pytest.fixture(scope="module")
def heard() -> Iterator[list[dict[str, Any]]]:
    """What is told at YARN_OPS_NOTIFY."""
    told: list[dict[str, Any]] = []

    class Ear(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Ear) as server, pytest.MonkeyPatch.context() as patch:
        Thread(target=server.serve_forever, daemon=True).start()
        patch.setenv("YARN_OPS_NOTIFY", f"http://127.0.0.1:{server.server_port}/hook")
        yield told
        server.shutdown()


@pytest.fixture(scope="module")
def called() -> Iterator[list[str]]:
    """What asks for another host by way of the proxy that the environment names."""
    hosts: list[str] = []

    class Gate(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            hosts.append(self.path)
            self.send_error(403)

        do_GET = do_POST = do_CONNECT

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Gate) as server, pytest.MonkeyPatch.context() as patch:
        Thread(target=server.serve_forever, daemon=True).start()
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            patch.setenv(name, f"http://127.0.0.1:{server.server_port}")
        patch.setenv("no_proxy", "127.0.0.1,localhost")
        yield hosts
        server.shutdown()


@pytest.fixture(scope="module")
def up(
    tmp_path_factory: pytest.TempPathFactory, heard: list[dict[str, Any]], called: list[str]
) -> Iterator[Up]:
    """One service for all; it has to end without leaving a process or having called out."""
    service = Up(tmp_path_factory.mktemp("service") / "state")
    yield service
    assert called == []
    assert service.end(signal.SIGTERM) == []
    assert service.printed.endswith("stopping …\nstopped.\n")


@pytest.fixture
def recipe(small_recipe: Path) -> dict[str, Any]:
    return tomllib.loads(small_recipe.read_text("utf-8"))
