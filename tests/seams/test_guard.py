"""The guard around a small application, on a real server: attacks, cookies, users."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from attacks import Target, attack

from yarn_ops import processes, servers

PASSWORD = "yarn-ops:correct: horse ä"
SERVER = """
import json, sys
from pydantic import SecretStr
from yarn_ops.guard import Guard, House, PREFECT, address_token, serve

async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept", "subprotocol": "prefect"})
        if scope["path"] == "/api/eager":
            await send({"type": "websocket.send", "text": "a secret"})
        message = await receive()
        while message["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": '{"type": "auth_success"}'})
            message = await receive()
    elif scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else b"ok"})
    else:
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})

key = SecretStr("a key")
print(address_token(key), flush=True)
guard = Guard(app, PREFECT, password=SecretStr(sys.argv[2]), key=key, names="inside:80")
serve(guard, "127.0.0.1", int(sys.argv[1]))
"""


class Guarded:
    def __init__(self, folder: Path) -> None:
        self.port = servers.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "log"
        self._process = processes.start(
            [sys.executable, "-c", SERVER, str(self.port), PASSWORD], log=self.log, env=os.environ
        )
        servers.Server("guard", self._process, self.log, f"{self.url}/api").wait()
        self.token = self.log.read_text().split()[0]
        self.target = Target(self.port, PASSWORD, "/api/x", "/api/x", {}, "/api/events")

    def stop(self) -> None:
        processes.stop(self._process)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    server = Guarded(tmp_path_factory.mktemp("guarded"))
    yield server
    server.stop()


@pytest.fixture
def browser(guarded: Guarded) -> httpx.Client:
    """A client that has opened the printed address."""
    client = httpx.Client(base_url=guarded.url)
    answer = client.get(f"/deployments?token={guarded.token}&page=2")
    assert (answer.status_code, answer.headers["location"]) == (303, "/deployments?page=2")
    return client


def test_no_attack_passes(guarded: Guarded) -> None:
    attack(guarded.target)


def test_a_cookie_is_closed_to_scripts_and_other_sites(guarded: Guarded, browser: httpx.Client) -> None:
    answer = httpx.get(f"{guarded.url}/?token={guarded.token}")
    cookie = answer.headers["set-cookie"]
    assert "; HttpOnly" in cookie and "; SameSite=Strict" in cookie and "Domain" not in cookie
    assert answer.headers["cache-control"] == "no-store"
    assert guarded.token not in guarded.log.read_text().partition("\n")[2]
    assert PASSWORD not in cookie and guarded.token not in cookie
    assert browser.get("/deployments").status_code == 200


def test_a_cookie_alone_changes_nothing(guarded: Guarded, browser: httpx.Client) -> None:
    """A browser says which page made a request; a cookie without that is not enough to write."""
    own = {"Origin": guarded.url}
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        assert browser.request(method, "/api/x").status_code == 403
        assert browser.request(method, "/api/x", headers=own).status_code == 200
    assert browser.post("/api/x", headers=own, content=b"{}").status_code == 415
    assert browser.post("/api/x", headers={"Sec-Fetch-Site": "same-origin"}, json={}).status_code == 200
    for headers in ({"Sec-Fetch-Site": "same-site"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        assert browser.get("/api/x", headers=headers).status_code == 403
        assert browser.post("/api/x", headers={**own, **headers}, json={}).status_code == 403


def test_a_socket_with_a_cookie_needs_the_servers_origin(guarded: Guarded, browser: httpx.Client) -> None:
    (name, value), *_ = browser.cookies.items()
    cookie = f"{name}={value}"
    assert guarded.target.greet(origin=guarded.url, Cookie=cookie).startswith('{"type"')
    assert guarded.target.greet(Cookie=cookie) == "handshake refused"
    assert guarded.target.greet(origin="http://evil.example", Cookie=cookie) == "handshake refused"


def test_nothing_is_told_before_the_first_message(guarded: Guarded) -> None:
    target = Target(guarded.port, PASSWORD, "/", "/", {}, "/api/eager")
    assert target.greet(token=PASSWORD) == "closed"
    assert target.greet(Authorization=target.basic) == "a secret"


def test_another_server_of_ours_may_link_to_pages_only(guarded: Guarded, browser: httpx.Client) -> None:
    link = {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert browser.get("/deployments", headers=link).status_code == 200
    assert browser.get("/api/x", headers=link).status_code == 403
    far = browser.get("/deployments", headers={**link, "Sec-Fetch-Site": "cross-site"})
    assert far.status_code == 403 and 'href="">go on' in far.text


def test_a_wrong_token_and_a_script_are_refused_without_a_dialogue(guarded: Guarded) -> None:
    for token in ("", "0" * 64, "%ff", guarded.token[:-1], guarded.token + "0", "%E4"):
        answer = httpx.get(f"{guarded.url}/?token={token}")
        assert answer.status_code == 401 and "set-cookie" not in answer.headers
    script = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
    assert "www-authenticate" not in httpx.get(f"{guarded.url}/api/x", headers=script).headers
    assert httpx.post(f"{guarded.url}/?token={guarded.token}", json={}).status_code == 401
    evil = httpx.get(f"{guarded.url}/?token={guarded.token}", headers={"Host": "evil.example"})
    assert evil.status_code == 403 and "set-cookie" not in evil.headers


def test_a_password_typed_into_a_browser_gives_a_cookie(guarded: Guarded) -> None:
    page = {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    asked = httpx.get(guarded.url, headers=page)
    assert asked.status_code == 401 and asked.headers["www-authenticate"].startswith("Basic")
    told = httpx.get(guarded.url, headers={**page, "Authorization": guarded.target.basic})
    assert "HttpOnly" in told.headers["set-cookie"]


def test_only_named_hosts_are_added(guarded: Guarded) -> None:
    auth = {"Authorization": guarded.target.basic}
    assert httpx.get(f"{guarded.url}/", headers={**auth, "Host": "inside:80"}).status_code == 200
    assert httpx.get(f"{guarded.url}/", headers={**auth, "Host": "inside"}).status_code == 403


AS_ANOTHER = """
import encodings.idna, os, socket, sys
os.setgroups([])
os.setgid(int(sys.argv[4]))
os.setuid(int(sys.argv[4]))
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
head = f"{sys.argv[3]} /api/x HTTP/1.1\\r\\nHost: 127.0.0.1:{sys.argv[1]}\\r\\nCookie: {sys.argv[2]}\\r\\n"
connection.sendall(f"{head}Origin: http://127.0.0.1:{sys.argv[1]}\\r\\n\\r\\n".encode())
print(connection.recv(100).split()[1].decode())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_cookie_is_good_for_its_own_user_only(guarded: Guarded, browser: httpx.Client) -> None:
    """Ports share cookies: another user's server, visited once, hears ours."""
    (name, value), *_ = browser.cookies.items()

    def ask(user: int, method: str) -> str:
        told = (str(guarded.port), f"{name}={value}", method, str(user))
        command = [sys.executable, "-I", "-c", AS_ANOTHER, *told]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    for method in ("GET", "POST"):
        assert ask(0, method) == "200"
        assert ask(65534, method) == "401"


def test_an_end_that_was_closed_is_nobodys(guarded: Guarded) -> None:
    """The kernel gives root's number for a connection whose process has left it."""
    import socket

    from yarn_ops.heads import peer_user

    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, address = listener.accept()
        scope = {"client": address, "server": listener.getsockname()}
        assert peer_user(scope) == os.geteuid()
        client.close()
        assert peer_user(scope) is None
        accepted.close()
    assert peer_user({"client": None, "server": None}) is None
    assert peer_user({"client": ("elsewhere", 1), "server": ("127.0.0.1", 2)}) is None
