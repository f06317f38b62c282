"""Who is told, by real receivers on loopback: webhooks, SMTP, and one that is down."""

from __future__ import annotations

import email
import json
import socket
import time
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from loopback import listening
from person import Person

from yarn_ops import notify
from yarn_ops.errors import SettingsError
from yarn_ops.notify import Notice, require_addresses, tell
from yarn_ops.settings import Settings, read_settings

NOTICE = Notice(
    "promoted",
    "demo was promoted",
    (
        ("promoted", "demo, 512 to 2,048 tokens"),
        ("next", "Serve <it> & look"),
        ("pull", "yarn-ops pull demo --alias champion --to ./demo"),
    ),
    "demo",
    "run-1",
    (("Run", "http://127.0.0.1:4200/runs/flow-run/1"),),
)
heard: list[tuple[str, Any]] = []


class Chat(BaseHTTPRequestHandler):
    """Answers with the status that its path names; 307 sends to /200/moved."""

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
    with listening(Chat) as url:
        yield url


@pytest.fixture(autouse=True)
def silence() -> None:
    heard.clear()


def told(*addresses: str) -> tuple[str, ...]:
    return tell(Settings(notify=" ".join(addresses)), NOTICE)


@pytest.mark.parametrize("status", (200, 204, 307))
def test_a_webhook_gets_the_card(chat: str, status: int) -> None:
    assert told(f"{chat}/{status}/secret") == ()
    path, message = heard[-1]
    assert path == ("/200/moved" if status == 307 else f"/{status}/secret")
    assert [(row["label"], row["text"]) for row in message["card"]] == list(NOTICE.rows)
    assert (message["kind"], message["name"], message["run"]) == ("promoted", "demo", "run-1")
    assert "yarn-ops pull demo --alias champion --to ./demo" in message["text"]


def test_slack_and_teams_get_their_forms(chat: str) -> None:
    assert told(f"slack+{chat}/200/s", f"teams+{chat}/200/t") == ()
    messages = dict(heard)
    header, section = messages["/200/s"]["blocks"]
    assert header == {"type": "header", "text": {"type": "plain_text", "text": "demo was promoted"}}
    assert "*next* Serve &lt;it&gt; &amp; look" in section["text"]["text"]
    assert "`yarn-ops pull demo --alias champion --to ./demo`" in section["text"]["text"]
    (attachment,) = messages["/200/t"]["attachments"]
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    title, facts = attachment["content"]["body"]
    assert title["text"] == "demo was promoted"
    assert facts["facts"][1] == {"title": "next", "value": "Serve <it> & look"}
    assert attachment["content"]["actions"][0]["url"] == NOTICE.links[0][1]


@pytest.mark.parametrize(
    ("address", "kind"),
    (
        ("https://hooks.slack.com/services/T/B/C", "slack"), ("https://a.b.logic.azure.com:443/x", "teams"),
        ("https://evil-hooks.example/slack", "json"), ("slack://T/B/C", "slack"),
        ("mailto://a:b@c.d", "mailto"),
    ),
)  # fmt: skip
def test_a_webhook_is_known_by_its_host(address: str, kind: str) -> None:
    assert notify.kind_of(address) == kind


def test_a_mailbox_gets_the_card() -> None:
    letters: list[Message] = []

    class Box:
        async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:
            letters.append(email.message_from_bytes(envelope.content))
            return "250 kept"

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = Controller(Box(), hostname="127.0.0.1", port=port)
    server.start()
    try:
        to = f"mailto://127.0.0.1:{port}?smtp=127.0.0.1&from=ops@example.org&to=team@example.org"
        assert told(to) == ()
    finally:
        server.stop()
    (letter,) = letters
    assert letter["Subject"] == "yarn-ops: demo was promoted" and "team@example.org" in letter["To"]
    parts = [part.get_payload(decode=True).decode() for part in letter.walk() if not part.is_multipart()]
    assert any("Promoted: demo, 512 to 2,048 tokens" in part for part in parts)
    assert any("<code>yarn-ops pull demo --alias champion --to ./demo</code>" in part for part in parts)
    assert not any("<it>" in part for part in parts if "<code>" in part)


@pytest.mark.parametrize("status", (401, 404, 500))
def test_a_refusal_is_one_line_without_the_address(chat: str, status: int) -> None:
    (fault,) = told(f"{chat}/{status}/secret")
    assert fault.startswith(f"YARN_OPS_NOTIFY: address 1 (json): not told: {status} ")
    assert "secret" not in fault and "\n" not in fault


@pytest.mark.parametrize(
    "address",
    (
        "secret", "http://", "ftp://127.0.0.1/secret", "http://127.0.0.1:1/secret", "slack://secret",
        "http://127.0.0.1:99999/secret", "http://127.0.0.1:x/secret", "http://[::1/secret",
        "http://a..b/secret", "http://\0/secret", "http://\udce9/secret", "http://no-such-host.invalid/secret",
        "https://" + "a" * 300 + "/secret", "http://é..é/secret", "mailto://me:secret@127.0.0.1:1?to=secret@a.org",
    ),
)  # fmt: skip
def test_an_address_that_cannot_be_asked_is_one_line_without_it(
    address: str, chat: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (fault,) = told(address, f"{chat}/200/other")
    assert fault.startswith("YARN_OPS_NOTIFY: address 1 (")
    assert "secret" not in fault and "\n" not in fault and "secret" not in "".join(capfd.readouterr())
    assert len(heard) == 1  # the other one is told all the same


def test_one_that_never_answers_costs_no_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "LIMIT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        began = time.monotonic()
        faults = told(
            f"http://127.0.0.1:{port}/x", f"mailto://127.0.0.1:{port}?smtp=127.0.0.1&from=a@b.org&to=c@d.org"
        )
        assert time.monotonic() - began < 3
    assert len(faults) == 2


def test_addresses_are_examined_and_never_shown() -> None:
    settings = Settings(notify="https://hooks.slack.com/services/hunter2 mailto://me:hunter2@example.org")
    assert require_addresses(settings) == ["slack", "mailto"]
    assert "hunter2" not in repr(settings) + str(settings.model_dump())
    with pytest.raises(SettingsError, match="address 2: neither a webhook nor known to Apprise") as fault:
        require_addresses(Settings(notify="https://a.example nonsense-hunter2"))
    assert "hunter2" not in str(fault.value)


def test_the_earlier_name_is_refused_with_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YARN_OPS_ALERT_URL", "http://127.0.0.1/secret")
    with pytest.raises(SettingsError, match="YARN_OPS_ALERT_URL: is now YARN_OPS_NOTIFY; write that"):
        read_settings()


def test_a_run_that_fails_tells_of_it(person: Person, chat: str, small_recipe: Path) -> None:
    """And says who was not told."""
    failed = person.types(
        "extend", small_recipe, "--set", "data.sources=['/nowhere/*.txt']",
        YARN_OPS_NOTIFY=f"{chat}/200/failed http://127.0.0.1:1/secret",
    )  # fmt: skip
    assert failed.status == 2
    assert "YARN_OPS_NOTIFY: address 2 (json): not told: " in failed.err and "secret" not in failed.err
    ((path, message),) = heard
    assert (path, message["kind"], message["title"]) == ("/200/failed", "failed", "small failed")
    assert message["card"][1] == {"label": "look", "text": f"yarn-ops runs show {message['run']}"}
    assert "/nowhere/*.txt" in message["card"][0]["text"]
