"""No text shows a secret, whatever carries it, and no text without one is changed."""

from __future__ import annotations

import ast
import base64
import json
import logging
import shlex
import string
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus, urlencode

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from flows.logs import about
from yarn_ops.errors import YarnOpsError, service_fault
from yarn_ops.secrecy import hide_values, without_secrets
from yarn_ops.secret_names import WORDS as WORDS_OF_SECRETS
from yarn_ops.settings import read_settings

# ruff: noqa: E501
KINDS = {
    "X-Api-Key: hunter2": "X-Api-Key: ***",
    "> X-Auth-Token: hunter2\n> Accept: */*": "> X-Auth-Token: ***\n> Accept: */*",
    "curl -H 'X-Api-Key: hun ter2' http://host/x": "curl -H 'X-Api-Key: ***' http://host/x",
    "Cookie: session=hunter2; csrftoken=hunter2\nHost: h": "Cookie: ***\nHost: h",
    "< Set-Cookie: a=hunter2; Path=/; HttpOnly": "< Set-Cookie: ***",
    "asked with Cookie: session=hunter2; other=hunter2": "asked with Cookie: ***",
    'Authorization: Digest username="me", response="hunter2"': "Authorization: ***",
    "Proxy-Authorization: Basic bWU6aHVudGVyMg== refused": "Proxy-Authorization: Basic *** refused",
    "authorization: AWS4-HMAC-SHA256 Credential=hunter2/x, Signature=hunter2": "authorization: ***",
    "sent Basic bWU6aHVudGVyMg== to it": "sent Basic *** to it",
    "sent Bearer hunterhunter to it": "sent Bearer *** to it",
    "headers={'x-api-key': 'hunter2', 'accept': '*/*'}": "headers={'x-api-key': ***, 'accept': '*/*'}",
    "[(b'Authorization', b'Bearer hunter2'), (b'accept', b'x')]": "[(b'Authorization', b***), (b'accept', b'x')]",
    '{"cookies": {"a": "hunter2"}, "b": 1}': '{"cookies": ***, "b": 1}',
    "token=hunter2": "token=***",
    "refused: token=hun&ter2)hunter2,hunter2;hunter2 by it": "refused: token=*** by it",
    "yarn-x --password hunter2 --verbose": "yarn-x --password *** --verbose",
    "yarn-x --api-key=hunter2 --verbose": "yarn-x --api-key=*** --verbose",
    "['x', '--password', 'hunter2', '-v']": "['x', '--password', ***, '-v']",
    "['x', '--password=hun ter2', '-v']": "['x', '--password=***', '-v']",
    "yarn-x --token 'hun'\"'\"'ter2 hunter2' -v": "yarn-x --token *** -v",
    "db:\n  user: me\n  password: hunter2 hunter2\n  port: 5": "db:\n  user: me\n  password: ***\n  port: 5",
    "- password: 'hun''ter2'\n  a: 1": "- password: ***\n  a: 1",
    "secret_key: |\n  hunter2\n  hunter2\na: 1": "secret_key: ***\na: 1",
    "MLFLOW_PASSWORD: hunter2": "MLFLOW_PASSWORD: ***",
    "password = hun ter2\nuser = me": "password = ***\nuser = me",
    "export AWS_SECRET_ACCESS_KEY=hunter2; run": "export AWS_SECRET_ACCESS_KEY=*** run",
    "StoreOptions(secret_key='hun\\'ter2', region='x')": "StoreOptions(secret_key=***, region='x')",
    'says "{\\"password\\": \\"hun\\\\\\"ter2\\", \\"a\\": 1}"': 'says "{\\"password\\": ***, \\"a\\": 1}"',
    "ALTER ROLE me PASSWORD 'hunter2'": "ALTER ROLE me PASSWORD ***",
    "<Error><SecretKey>hunter2</SecretKey><Code>x</Code>": "<Error><SecretKey>***</SecretKey><Code>x</Code>",
    "Server=x;Password=hunter2;Database=y": "Server=x;Password=***;Database=y",
    "grant=x&client_secret=hunter2&user=me": "grant=x&client_secret=***&user=me",
    "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----": "-----BEGIN PRIVATE KEY***-----END PRIVATE KEY-----",
    "your API key: hunter2": "your API key: ***",
    "slack://hunter2/hunter2/#x refused": "slack://*** refused",
    "mailtos://me:hunter2@gmail.com?to=a": "mailtos://***",
    "tgram://123:hunter2/4, discord://hunter2/x": "tgram://*** discord://***",
    "slack+https://chat.example.com/hunter2": "slack+https://***",
    "https://hooks.slack.com/services/T0/B0/hunter2: 404": "https://hooks.slack.com/*** 404",
    "https://discord.com/api/webhooks/12/hunter2": "https://discord.com/api/webhooks/***",
    "https://x.webhook.office.com/webhookb2/hunter2": "https://x.webhook.office.com/***",
    "https://api.telegram.org/bot12:hunter2/send": "https://api.telegram.org/***",
    "https://b.s3.amazonaws.com/k?X-Amz-Signature=hunter2&X-Amz-Expires=9": "https://b.s3.amazonaws.com/k?X-Amz-Signature=***&X-Amz-Expires=9",
    "https://a.blob.core.windows.net/c?sv=1&sig=hunter2%3D&se=2": "https://a.blob.core.windows.net/c?sv=1&sig=***&se=2",
    "'https://me:hunter2@host:443/x' (refused)": "'https://me:***@host:443/x' (refused)",
    "https%3A%2F%2Fme%3Ahunter2%40host%2Fx": "https%3A%2F%2Fme%3A***%40host%2Fx",
    '{"url":"https:\\/\\/me:hunter2\\u0040host","mail":"a@b.org"}': '{"url":"https:\\/\\/me:***\\u0040host","mail":"a@b.org"}',
    "%7B%22password%22%3A%22hunter2%22%7D": "%7B%22password%22%3A***%7D",
}  # fmt: skip
UNCHANGED = [
    "YARN_OPS_S3_SECRET_KEY: write one",
    "yarn-ops: YARN_OPS_S3_SECRET_KEY: YARN_OPS_S3_ACCESS_KEY is set without it",
    "YARN_OPS_MLFLOW_PASSWORD: not set; set it, or YARN_OPS_PREFECT_AUTH=user:…",
    "YARN_OPS_SIGNING_KEY: /keys/release.pem: no private key in PEM; make one with `openssl genpkey`",
    "YARN_OPS_NOTIFY: address 1: neither a webhook nor known to Apprise; write e.g. slack+https://…, mailto://…",
    "access key or secret key wrong; check YARN_OPS_S3_*",
    'FATAL: password authentication failed for user "me"',
    "a server with basic authentication, its passwords: none",
    "asked without a bearer token; Basic authentication is needed",
    'WWW-Authenticate: Bearer realm="x"',
    "tokenizer: makes token 8193, --set train.window_tokens=512, eos_token=<|eos|>, max_tokens=5",
    'tokenizer_config.json: {"bos_token": "<s>", "pad_token": null, "tokens": [1, 2]}',
    "next token: 17 of 300; the tokens: 5",
    "nats a token: 3.5; per token: 2.1",
    "stage=train key=8f3c2a1b9d run=00c4 sorted(key=len)",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "/run/secrets/password: Permission denied; /home/me/token.json: damaged; secret.txt: cannot be read",
    r"C:\Users\me\tokens\new.txt: not found",
    "https://example.com/a?page=2&author=me@example.com#top",
    "http://127.0.0.1:4200/flow-runs/flow-run/3@4?tab=Logs, https://huggingface.co/org/name@main",
    "postgresql+psycopg://me@db.example.com:5432/runs?sslmode=require",
    "tcp://10.0.0.1:8786 and s3://bucket/books/**/*.jsonl and sqlite:////home/a:b@c/x.db",
    "ssh://git@host/x.git",
    "models:/demo-long@champion hf:org/name@v1:2",
    "100%d of %40 things, 50% done, a\\b",
    "password=None, token: null, secret=***, api_key=''",
    "it can't read the model's config.json: don't ask",
    "PWD=/home/me run-x --password-file /x/y SECRETS_DIR=/run/x secret_name: yarn token_type=bearer",
    "test[of-http://127.0.0.1:9] at x.https://example.com/a",
    "Ω ≈ 3: ünïcödé, 🌍",
    "pass: 2 of 3, second_pass=2, compass=north, author=me, monkey=1",
]
PRINTED = string.ascii_letters + string.digits + string.punctuation
SECRETS = st.text(PRINTED + "äß€🌍", min_size=8, max_size=24)
SPACED = st.text(PRINTED + "äß€🌍 ", min_size=8, max_size=24).filter(lambda text: text == text.strip())
WORDS = st.text(string.ascii_letters + string.digits + "-_.~", min_size=8, max_size=24)


