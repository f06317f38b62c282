"""The guard in front of every HTTP server of ours: an ASGI application around Prefect's, MLflow's or our own.

It decides from a request's head alone. In this order: the target is a path, the Host is one of the server's
own, a browser's Origin and Sec-Fetch-Site are the server's own, the client is known, a body is declared JSON.

A client is known by HTTP basic authentication, or by a cookie that a browser gets in exchange for the token
in the address that a start prints. Ports of one host share their cookies: a server of another local user,
once visited, hears ours. So a cookie is good for connections of the one system user who was given it (on
Linux, where the kernel tells whose a connection on this machine is). Prefect's clients may instead introduce
themselves in the first message of a WebSocket.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, urlencode

from pydantic import SecretStr

from yarn_ops.heads import Refused, RequestHead, Scope, peer_user

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Known = Literal["password", "cookie", "nobody", "not yet"]

TOKEN = "token"
"""of the query of an address that is given to a browser"""
SAFE = ("GET", "HEAD", "OPTIONS")
SESSION_S = 30 * 86400
KEEP_ALIVE_S = 60  # a server busy for longer than this, 5 by default, closes connections that are in use
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
POLICY_VIOLATION = 1008  # RFC 6455, section 7.4.1
NOTHING = re.compile("(?!)")
PAGE_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"SAMEORIGIN",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"referrer-policy": b"same-origin",
    b"content-security-policy": b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'",
}
"""the last: a page talks to its own server alone, whatever its makers built in"""
PAGE = """<!doctype html><meta charset="utf-8"><title>yarn-ops</title>
<body style="font:16px sans-serif;margin:4em">
<h1>{status}</h1><p>{reason}</p>
<p>Open the address that <code>yarn-ops up</code> printed; it is kept in <code>addresses</code> in the state
directory. If you have opened it here before: <a href="">go on</a>.</p>"""


@dataclass(frozen=True)
class House:
    """What the guard knows of the application behind it. Patterns match whole paths."""

    health: str
    """tells anybody that the server lives"""
    pages: re.Pattern[str]
    """to which another server of ours may link"""
    other_bodies: re.Pattern[str] = NOTHING
    """take bodies other than JSON"""
    greets_sockets: bool = False
    """WebSockets begin with a message {"type": "auth", "token": "user:password"}"""


PREFECT = House("/api/health", re.compile(r"/(?!api(/|$)).*"), greets_sockets=True)
MLFLOW = House(
    "/health",
    re.compile("/"),
    # OpenTelemetry's protobuf; files of a run, from the client and from the UI
    re.compile(
        r"/v1/(traces|metrics)|/(ajax-)?api/2\.0/mlflow-artifacts/.+|/ajax-api/2\.0/mlflow/upload-artifact"
    ),
)
METRICS = House("/health", NOTHING)


class Guard:
    """`app` for those who know `password` ("user:password").

    `key`: what cookies and tokens are made from; servers with the same one share their logins. `names`: Hosts
    ("name:port", separated by commas) by which the server is asked, beside those of the loopback interface.
    """

    def __init__(
        self, app: Application, house: House, *, password: SecretStr, key: SecretStr, names: str | None = None
    ) -> None:
        self._app = app
        self._house = house
        self._password = password.get_secret_value().encode()
        self._key = key
        self._names = {name.strip().lower() for name in (names or "").split(",")}
        self._cookie = f"yarn-ops-{_digest(key, 'name')[:8]}"  # state directories share a browser's cookies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        head = RequestHead(scope)
        try:
            self._check_target(head)
            location = self._exchange(head)
            if location is not None:
                return await self._admit(head, location, send)
            self._check_site(head)
            known = self._know(head)
            self._check_body(head)
        except Refused as refused:
            return await self._refuse(head, refused, send)
        if known == "not yet":
            return await _Introduction(self._app, self._password, receive, send).run(scope)
        logged_in = head if known == "password" and head.opens_page else None
        return await self._app(scope, receive, self._finishing(send, logged_in))

    def _check_target(self, head: RequestHead) -> None:
        if not head.path.startswith("/") or head.path.startswith("//") or "\\" in head.path:
            raise Refused(400, "This server takes requests for paths only.")
        if head.method not in (*SAFE, "POST", "PUT", "PATCH", "DELETE"):
            raise Refused(405, "This server does not know the method.")
        host = head.only(b"host")
        own = self._names | {f"{name}:{head.port}" for name in LOOPBACK_NAMES}
        if not host or host.lower() not in own:
            raise Refused(403, "The request is addressed to another host.")
        if head.only(b"origin") not in (None, f"http://{host}", f"https://{host}"):
            raise Refused(403, "The request comes from another origin.")

    def _check_site(self, head: RequestHead) -> None:
        """Where a browser says that the request was made: here, by typing, by a link between our servers."""
        site = head.only(b"sec-fetch-site")
        linked = site == "same-site" and head.opens_page and self._house.pages.fullmatch(head.path)
        told_by_origin = head.websocket and head.only(b"origin") is not None
        if site not in (None, "same-origin", "none") and not linked and not told_by_origin:
            raise Refused(403, "The request comes from another site.")

    def _know(self, head: RequestHead) -> Known:
        if head.path == self._house.health and head.method in ("GET", "HEAD") and not head.websocket:
            return "nobody"
        given = head.basic
        if given is not None and hmac.compare_digest(given, self._password):
            return "password"
        if self._remembers(head):
            reads = head.method in ("GET", "HEAD") and not head.websocket
            if reads or head.only(b"origin") is not None or head.only(b"sec-fetch-site") == "same-origin":
                return "cookie"
            raise Refused(403, "The request does not say which page made it.")
        if head.websocket and self._house.greets_sockets and "prefect" in head.subprotocols:
            return "not yet"
        raise Refused(401, "This server wants to know who asks.")

    def _check_body(self, head: RequestHead) -> None:
        if head.method in SAFE or not head.has_body or self._house.other_bodies.fullmatch(head.path):
            return
        if head.media_type != "application/json":
            raise Refused(415, "A body has to be declared as application/json.")

    def _exchange(self, head: RequestHead) -> str | None:
        """Where a browser that brings the right token goes on; None for another request."""
        if head.method != "GET" or head.websocket:
            return None
        pairs = parse_qsl(head.query, keep_blank_values=True)
        given = [value for name, value in pairs if name == TOKEN]
        if not given or not hmac.compare_digest(given[0].encode(), address_token(self._key).encode()):
            return None
        head.scope["query_string"] = b""  # what a log of requests would show
        rest = urlencode([pair for pair in pairs if pair[0] != TOKEN])
        return quote(head.path) + (f"?{rest}" if rest else "")

    def _remembers(self, head: RequestHead) -> bool:
        """Whether a cookie of ours is given by the user who was given it."""
        given = [value.encode("latin-1") for value in head.cookies(self._cookie)]
        return any(hmac.compare_digest(value, self._session(head).encode()) for value in given)

    def _session(self, head: RequestHead) -> str:
        return _digest(self._key, f"session of {peer_user(head.scope)}")

    def _set_cookie(self, head: RequestHead) -> tuple[bytes, bytes]:
        cookie = (
            f"{self._cookie}={self._session(head)}; Path=/; Max-Age={SESSION_S}; HttpOnly; SameSite=Strict"
        )
        return b"set-cookie", cookie.encode()

    def _finishing(self, send: Send, logged_in: RequestHead | None) -> Send:
        """`send` with headers for browsers, and a cookie for one that has just told the password."""

        async def finish(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                there = {bytes(name).lower() for name, _ in headers}
                headers += [pair for pair in PAGE_HEADERS.items() if pair[0] not in there]
                if logged_in is not None:
                    headers.append(self._set_cookie(logged_in))
                message = {**message, "headers": headers}
            await send(message)

        return finish

    async def _admit(self, head: RequestHead, location: str, send: Send) -> None:
        headers = {
            b"location": location.encode(),
            b"cache-control": b"no-store",
            b"referrer-policy": b"no-referrer",
        }
        await _answer(send, 303, [*headers.items(), self._set_cookie(head)], b"")

    async def _refuse(self, head: RequestHead, refused: Refused, send: Send) -> None:
        if head.websocket:
            return await send({"type": "websocket.close", "code": POLICY_VIOLATION})
        headers = [*PAGE_HEADERS.items(), (b"cache-control", b"no-store"), (b"connection", b"close")]
        if refused.status == 401 and (
            head.opens_page or not head.by_browser
        ):  # no dialogue for a page's script
            headers.append((b"www-authenticate", b'Basic realm="yarn-ops", charset="UTF-8"'))
        if head.opens_page:
            headers.append((b"content-type", b"text/html; charset=utf-8"))
            text = PAGE.format(status=refused.status, reason=refused.reason)
        else:
            headers.append((b"content-type", b"text/plain; charset=utf-8"))
            text = f"{refused.reason}\n"
        await _answer(send, refused.status, headers, b"" if head.method == "HEAD" else text.encode())


class _Introduction:
    """A WebSocket whose client has yet to say who it is: nothing passes, either way, before that."""

    def __init__(self, app: Application, password: bytes, receive: Receive, send: Send) -> None:
        self._app = app
        self._password = password
        self._receive = receive
        self._send = send
        self._known = self._closed = False

    async def run(self, scope: Scope) -> None:
        await self._app(scope, self._hear, self._say)

    async def _hear(self) -> Message:
        if not self._closed:
            message = await self._receive()
            if self._known or message["type"] != "websocket.receive":
                return message
            self._known = self._introduces(message)
            if self._known:
                return message
            await self._say({"type": "websocket.close", "code": POLICY_VIOLATION})
        return {"type": "websocket.disconnect", "code": POLICY_VIOLATION}

    async def _say(self, message: Message) -> None:
        if message["type"] == "websocket.send" and not self._known:
            message = {"type": "websocket.close", "code": POLICY_VIOLATION}
        if not self._closed:
            self._closed = message["type"] == "websocket.close"
            await self._send(message)

    def _introduces(self, message: Message) -> bool:
        try:
            said = json.loads(message.get("text") or message.get("bytes") or "")
            return said["type"] == "auth" and hmac.compare_digest(said["token"].encode(), self._password)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return False


def address_token(key: SecretStr) -> str:
    """What a browser is given in an address, and gives back for its cookie."""
    return _digest(key, "address")


def serve(app: Application | str, host: str, port: int, **options: Any) -> None:
    """Run a guarded application until SIGTERM or SIGINT; a string names a function that makes it.

    The parser is h11 everywhere. No header is believed about who the client is: cookies depend on that.
    """
    import uvicorn

    uvicorn.run(
        app,
        factory=isinstance(app, str),
        host=host,
        port=port,
        http="h11",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_S,
        **options,
    )


def _digest(key: SecretStr, purpose: str) -> str:
    return hmac.new(key.get_secret_value().encode(), purpose.encode(), hashlib.sha256).hexdigest()


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
