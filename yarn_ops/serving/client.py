"""Asking a running server what it says next after each probe: OpenAI's completions, or llama.cpp's own.

The least that engines offer is asked for: one token, greedily, and the log-probabilities of the likeliest
tokens there (20, else 5, else none). No engine needs an option for it; a prompt's own log-probabilities
(`echo`, `prompt_logprobs`) are told by few.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr

from yarn_ops.errors import ServingError
from yarn_ops.progress import OnProgress
from yarn_ops.shown import without_password

CONNECT_S = 10.0
ANSWER_S = 600.0
"""a prompt of the target length on a slow machine"""
MOST_BYTES = 4 << 20
WORDS = 160
"""letters of a server's own complaint that are repeated"""
ASKED = (20, 5, None)
"""log-probabilities that are asked for, one after the other until a server tells them"""


@dataclass(frozen=True)
class NextToken:
    """What a server said of one probe."""

    token: str = ""
    """its likeliest next token"""
    logprobs: Mapping[str, float] | None = None
    """{text of a token: log-probability} of the likeliest; None: not told"""
    prompt_tokens: int | None = None
    refused: str | None = None
    """why it did not answer this prompt"""


class InferenceServer:
    """A running inference server. Every method raises ServingError, in one line, where it cannot be asked."""

    def __init__(self, url: str, key: SecretStr | None, served: str | None) -> None:
        try:
            address = urlsplit(url)
            readable = address.scheme in ("http", "https") and address.hostname and address.port != 0
        except ValueError:  # half an IPv6 address, a port beyond 65535
            readable = False
        if not readable:
            raise ServingError(f"{without_password(url)}: write http://host:port or https://host:port")
        if address.username or address.password:
            raise ServingError(
                f"{without_password(url)}: holds a user or a password; set YARN_OPS_SERVER_KEY instead"
            )
        path = address.path.rstrip("/").removesuffix("/completions").removesuffix("/v1")
        self.url = f"{address.scheme}://{address.netloc}{path}"
        headers = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
        try:
            self._client = httpx.Client(
                headers=headers,
                timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
                verify=address.scheme == "https",
            )
        except (UnicodeError, ValueError):
            raise ServingError(
                "YARN_OPS_SERVER_KEY: holds letters that no header carries; correct it"
            ) from None
        self._served = served
        self._asked = list(ASKED)
        self._own_form = False
        self.context_tokens: int | None = None
        """that the server says it takes; None: it does not say"""

    def __enter__(self) -> InferenceServer:
        self._find_model()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, prompts: Sequence[str], report: OnProgress) -> list[NextToken]:
        """The reply to each prompt, one after the other: an engine keeps what a longer one begins with."""
        replies = []
        for number, prompt in enumerate(prompts):
            report(number, len(prompts), f"{len(prompt):,} letters")
            replies.append(self._reply(prompt))
        report(len(prompts), len(prompts), "")
        return replies

    def _find_model(self) -> None:
        status, answer = self._send("GET", "/v1/models")
        listed = answer.get("data") if status == 200 and isinstance(answer, dict) else None
        models = {
            str(one["id"]): one
            for one in listed or ()
            if isinstance(one, dict) and isinstance(one.get("id"), str)
        }
        if self._served is None:
            if len(models) > 1:
                raise ServingError(
                    f"{self.url}: serves {', '.join(list(models)[:8])}; say which with --served"
                )
            self._served = next(iter(models), None)
        model = models.get(self._served or "", {})
        meta = model.get("meta")
        for value in (model.get("max_model_len"), meta.get("n_ctx") if isinstance(meta, dict) else None):
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                self.context_tokens = value

    def _reply(self, prompt: str) -> NextToken:
        while True:
            status, answer = self._send("POST", *self._request(prompt))
            if status == 200:
                reply = self._read(answer)
                if reply.logprobs is None and self._asked[0] is not None:
                    self._asked = [None]  # it takes the question and does not answer it
                return reply
            if status in (404, 405, 501) and not self._own_form:
                self._own_form = True
                continue
            complaint = _complaint(answer)
            if status in (401, 403):
                raise ServingError(
                    f"{self.url}: refuses the key ({status}); set YARN_OPS_SERVER_KEY to the server's own"
                )
            if status == 429 or status == 404:
                raise ServingError(f"{self.url}: answers {status}{complaint}; ask it again when it is ready")
            if len(self._asked) > 1 and "logprobs" in complaint:
                self._asked.pop(0)
                continue
            return NextToken(refused=f"{status}{complaint}")

    def _request(self, prompt: str) -> tuple[str, dict[str, Any]]:
        count = self._asked[0]
        if self._own_form:  # llama.cpp's
            return "/completion", {
                "prompt": prompt,
                "n_predict": 1,
                "temperature": 0.0,
                "n_probs": count or 0,
            }
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": 1, "temperature": 0.0}
        if self._served is not None:
            body["model"] = self._served
        if count is not None:
            body["logprobs"] = count
        return "/v1/completions", body

    def _read(self, answer: Any) -> NextToken:
        try:
            if self._own_form:
                told, usage = answer.get("completion_probabilities"), answer.get("tokens_evaluated")
                return NextToken(_text(answer["content"]), _content(told), _count(usage))
            choice = answer["choices"][0]
            usage = answer.get("usage") or {}
            logprobs = choice.get("logprobs") or {}
            content = logprobs.get("content")
            told = _content(content) if content else _legacy(logprobs.get("top_logprobs"))
            return NextToken(_text(choice["text"]), told, _count(usage.get("prompt_tokens")))
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            raise ServingError(
                f"{self.url}: answers, but not as OpenAI's completions do ({json.dumps(answer)[:WORDS]}); "
                "name the address of an inference server"
            ) from None

    def _send(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status, and the JSON value or text of the answer. A broken connection is tried once more."""
        for tries_left in (1, 0):
            try:
                status, data = self._exchange(method, path, body)
                break
            except httpx.TimeoutException:
                raise ServingError(f"{self.url}: does not answer in time; see its log") from None
            except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
                if tries_left and not isinstance(error, httpx.ConnectError):
                    continue
                told = str(error) or type(error).__name__
                raise ServingError(f"{self.url}: cannot be asked ({told}); start it, or correct it") from None
        if 300 <= status < 400:
            raise ServingError(f"{self.url}: sends elsewhere ({status}); name that address itself")
        try:
            return status, json.loads(data)
        except (ValueError, RecursionError):
            if status == 200:
                raise ServingError(f"{self.url}: answers without JSON; name an inference server") from None
            return status, data.decode("utf-8", "replace")

    def _exchange(self, method: str, path: str, body: Any) -> tuple[int, bytes]:
        with self._client.stream(method, self.url + path, json=body) as response:
            data = bytearray()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > MOST_BYTES:
                    raise ServingError(
                        f"{self.url}: answers with more than {MOST_BYTES:,} bytes; no such server"
                    )
            return response.status_code, bytes(data)


def _complaint(answer: Any) -> str:
    """A server's own words, in brackets; empty without any."""
    for key in ("error", "detail", "message"):
        if isinstance(answer, dict) and key in answer:
            return _complaint(answer[key])
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return f" ({' '.join(text.split())[:WORDS]})" if text else ""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _finite(pairs: Mapping[Any, Any]) -> dict[str, float] | None:
    """The log-probabilities by the token's text; −infinity is left out. ValueError: an impossible one."""
    found: dict[str, float] = {}
    for token, value in pairs.items():
        number = float(value)
        if math.isnan(number) or number > 1e-3:
            raise ValueError
        if number > -math.inf:
            found[_text(token)] = min(number, 0.0)
    return found or None


def _legacy(tops: Any) -> dict[str, float] | None:
    """Of OpenAI's first form: [{token: log-probability}]."""
    return _finite(tops[0]) if tops and tops[0] else None


def _content(content: Any) -> dict[str, float] | None:
    """Of its later form, and of llama.cpp: [{top_logprobs: [{token, logprob}]}]."""
    if not content:
        return None
    pairs: dict[str, float] = {}
    for one in content[0]["top_logprobs"]:
        pairs.setdefault(one["token"], one["logprob"])
    return _finite(pairs)
