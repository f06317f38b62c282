"""`yarn-ops doctor --security`: every port on which the service listens, and what strangers get there.

What listens is taken from the kernel, not from our plans; what is asked for is tried.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Literal

import httpx
import psutil
from pydantic import SecretStr

from yarn_ops import servers
from yarn_ops.errors import SettingsError
from yarn_ops.heads import basic
from yarn_ops.processes import is_locked
from yarn_ops.servers import LOOPBACK
from yarn_ops.settings import Settings
from yarn_ops.stack.parts import Stack
from yarn_ops.stack.plan import BUCKET, StackPaths, ensure_plan
from yarn_ops.stack.supervisor import members

ANSWER_S = 10.0  # a channel of Prefect's worker waits 5 s for its token
ELSEWHERE = "elsewhere.example"

Answer = Literal["refused", "answered", "does not apply", "not tried"]


@dataclass(frozen=True)
class Door:
    """One listening port. `closed`: a stranger gets nothing there."""

    process: str
    address: str
    port: int
    what: str
    password: str
    """whether one is asked for, as tried"""
    foreign_host: Answer
    foreign_origin: Answer
    closed: bool


Tried = tuple[str, str, Answer, Answer, bool]
"""what it is, password, foreign Host, foreign Origin, closed"""


def examine_ports(settings: Settings) -> list[Door]:
    """Of `yarn-ops up` and of the stack of this state directory; SettingsError when neither runs."""
    doors = []
    service = servers.running_service(settings)
    if service is not None and service.pid:
        inside = service.settings(settings)
        known = _known(inside)
        doors += [_examine(*listener, known) for listener in listening(_family(psutil.Process(service.pid)))]
    paths = StackPaths(settings.home)
    if is_locked(paths.lock):
        known = _known_of_stack(Stack(settings, paths, ensure_plan(paths)))
        processes = {one for member in members(paths) for one in _family(member)}
        doors += [_examine(*listener, known) for listener in listening(processes)]
    if not doors:
        raise SettingsError(
            f"{settings.home}: no service runs there; start it with `yarn-ops up` or `infra/stack up`"
        )
    return doors


def listening(processes: Iterable[psutil.Process]) -> list[tuple[str, str, int]]:
    """(process, address, port) of everything on which these processes listen; a socket they share, once."""
    found: dict[tuple[str, int], str] = {}
    for process in sorted(processes, key=lambda one: one.pid):
        try:
            for one in process.net_connections("inet"):
                waits = one.status == psutil.CONN_LISTEN or (one.type == socket.SOCK_DGRAM and not one.raddr)
                if waits and one.laddr:
                    found.setdefault((one.laddr.ip, one.laddr.port), f"{_name(process)} {process.pid}")
        except psutil.Error:
            continue  # it has ended
    return sorted((name, address, port) for (address, port), name in found.items())


def _family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _name(process: psutil.Process) -> str:
    """The module, script or program that runs."""
    words = process.cmdline()
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1]
    script = words[1] if len(words) > 1 and words[0].rpartition("/")[2].startswith("python") else ""
    return (script if script and not script.startswith("-") else process.name()).rpartition("/")[2]


Known = dict[int, Callable[[int], Tried]]


def _known(settings: Settings) -> Known:
    """The guarded servers, by their ports."""
    known: Known = {}
    mlflow_auth = None
    if settings.mlflow_username and settings.mlflow_password:
        mlflow_auth = SecretStr(f"{settings.mlflow_username}:{settings.mlflow_password.get_secret_value()}")
    for url, what, path, auth in (
        (settings.prefect_api_url, "Prefect: API and UI", "/api/admin/version", settings.prefect_auth),
        (settings.mlflow_uri, "MLflow: API and UI", "/version", mlflow_auth),
    ):
        port = httpx.URL(url or "").port
        if port is not None:
            known[port] = _guarded(what, path, auth)
    return known


def _known_of_stack(stack: Stack) -> Known:
    ports = stack.plan.ports
    known = _known(stack.settings) | {
        ports["metrics"]: _guarded("metrics", "/metrics", stack.settings.prefect_auth),
        ports["postgres"]: _postgres,
        ports["s3"]: _s3,
    }
    for name, port in ports.items():
        if name.startswith("worker-"):
            known[port] = _health
    return known


def _examine(process: str, address: str, port: int, known: Known) -> Door:
    return Door(process, address, port, *known.get(port, _other)(port))


def _guarded(what: str, path: str, auth: SecretStr | None) -> Callable[[int], Tried]:
    def examine(port: int) -> Tried:
        right = basic(auth)
        evil = f"http://{ELSEWHERE}"
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        upgrade |= {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Protocol": "prefect"}
        asked = _status(port, path) == 401 and _status(port, path, right) == 200
        hosts = [_status(port, path, right | {"Host": host}) for host in (ELSEWHERE, f"{ELSEWHERE}:{port}")]
        origins = [_status(port, path, right | {"Origin": origin}) for origin in (evil, "null")]
        origins.append(_status(port, "/api/events/in", right | upgrade | {"Origin": evil}))
        host, origin = (_refused(statuses) for statuses in (hosts, origins))
        closed = asked and host == origin == "refused"
        return what, "asked" if asked else "not asked", host, origin, closed

    return examine


def _refused(statuses: list[int]) -> Answer:
    return "refused" if all(status == 403 for status in statuses) else "answered"


def _postgres(port: int) -> Tried:
    import psycopg

    asked = True
    for user in ("postgres", "yarn"):
        try:
            psycopg.connect(host=LOOPBACK, port=port, user=user, dbname="postgres", connect_timeout=5).close()
            asked = False
        except psycopg.OperationalError as error:
            asked = asked and ("password" in str(error) or "authentication" in str(error))
    told = "asked" if asked else "not asked"
    return "PostgreSQL: three databases", told, "does not apply", "does not apply", asked


def _s3(port: int) -> Tried:
    """S3 signs every request, the Host included; no browser has the key."""
    wrong = {"Authorization": "AWS yarn:ops:d3Jvbmc=", "Date": formatdate(usegmt=True)}
    told = [_status(port, path) for path in ("/", f"/{BUCKET}", f"/{BUCKET}?list-type=2")]
    told += [_status(port, f"/{BUCKET}", wrong), _status(port, "/v1/AUTH_yarn")]
    asked = all(400 <= status < 500 for status in told) and told[-2:] == [403, 401]
    password = "asked" if asked else f"not asked: {told}"
    return "S3: all objects", password, "does not apply", "does not apply", asked


def _health(port: int) -> Tried:
    """Nobody is asked; it has nothing but one word to say."""
    alone = _status(port, "/health") in (200, 503) and _status(port, "/") == 404
    return "a worker's health", "not asked: says whether it lives", "answered", "answered", alone


def _other(port: int) -> Tried:
    """Probe a port that is none of ours: does it answer a request without a password?"""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=ANSWER_S) as wire:
            wire.sendall(f"GET / HTTP/1.1\r\nHost: {LOOPBACK}:{port}\r\nConnection: close\r\n\r\n".encode())
            said = wire.recv(100)
    except ConnectionError:
        said = b""
    except OSError:
        return "not known", "not known: silent", "not tried", "not tried", False
    if not said:
        return "a channel", "asked: closes without a word", "does not apply", "does not apply", True
    asked = said.split()[1:2] in ([b"401"], [b"403"])
    what = "an HTTP server" if said.startswith(b"HTTP/") else "not known"
    return what, "asked" if asked else "not asked: answers anybody", "not tried", "not tried", asked


def _status(port: int, path: str, headers: dict[str, str] | None = None) -> int:
    """The status of a GET; 0 when there is no answer."""
    try:
        with httpx.stream(
            "GET", f"http://{LOOPBACK}:{port}{path}", headers=headers, timeout=ANSWER_S, trust_env=False
        ) as answer:
            return answer.status_code
    except httpx.HTTPError:
        return 0
