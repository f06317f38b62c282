"""Where YARN_OPS_ALERT_URL is told, and what is said of one that cannot be: one line, without the address."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from flows.alert import _post
from yarn_ops.errors import SettingsError

MESSAGE = {"text": "fell", "name": "m", "version": "1"}
heard: list[tuple[str, object]] = []


class Chat(BaseHTTPRequestHandler):
    """Answers with the status that its path names; 302 sends to /200/moved."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        heard.append((self.path, body))
        status = int(self.path.split("/")[1])
        self.send_response(status)
        if status == 307:
            self.send_header("Location", "/200/moved")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def chat() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Chat)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("status", (200, 204, 307))
def test_it_is_told_there(chat: str, status: int) -> None:
    heard.clear()
    _post(f"{chat}/{status}/secret", MESSAGE)
    assert heard[0] == (f"/{status}/secret", MESSAGE)
    assert heard[1:] == ([("/200/moved", MESSAGE)] if status == 307 else [])


@pytest.mark.parametrize("status", (401, 404, 500))
def test_a_refusal_is_one_line_without_the_address(chat: str, status: int) -> None:
    with pytest.raises(SettingsError, match=f"YARN_OPS_ALERT_URL: not told there .{status} ") as told:
        _post(f"{chat}/{status}/secret", MESSAGE)
    assert "secret" not in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    "address",
    (
        "secret", "", "http://", "mailto:secret@x", "ftp://127.0.0.1/secret", "http://ho st/secret",
        "http://127.0.0.1:1/secret", "http://127.0.0.1:99999/secret", "http://127.0.0.1:x/secret",
        "http://[::1/secret", "http://a..b/secret", "http://\0/secret", "http://x/\n/secret", "http://\udce9/secret",
        "http://no-such-host.invalid/secret", "https://" + "a" * 300 + "/secret", "http://é..é/secret",
    ),
)  # fmt: skip
def test_an_address_that_cannot_be_asked_is_one_line_without_it(address: str) -> None:
    with pytest.raises(SettingsError, match=r"^YARN_OPS_ALERT_URL: ") as told:
        _post(address, MESSAGE)
    assert "secret" not in str(told.value) and "\n" not in str(told.value)
