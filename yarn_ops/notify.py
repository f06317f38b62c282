"""Telling people what came of a run: webhooks (plain JSON, Slack's and Teams' forms), e-mail, Apprise.

Addresses stand in YARN_OPS_NOTIFY, separated by spaces. They are secrets: what is said of one names its
place in the list and its kind alone. Nothing here raises, and nothing takes longer than `LIMIT_S`.
"""

from __future__ import annotations

import logging
import re
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import unquote, urlsplit

from yarn_ops.errors import SettingsError
from yarn_ops.evals.report.verdict import COMMANDS, Rows, as_markdown, as_text
from yarn_ops.registry import RunView
from yarn_ops.registry.views import WAITS
from yarn_ops.secrecy import MASK
from yarn_ops.settings import Settings
from yarn_ops.shown import one_line

LIMIT_S = 10.0
"""within which every receiver has to answer; a run waits no longer"""
SLACK, TEAMS, PLAIN = "slack", "teams", "json"
HOSTS = {
    SLACK: ("hooks.slack.com",),
    TEAMS: (".webhook.office.com", ".logic.azure.com", ".powerplatform.com"),
}
"""whose webhooks take another form than plain JSON; others name it: slack+https://…, teams+https://…"""
WEBHOOK = re.compile(rf"(?:({SLACK}|{TEAMS}|{PLAIN})\+)?(https?://.*)", re.DOTALL)
TITLE_LETTERS = 150  # of a header block of Slack
TEXT_LETTERS = 2900  # of a section block of Slack, below its 3,000
TOLD = {
    "promoted": "was promoted",
    "completed": "finished",
    "rejected": "was rejected by its gate",
    "failed": "failed",
    "stopped": "was stopped",
}
"""outcome of a run: what is said of it"""


class NotTold(Exception):
    """Why a receiver was not told, in one line without its address."""


@dataclass(frozen=True)
class Notice:
    """What somebody is told."""

    kind: str
    """promoted, completed, rejected, failed, stopped, fell, approval"""
    title: str
    rows: Rows
    """the verdict card, or as much as is known"""
    name: str = ""
    """of the model"""
    run: str = ""
    links: tuple[tuple[str, str], ...] = ()
    """(what it is, address) of pages"""


def run_notice(run: RunView, page: str | None = None) -> Notice:
    """How a run ended, with its verdict card where it has one. page: its own in Prefect."""
    model = run.recipe.get("publish", {}).get("name", "")
    rows: Rows = ()
    if run.outcome in ("promoted", "rejected"):
        rows = run.verdict_card
    if not rows:
        told = run.reason or f"{run.kind} {run.name or model}"
        rows = ((run.outcome, told), ("look", f"yarn-ops runs show {run.id}"))
    if run.outcome == WAITS:
        rows = (
            ("waits for approval", f"{model} passed its gate"),
            *run.verdict_card[1:],
            ("approve", f"yarn-ops approve {run.id} [--reject] [--note TEXT]"),
        )
    title = f"{run.name or model} {TOLD.get(run.outcome, run.outcome)}"
    kind = "approval" if run.outcome == WAITS else run.outcome
    return Notice(kind, title, rows, model, run.id, (("Run", page),) if page else ())


def tell(settings: Settings, notice: Notice) -> tuple[str, ...]:
    """Tell everybody at once; one line for each receiver that was not told."""
    addresses = addresses_of(settings)
    faults = dict.fromkeys(range(len(addresses)), f"did not answer within {LIMIT_S:g} s")

    def send(number: int, address: str) -> None:
        try:
            _send(address, notice)
            del faults[number]
        except NotTold as error:
            faults[number] = str(error)
        except Exception as error:  # of a library: a run must not fail by it
            faults[number] = type(error).__name__

    deadline = time.monotonic() + LIMIT_S
    sending = [threading.Thread(target=send, args=place, daemon=True) for place in enumerate(addresses)]
    for one in sending:
        one.start()
    for one in sending:
        one.join(max(0.0, deadline - time.monotonic()))
    return tuple(
        f"YARN_OPS_NOTIFY: address {number + 1} ({kind_of(addresses[number])}): not told: {fault}"
        for number, fault in sorted(faults.copy().items())
    )


def addresses_of(settings: Settings) -> list[str]:
    return [] if settings.notify is None else settings.notify.get_secret_value().split()


def kind_of(address: str) -> str:
    """json, slack or teams of a webhook, else Apprise's scheme."""
    webhook = WEBHOOK.fullmatch(address)
    if webhook is None:
        scheme = address.partition("://")[0].lower()
        return scheme if "://" in address and re.fullmatch(r"[a-z0-9+.-]{1,20}", scheme) else "no address"
    if webhook[1]:
        return webhook[1]
    try:
        host = urlsplit(address).hostname or ""
    except ValueError:
        return PLAIN
    return next((kind for kind, ends in HOSTS.items() if host.endswith(ends)), PLAIN)