def as_url(secret: str) -> str:
    return quote(secret, safe="")


CARRIERS: list[tuple[st.SearchStrategy[str], Callable[[str], str]]] = [
    (SPACED, lambda s: f"GET /x HTTP/1.1\r\nX-Api-Key: {s}\r\nHost: h"),
    (SPACED, lambda s: f"> X-Auth-Token: {s}\n> Accept: */*"),
    (WORDS, lambda s: f"Cookie: a=1; session={s}; b={s}"),
    (WORDS, lambda s: f"Set-Cookie: id={s}; Expires=Wed, 21 Oct 2026 07:28:00 GMT, other={s}; Path=/"),
    (SECRETS, lambda s: f"Authorization: Digest username={json.dumps(s)}, response={json.dumps(s)}"),
    (WORDS, lambda s: f"asked with Authorization: Bearer {s} (401)"),
    (SECRETS, lambda s: f"Authorization: Basic {base64.b64encode(f'me:{s}'.encode()).decode()}"),
    (SECRETS, lambda s: f"sent Basic {base64.b64encode(f'me:{s}'.encode()).decode()} there"),
    (SECRETS, lambda s: f"refused: token=x{s} by the server"),
    (SPACED, lambda s: f"connect(host='x', password={s!r}, user='me')"),
    (SPACED, lambda s: repr({"user": "me", "secret_key": s, "port": 5})),
    (SPACED, lambda s: repr([("Authorization", s), ("accept", "x")])),
    (SPACED, lambda s: json.dumps({"user": "me", "client_secret": s, "port": 5})),
    (SPACED, lambda s: json.dumps({"user": "me", "apiKey": s}, separators=(",", ":"), ensure_ascii=False)),
    (SPACED, lambda s: json.dumps({"error": json.dumps({"password": s}), "a": 1})),
    (SPACED, lambda s: repr(json.dumps({"password": s, "a": 1}))),
    (SPACED, lambda s: yaml.safe_dump({"user": "me", "password": s, "z": 1}, allow_unicode=True, width=999)),
    (SPACED, lambda s: yaml.safe_dump({"a": [{"db_password": s}]}, default_style='"', width=999)),
    (SPACED, lambda s: f"ran: x --password {shlex.quote(s)} --verbose"),
    (SPACED, lambda s: f"ran: API_TOKEN={shlex.quote(s)} x --verbose"),
    (SPACED, lambda s: f"failed: {['x', '--token', s, '-v']!r}"),
    (SECRETS, lambda s: f"https://me:{as_url(s)}@host:443/x refused"),
    (WORDS, lambda s: f"cannot reach https://{s}@host/x"),
    (WORDS, lambda s: f"see 'https://host/x?access_token={s}&page=2'"),
    (SECRETS, lambda s: f"https://host/x?{urlencode({'a': 1, 'sig': s, 'b': 2})}"),
    (SECRETS, lambda s: f"https://host/k?X-Amz-Algorithm=x&X-Amz-Signature={as_url(s)}&X-Amz-Expires=1"),
    (SECRETS, lambda s: quote(f"next=https://me:{as_url(s)}@host/x", safe="")),
    (WORDS, lambda s: f"slack://{s}/x/{s}, tried twice"),
    (SECRETS, lambda s: f"mailtos://me:{as_url(s)}@gmail.com?to=a@b.org"),
    (WORDS, lambda s: f"https://hooks.slack.com/services/T0/B0/{s}"),
    (WORDS, lambda s: f"POST https://discord.com/api/webhooks/12/{s} 404"),
    (SECRETS, lambda s: f"postgresql+psycopg://me:{as_url(s)}@host/db: refused"),
    (SECRETS, lambda s: f"postgresql://host/db?user=me&password={as_url(s)}"),
    (SECRETS, lambda s: f"Traceback:\n  x.py, line 1\n    f(password={s!r})\nValueError: password: x{s}"),
]  # fmt: skip


