"""What strangers try on a server behind the guard, over raw sockets and WebSockets.

Every attack knows the right password, where it does not try without: what refuses it is the one thing that is
wrong about it.
"""

from __future__ import annotations

import base64
import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

EVIL = "http://evil.example"
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")


def files_of_living(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """The regular files below a folder in which others are at work, and their bytes. What is gone by the time
    it is its turn, a folder too, is passed over."""
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            with suppress(FileNotFoundError):
                if path.is_file():
                    yield path, path.read_bytes()


@dataclass(frozen=True)
class Target:
    """A guarded server: a path that reads, one that takes a POST of this JSON, and whether it has sockets."""

    port: int
    password: str
    reads: str
    writes: str
    body: dict[str, Any]
    socket: str | None = None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def basic(self) -> str:
        return f"Basic {base64.b64encode(self.password.encode()).decode()}"

    def ask(
        self,
        method: str = "GET",
        path: str | None = None,
        *more: str,
        host: str | None = None,
        password: bool = True,
        body: bytes = b"",
        version: str = "1.1",
        connection: str = "close",
    ) -> tuple[int, str]:
        """Status and whole answer to a request of these header lines; 0 when the connection just ends."""
        lines = [f"{method} {self.reads if path is None else path} HTTP/{version}", *more]
        lines += [] if host == "" else [f"Host: {host or self.host}"]
        lines += [f"Authorization: {self.basic}"] if password else []
        lines += [f"Content-Length: {len(body)}"] if body else []
        head = "\r\n".join([*lines, f"Connection: {connection}", "", ""])
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as wire:
            wire.sendall(head.encode("latin-1") + body)
            parts = []
            while part := wire.recv(65536):
                parts.append(part)
        answer = b"".join(parts).decode("latin-1")
        return (int(answer.split()[1]) if answer else 0), answer

    def write(self, *more: str, **how: Any) -> int:
        return self.ask("POST", self.writes, *more, body=json.dumps(self.body).encode(), **how)[0]

    def greet(self, *, origin: str | None = None, token: str | None = None, **headers: str) -> str:
        """What comes of a WebSocket: "handshake refused", "closed", or its first answer."""
        assert self.socket is not None
        try:
            with connect(
                f"ws://{self.host}{self.socket}",
                origin=origin,  # type: ignore[arg-type]
                subprotocols=["prefect"],  # type: ignore[list-item]
                additional_headers={name.replace("_", "-"): value for name, value in headers.items()},
                open_timeout=30,
            ) as opened:
                opened.send(json.dumps({"type": "auth", "token": token}))
                return str(opened.recv(timeout=30))
        except InvalidStatus as refused:
            assert refused.response.status_code == 403
            return "handshake refused"
        except ConnectionClosed:
            return "closed"


def prefect_of(api_url: str, auth: str) -> Target:
    port = urlsplit(api_url).port
    assert port is not None
    return Target(port, auth, "/api/admin/version", "/api/flows/filter", {}, "/api/events/in")


def mlflow_of(uri: str, auth: str) -> Target:
    port = urlsplit(uri).port
    assert port is not None
    search = "/api/2.0/mlflow/experiments/search"
    return Target(port, auth, f"{search}?max_results=1", search, {"max_results": 1})


def foreign_hosts(port: int) -> list[str]:
    """Hosts that are not the server's own, however alike."""
    return [
        *("evil.example", f"evil.example:{port}", "127.0.0.1", "localhost", "127.0.0.1:1", f"0.0.0.0:{port}"),
        *(f"localhost.:{port}", f"127.0.0.1.:{port}", f"localhost.evil.example:{port}", f"127.1:{port}"),
        *(f"evil.example@127.0.0.1:{port}", f"127.0.0.1:{port}@evil.example", f"2130706433:{port}"),
        *("[::1]", f"[::ffff:127.0.0.1]:{port}", f"127.0.0.1:{port},evil.example", f"127.0.0.1:{port}/"),
        *(
            f"127.0.0.1:0{port}",
            f"127.0.0.1:{port}0",
            f"localhost:{port} evil.example",
            f"\xe9.example:{port}",
        ),
    ]


def attack(target: Target) -> None:
    """Try everything; AssertionError names what passed."""
    assert target.ask()[0] == 200 and target.write("Content-Type: application/json") < 300
    _strangers(target)
    _hosts(target)
    _origins(target)
    _bodies(target)
    _targets(target)
    if target.socket is not None:
        _sockets(target)


def _strangers(target: Target) -> None:
    wrong = base64.b64encode(target.password.encode()[:-1]).decode()
    for line in (
        *("X-Nothing: 1", "Authorization:", "Authorization: Basic", "Authorization: Basic \xe4\xff\x80"),
        *(f"Authorization: Basic {wrong}", f"Authorization: Bearer {target.basic.split()[1]}"),
        *(
            f"Authorization: Basic {target.password}",
            "Authorization: Basic " + "A" * 4000,
            "Cookie: a=b; \xff",
        ),
        *("Cookie: yarn-ops-00000000=\xe4", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-User: yarn-ops"),
    ):
        for method in METHODS:
            status, answer = target.ask(method, None, line, password=False)
            assert status == 401, (method, line, answer[:300])
        assert target.write(line, "Content-Type: application/json", password=False) == 401, line
    twice = target.ask(
        "GET", None, f"Authorization: {target.basic}", "Authorization: Basic eA==", password=False
    )
    assert twice[0] == 400


def _hosts(target: Target) -> None:
    for host in foreign_hosts(target.port):
        for method in METHODS:
            assert target.ask(method, host=host)[0] in (400, 403), (method, host)
        assert target.write("Content-Type: application/json", host=host) in (400, 403), host
    for host in (f"localhost:{target.port}", f"LocalHost:{target.port}", f"[::1]:{target.port}"):
        assert target.ask(host=host)[0] == 200, host
    assert target.ask("GET", None, "Host: evil.example")[0] == 400  # two of them
    assert target.ask(host="", version="1.0")[0] == 403
    assert target.ask(host="")[0] == 400
    misleading = ("X-Forwarded-Host: 127.0.0.1", f"Forwarded: host={target.host}", f"X-Host: {target.host}")
    assert target.ask("GET", None, *misleading, host="evil.example")[0] == 403
    assert target.ask("GET", None, "X-Forwarded-Host: evil.example")[0] == 200  # nobody heeds it


def _origins(target: Target) -> None:
    port = target.port
    for origin in (
        *(EVIL, "null", "", f"http://evil.example:{port}", "http://127.0.0.1", f"http://localhost:{port}"),
        *(f"http://127.0.0.1:{port + 1}", f"http://{target.host}.evil.example", f"ftp://{target.host}"),
        *(f"http://evil.example@{target.host}", f"http://{target.host}/", f"HTTP://{target.host}", "file://"),
        *(f"http://{target.host} {EVIL}", f"http://{target.host}, {EVIL}", "http://\xe4"),
    ):
        for method in METHODS:
            status, answer = target.ask(method, None, f"Origin: {origin}")
            assert status == 403, (method, origin)
            assert "access-control-allow" not in answer.lower(), (method, origin)
        assert target.write(f"Origin: {origin}", "Content-Type: application/json") == 403, origin
        preflight = (f"Origin: {origin}", "Access-Control-Request-Method: POST")
        assert target.ask("OPTIONS", target.writes, *preflight)[0] == 403, origin
    for site in ("cross-site", "same-site", "", "Same-Origin", "\xe4"):
        if site:
            assert target.write(f"Sec-Fetch-Site: {site}", "Content-Type: application/json") == 403, site
            assert target.ask("GET", None, f"Sec-Fetch-Site: {site}")[0] == 403, site
    frame = ("Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe")
    assert target.ask("GET", "/", *frame)[0] == 403
    assert target.ask("GET", None, *frame[:2], "Sec-Fetch-Dest: document")[0] == 403  # a link to the API
    assert target.ask("GET", None, f"Origin: http://{target.host}", f"Origin: {EVIL}")[0] == 400
    own = (f"Origin: http://{target.host}", "Sec-Fetch-Site: same-origin", "Content-Type: application/json")
    assert target.write(*own) < 300


def _bodies(target: Target) -> None:
    body = json.dumps(target.body).encode()
    for declared in (
        *((), ("Content-Type: text/plain",), ("Content-Type: application/x-www-form-urlencoded",)),
        *(("Content-Type: multipart/form-data; boundary=application/json",), ("Content-Type:",)),
        *(("Content-Type: text/plain; application/json",), ("Content-Type: application/json, text/plain",)),
        *(("Content-Type: application/jsonp",), ("Content-Type: \xe4",), ("Content-Type: text/json",)),
    ):
        assert target.write(*declared) == 415, declared
        for method in ("PUT", "PATCH", "DELETE"):
            assert target.ask(method, target.writes, *declared, body=body)[0] == 415, (method, declared)
    assert target.write("Content-Type: application/json", "Content-Type: text/plain") == 400
    assert target.write("Content-Type: application/json; charset=utf-8") < 300
    chunked = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", target.port), timeout=30) as connection:
        head = [f"POST {target.writes} HTTP/1.1", f"Host: {target.host}", f"Authorization: {target.basic}"]
        head += ["Transfer-Encoding: chunked", "Content-Type: text/plain", "", ""]
        connection.sendall("\r\n".join(head).encode() + chunked)
        assert b" 415 " in connection.recv(100)


def _targets(target: Target) -> None:
    for path in (
        *(
            f"http://evil.example{target.reads}",
            f"http://{target.host}{target.reads}",
            f"//evil.example{target.reads}",
        ),
        *(f"/{target.reads}", "*", "//", "/%2f/evil.example", "/%5cevil.example", "evil.example:443"),
    ):
        assert target.ask("GET", path)[0] == 400, path
        assert target.ask("GET", path, password=False)[0] == 400, path
        assert target.ask("POST", path, "Content-Type: application/json", body=b"{}")[0] == 400, path
    for path in (
        target.reads,
        f"{target.reads}/../health",
        "/health/../x",
        "/HEALTH",
        "/health/",
        "/",
        "/x?/health",
    ):
        assert target.ask("GET", path, password=False)[0] == 401, path
        assert target.ask("GET", f"{path}?token={'0' * 64}", password=False)[0] == 401, path
    assert [target.ask(method)[0] for method in ("TRACE", "TRACK", "DEBUG")] == [405] * 3


def _sockets(target: Target) -> None:
    assert json.loads(target.greet(token=target.password)) == {"type": "auth_success"}
    assert json.loads(target.greet(Authorization=target.basic)) == {"type": "auth_success"}
    assert target.greet(token=target.password, origin=f"http://{target.host}").startswith('{"type"')
    for token in (None, "", "wrong", target.password[:-1], "\xe4", "\ud800"):
        assert target.greet(token=token) == "closed", token
    for origin in (EVIL, "null", f"http://127.0.0.1:{target.port + 1}", f"http://localhost:{target.port}"):
        assert target.greet(token=target.password, origin=origin) == "handshake refused", origin
        assert target.greet(Authorization=target.basic, origin=origin) == "handshake refused", origin
    assert target.greet(token=target.password, Sec_Fetch_Site="cross-site") == "handshake refused"
    key = f"Sec-WebSocket-Key: {'A' * 22}=="
    upgrade = ("Upgrade: websocket", "Sec-WebSocket-Version: 13", key)
    how: dict[str, Any] = {"connection": "Upgrade"}
    for host in foreign_hosts(target.port):
        assert target.ask("GET", target.socket, *upgrade, host=host, **how)[0] in (400, 403), host
    # neither the subprotocol, whose first message could tell it, nor the password
    assert target.ask("GET", target.socket, *upgrade, password=False, **how)[0] == 403