def require_addresses(settings: Settings) -> list[str]:
    """The kinds of all addresses; SettingsError for one that nothing knows. Nobody is told anything."""
    addresses = addresses_of(settings)
    for number, address in enumerate(addresses, start=1):
        if WEBHOOK.fullmatch(address) is None and _service(address) is None:
            raise SettingsError(
                f"YARN_OPS_NOTIFY: address {number}: neither a webhook nor known to Apprise; write e.g. "
                "https://…, slack+https://…, mailto://…"
            )
    return [kind_of(address) for address in addresses]


def _send(address: str, notice: Notice) -> None:
    webhook = WEBHOOK.fullmatch(address)
    if webhook is None:
        return _by_apprise(address, notice)
    forms = {SLACK: slack_form, TEAMS: teams_form, PLAIN: plain_form}
    _post(webhook[2], forms[kind_of(address)](notice))


def _post(address: str, message: dict[str, Any]) -> None:
    import httpx

    trusted = ssl.create_default_context()  # the machine's certificate authorities
    try:
        answer = httpx.post(address, json=message, timeout=LIMIT_S, verify=trusted, follow_redirects=True)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError):  # they repeat the address
        raise NotTold("no address that can be asked; check it") from None
    except httpx.HTTPError as error:
        raise NotTold(_masked(str(error) or type(error).__name__, address)) from None
    if not answer.is_success:
        raise NotTold(f"{answer.status_code} {answer.reason_phrase}")


def _by_apprise(address: str, notice: Notice) -> None:
    from apprise import NotifyFormat

    service = _service(address)
    if service is None:
        raise NotTold("Apprise knows no such address; check it")
    logging.getLogger("apprise").propagate = False  # it would print the address
    rows = [(label, text if label in COMMANDS else escape(text, quote=False)) for label, text in notice.rows]
    body = "\n\n".join((as_markdown(rows), *(f"[{name}]({page})" for name, page in notice.links)))
    told = service.notify(title=f"yarn-ops: {notice.title}", body=body, body_format=NotifyFormat.MARKDOWN)
    why = _WORDS.said.pop(threading.get_ident(), "the receiver refused it")
    if not told:
        raise NotTold(_masked(why, address))


def _service(address: str) -> Any:
    """What Apprise sends to it with; None where it knows none."""
    from apprise import Apprise

    logger = logging.getLogger("apprise")
    logger.propagate = False  # it would print the address
    logger.addHandler(_WORDS)
    made = Apprise()
    return made if made.add(address) else None


class _Words(logging.Handler):
    """Keeps the last warning of each thread instead of printing it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: dict[int, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.said[threading.get_ident()] = record.getMessage()


_WORDS = _Words()


def _masked(text: str, address: str) -> str:
    """A library's words on one line, with every part of the address that they repeat masked."""
    for part in sorted(re.split(r"[^\w.-]+", unquote(address)), key=len, reverse=True):
        if len(part) > 3:
            text = text.replace(part, MASK)
    return one_line(text)


def plain_form(notice: Notice) -> dict[str, Any]:
    """JSON for programs; chat systems that take `text` show the card."""
    return {
        "text": "\n".join((notice.title, *as_text(notice.rows), *(page for _, page in notice.links))),
        "kind": notice.kind,
        "title": notice.title,
        "name": notice.name,
        "run": notice.run,
        "card": [{"label": label, "text": text} for label, text in notice.rows],
        "links": dict(notice.links),
    }


def slack_form(notice: Notice) -> dict[str, Any]:
    """As an incoming webhook of Slack takes it: a header, the card in Slack's Markdown, a text for alerts."""
    body = "\n".join((*_slack_rows(notice.rows), *(f"<{page}|{name}>" for name, page in notice.links)))
    return {
        "text": escape(notice.title, quote=False),
        "blocks": [
            {"type": "header", "text": {"type": "plain_text", "text": notice.title[:TITLE_LETTERS]}},
            {"type": "section", "text": {"type": "mrkdwn", "text": body[:TEXT_LETTERS]}},
        ],
    }


def _slack_rows(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    for label, text in rows:
        shown = escape(text, quote=False)
        yield f"*{escape(label, quote=False)}* {f'`{shown}`' if label in COMMANDS else shown}"


def teams_form(notice: Notice) -> dict[str, Any]:
    """As a workflow's webhook of Teams takes it: an adaptive card."""
    facts = [{"title": label, "value": text} for label, text in notice.rows]
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": [
            {"type": "TextBlock", "size": "Large", "weight": "Bolder", "wrap": True, "text": notice.title},
            {"type": "FactSet", "facts": facts},
        ],
        "actions": [{"type": "Action.OpenUrl", "title": name, "url": page} for name, page in notice.links],
    }
    return {
        "type": "message",
        "attachments": [
            {
                "contentType": "application/vnd.microsoft.card.adaptive",
                "contentUrl": None,
                "content": card,
            }
        ],
    }