def runs_of(secret: str) -> Iterator[str]:
    for first in range(len(secret) - 3):
        yield secret[first : first + 4]


@pytest.mark.parametrize("text", KINDS)
def test_every_kind_is_masked_and_no_more(text: str) -> None:
    shown = without_secrets(text)
    assert shown == KINDS[text]
    assert without_secrets(shown) == shown
    assert "hunter2" not in str(YarnOpsError(text))


@pytest.mark.parametrize("text", UNCHANGED)
def test_what_holds_none_stays_as_it_is(text: str) -> None:
    assert without_secrets(text) == text


def test_no_message_of_ours_is_changed() -> None:
    """Every text of the product that a `raise`, a log line or a printed one is made of, with 3 where a value stands."""
    messages = {
        text
        for package in ("yarn_ops", "flows")
        for file in Path(package).rglob("*.py")
        for statement in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(statement, ast.Raise | ast.Expr)
        and not isinstance(statement.__dict__.get("value"), ast.Constant)
        for text in _texts(statement)
    }
    assert len(messages) > 500
    changed = {text: shown for text in messages if (shown := without_secrets(text)) != text}
    assert not changed


def _texts(tree: ast.AST) -> Iterator[str]:
    if isinstance(tree, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "3" for part in tree.values)
    elif isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        yield tree.value
    else:
        for child in ast.iter_child_nodes(tree):
            yield from _texts(child)


