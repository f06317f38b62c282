"""The head of a request, of HTTP or of a WebSocket, as the guard reads it; and whose process made it."""

from __future__ import annotations

import base64
import binascii
import contextlib
import socket
import struct
from collections.abc import Iterator, MutableMapping
from typing import Any

from pydantic import SecretStr

Scope = MutableMapping[str, Any]

NETLINK_SOCK_DIAG = 4  # linux/netlink.h, as the next
NLM_F_REQUEST = 1
SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
ESTABLISHED = 1  # TCP_ESTABLISHED, net/tcp_states.h


class Refused(Exception):
    """A request that is not handed on, and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class RequestHead:
    """What a request says before its body. Header values are bytes from anybody: read as Latin-1."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.websocket = scope["type"] == "websocket"
        self.method: str = "GET" if self.websocket else scope["method"]
        self.path: str = scope["path"]
        self.query = bytes(scope.get("query_string", b"")).decode("latin-1")
        self.port = int((scope.get("server") or ("", 0))[1] or 0)
        self.subprotocols: list[str] = list(scope.get("subprotocols", ()))

    def all(self, name: bytes) -> Iterator[str]:
        for one, value in self.scope["headers"]:
            if bytes(one).lower() == name:
                yield bytes(value).decode("latin-1").strip()

    def only(self, name: bytes) -> str | None:
        """The header's value, None without one; Refused when there are several."""
        found = list(self.all(name))
        if len(found) > 1:
            raise Refused(400, f"The header {name.decode()} is there more than once.")
        return found[0] if found else None

    @property
    def by_browser(self) -> bool:
        return any(self.all(b"sec-fetch-site")) or any(self.all(b"origin"))

    @property
    def opens_page(self) -> bool:
        """Whether a browser asks for what its window will show."""
        wanted = {b"sec-fetch-mode": ["navigate"], b"sec-fetch-dest": ["document"]}
        return self.method == "GET" and all(list(self.all(name)) == value for name, value in wanted.items())

    @property
    def has_body(self) -> bool:
        lengths = list(self.all(b"content-length"))
        return any(self.all(b"transfer-encoding")) or lengths not in ([], ["0"])

    @property
    def media_type(self) -> str:
        return (self.only(b"content-type") or "").partition(";")[0].strip().lower()

    @property
    def basic(self) -> bytes | None:
        """What HTTP basic authentication gives; None for anything else."""
        scheme, _, encoded = (self.only(b"authorization") or "").partition(" ")
        if scheme.lower() != "basic":
            return None
        with contextlib.suppress(binascii.Error, ValueError):  # the second: not ASCII
            return base64.b64decode(encoded.strip(), validate=True)
        return None

    def cookies(self, name: str) -> list[str]:
        """The values of the cookies of this name."""
        pairs = (pair.strip().partition("=") for line in self.all(b"cookie") for pair in line.split(";"))
        return [value for key, _, value in pairs if key == name]


def basic(auth: SecretStr | None) -> dict[str, str]:
    """The header that tells a server this "user:password"."""
    if auth is None:
        return {}
    return {"Authorization": f"Basic {base64.b64encode(auth.get_secret_value().encode()).decode()}"}


def peer_user(scope: Scope) -> int | None:
    """The system user whose process holds this connection's other end; None where the kernel does not tell.

    An end that its process has closed belongs to nobody, whatever number the kernel writes there.
    """
    client, server = scope.get("client"), scope.get("server")
    if not client or not server or server[1] is None or not hasattr(socket, "AF_NETLINK"):
        return None
    family = socket.AF_INET6 if ":" in client[0] else socket.AF_INET
    with contextlib.suppress(OSError, struct.error):
        addresses = b"".join(socket.inet_pton(family, end[0]).ljust(16, b"\0") for end in (client, server))
        # struct inet_diag_req_v2 of linux/inet_diag.h: any state, both ends, any interface, no cookie
        asked = struct.pack("=BBxxI", family, socket.IPPROTO_TCP, 0xFFFFFFFF)
        asked += struct.pack("!HH", client[1], server[1]) + addresses + struct.pack("=Iq", 0, -1)
        asked = struct.pack("=IHHII", 16 + len(asked), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0) + asked
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_SOCK_DIAG) as kernel:
            kernel.sendto(asked, (0, 0))
            told = kernel.recv(4096)
        (kind,) = struct.unpack_from("=H", told, 4)
        if kind == SOCK_DIAG_BY_FAMILY:  # struct inet_diag_msg behind a header of 16 bytes
            user, inode = struct.unpack_from("=II", told, 80)
            return int(user) if told[17] == ESTABLISHED and inode else None
    return None
