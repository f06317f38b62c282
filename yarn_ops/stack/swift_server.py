"""The S3 server's process: Swift's proxy, with its account, container and object server inside it.

Swift's servers trust whoever reaches them, the proxy alone asks for a password. So only the proxy listens: a
connection to one of the others becomes a pair of connected sockets, whose far end that server answers in the
same process. They have no port and no path that another process could open.
"""

from __future__ import annotations

import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import eventlet
from eventlet import greenio, wsgi
from eventlet.green import socket
from swift.account import server as account_server
from swift.common import bufferedhttp
from swift.common.http_protocol import SwiftHttpProtocol
from swift.common.ring import RingBuilder
from swift.common.utils import NullLogger
from swift.common.wsgi import appconfig, run_wsgi
from swift.container import server as container_server
from swift.obj import server as object_server

INNER = {"account": account_server, "container": container_server, "object": object_server}
PORTS = dict(enumerate(INNER, start=1))
"""what the rings call them; nothing listens there"""
TIMEOUT_S = 60.0


def serve(folder: Path) -> int:
    """Run Swift by `folder`/proxy-server.conf until SIGTERM; the status to exit with."""
    _build_rings(folder)
    settings = folder / "proxy-server.conf"

    @cache
    def inner(port: int) -> wsgi.Server:
        app = INNER[PORTS[port]].app_factory(appconfig(str(settings), name="proxy-server"))
        return wsgi.Server(
            None,
            ("", port),
            app,
            NullLogger(),
            protocol=SwiftHttpProtocol,
            socket_timeout=TIMEOUT_S,
            capitalize_response_headers=False,
        )

    def answer(far: Any, port: int) -> None:
        try:
            inner(port).process_request(["", far, wsgi.STATE_IDLE])
        finally:
            greenio.shutdown_safe(far)
            far.close()

    def connect(connection: Any) -> None:
        connection._connected_time = time.time()
        connection.sock, far = socket.socketpair()
        eventlet.spawn_n(answer, far, connection.port)

    bufferedhttp.BufferedHTTPConnection.connect = connect
    return int(run_wsgi(str(settings), "proxy-server", verbose=True))


def _build_rings(folder: Path) -> None:
    """Where the data lie: on one device, behind one server a kind."""
    for port, kind in PORTS.items():
        builder = RingBuilder(6, 1, 1)  # 64 partitions, one copy
        at = {"ip": "127.0.0.1", "port": port}
        at |= {f"replication_{name}": value for name, value in at.items()}
        builder.add_dev({"region": 1, "zone": 1, "device": "d1", "weight": 1.0, "meta": "", **at})
        builder.rebalance()
        builder.get_ring().save(str(folder / f"{kind}.ring.gz"))


if __name__ == "__main__":
    sys.exit(serve(Path(sys.argv[1])))