@given(st.data())
@settings(max_examples=600, deadline=None)
def test_no_secret_gets_through(data: st.DataObject) -> None:
    secrets, carry = data.draw(st.sampled_from(CARRIERS))
    secret = data.draw(secrets)
    bare = carry("")
    shown = without_secrets(carry(secret))
    for run in runs_of(secret):
        assert run not in shown or run in bare, (carry(secret), shown)


ENCODED: dict[str, Callable[[str], str]] = {
    "as it is": lambda s: s,
    "percent-encoded": as_url,
    "in small letters": lambda s: as_url(s).replace("%2F", "%2f"),
    "twice": lambda s: as_url(as_url(s)),
    "of a form": quote_plus,
    "JSON": lambda s: json.dumps(s)[1:-1],
    "JSON in JSON": lambda s: json.dumps(json.dumps(s))[1:-1],
    "repr": repr,
    "base64": lambda s: base64.b64encode(s.encode()).decode(),
    "of a user": lambda s: base64.b64encode(f"me:{s}".encode()).decode(),
    "of a longer user": lambda s: base64.urlsafe_b64encode(f"yarn:{s}:x".encode()).decode(),
}


@given(SPACED, st.sampled_from(sorted(ENCODED)))
@example("p/@:?#[]% &=;'\"\\ü+", "twice")
def test_a_known_value_is_found_however_it_is_written(secret: str, form: str) -> None:
    assume(secret.lower() not in WORDS_OF_SECRETS)  # `authorization` as a password tells nothing
    hide_values([secret])
    shown = without_secrets(f"it answered <{ENCODED[form](secret)}> and ended")
    assert shown.startswith("it answered ") and shown.endswith(" and ended")
    written = ENCODED[form](secret)
    assert not any(
        run in shown.replace("it answered", "").replace("and ended", "") for run in runs_of(written)
    )


def test_settings_make_their_secrets_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that are refused, those of other packages, and those within addresses."""
    for name, value in {
        "YARN_OPS_S3_SECRET_KEY": "correct horse",
        "YARN_OPS_PREFECT_AUTH": "me:swordfish",
        "YARN_OPS_DATABASE_URL": "postgresql://me:gr%C3%BCn5@host/db",
        "YARN_OPS_NOTIFY": "https://chat.example.com/abc/xyzzy https://hooks.slack.com/services/T1/plugh",
        "HF_TOKEN": "hf_staple",
        "YARN_OPS_LEASE_S": "0",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(YarnOpsError, match="YARN_OPS_LEASE_S: input should be greater than 1"):
        read_settings()
    told = "a correct horse, a swordfish, grün5, abc/xyzzy, services/T1/plugh and hf_staple answered"
    assert without_secrets(told) == "a ***, a ***, ***, ***, *** and *** answered"
    error = OSError(28, "No space", "/x/swordfish")
    assert service_fault(error) == "/x/***: No space; correct it and run again"


def test_logs_are_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    with about(run="1"):
        try:
            raise ValueError("asked with X-Api-Key: hunter2")
        except ValueError:
            logging.getLogger("yarn_ops.x").exception("password=%s of %d", "hunter2", 3)
        logging.getLogger("elsewhere").warning("100% token=hunter2")
    assert "run=1 password=*** of 3" in caplog.text and "100% token=***" in caplog.text
    assert "ValueError: asked with X-Api-Key: ***" in caplog.text and "hunter2" not in caplog.text


def test_a_long_text_takes_no_longer_by_the_letter() -> None:
    """50 kB of what could begin a secret."""
    for part in ("password=", "https://a", "'token': ", "%40\\\\", '{"key": ["', "Bearer "):
        started = time.perf_counter()
        without_secrets(part * (50_000 // len(part)))
        took = time.perf_counter() - started
        assert took < 3, part
