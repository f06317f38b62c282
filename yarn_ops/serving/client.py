"""Asking a running server: OpenAI's completions, or llama.cpp's own.

Of a probe the least that engines offer is asked for: one token, greedily, and the log-probabilities of the
likeliest tokens there (20, else 5, else none). No engine needs an option for it. Of a text that is measured,
a greedy continuation, and a prompt's own log-probabilities (`echo`), which vLLM, SGLang and llama-cpp-python
tell and others do not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr

from yarn_ops.errors import ServingError
from yarn_ops.progress import OnProgress
from yarn_ops.secrecy import without_secrets
from yarn_ops.shown import one_line

CONNECT_S = 10.0
ANSWER_S = 600.0
"""a prompt of the target length on a slow machine"""
MOST_BYTES, BYTES_OF_TOKEN = 4 << 20, 1 << 10
"""of an answer, and more for each token of a prompt whose log-probabilities it tells"""
WAITS, MOST_WAIT_S = 5, 60.0
"""how often, and how long at most, a server is waited for that says when to ask again"""
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


@dataclass(frozen=True)
class Completion:
    """What a server wrote after a prompt."""

    text: str
    ended: bool
    """by the model, before as many tokens as were asked for"""
    prompt_tokens: int | None


Prompt = str | list[int]
"""a text, or token ids where a server takes them"""


class InferenceServer:
    """A running inference server. Every method raises ServingError, in one line, where it cannot be asked."""

    def __init__(self, url: str, key: SecretStr | None, served: str | None) -> None:
        try:
            address = urlsplit(url)
            readable = address.scheme in ("http", "https") and address.hostname and address.port != 0
        except ValueError:  # half an IPv6 address, a port beyond 65535
            readable = False
        if not readable:
            raise ServingError(f"{without_secrets(url)}: write http://host:port or https://host:port")
        if address.username or address.password:
            raise ServingError(
                f"{without_secrets(url)}: holds a user or a password; set YARN_OPS_SERVER_KEY instead"
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

    def write(self, prompt: Prompt, tokens: int) -> Completion | str:
        """A greedy continuation of so many tokens at most; or why the server refuses the prompt."""
        status, answer = self._complete(lambda: self._request(prompt, tokens))
        if status != 200:
            return f"{status}{_complaint(answer)}"
        return self._understood(answer, self._written)

    def prompt_logprobs(self, prompt: Prompt) -> list[tuple[float, float]] | None:
        """(its log-probability, that of the likeliest there) of each token of a prompt, NaN where there is
        none, and perhaps of the next; None where the server does not tell them. ServingError: it refuses."""
        most = MOST_BYTES + BYTES_OF_TOKEN * len(prompt)
        status, answer = self._complete(lambda: self._request(prompt, 1, 1, echo=True), most)
        if status == 200:
            return None if self._own_form else self._understood(answer, _echoed)
        complaint = _complaint(answer)
        if any(word in complaint for word in ("logprobs", "logits", "echo")):
            return None
        raise ServingError(f"{self.url}: refuses a text of {len(prompt):,}, it says {status}{complaint}")

    def _reply(self, prompt: str) -> NextToken:
        while True:
            status, answer = self._complete(lambda: self._request(prompt, 1, self._asked[0]))
            if status == 200:
                reply = self._understood(answer, self._read)
                if reply.logprobs is None and self._asked[0] is not None:
                    self._asked = [None]  # it takes the question and does not answer it
                return reply
            complaint = _complaint(answer)
            if len(self._asked) > 1 and "logprobs" in complaint:
                self._asked.pop(0)
                continue
            return NextToken(refused=f"{status}{complaint}")

    def _complete(
        self, request: Callable[[], tuple[str, dict[str, Any]]], most: int = MOST_BYTES
    ) -> tuple[int, Any]:
        """Status and answer, in the form that the server speaks. ServingError where no prompt is at fault."""
        status, answer = self._send("POST", *request(), most=most)
        if status in (404, 405, 501) and not self._own_form:
            self._own_form = True
            first = answer
            status, answer = self._send("POST", *request(), most=most)
            if status == 404:  # neither form: it has no such model, or is no inference server
                answer = first
        if status in (401, 403):
            raise ServingError(
                f"{self.url}: refuses the key ({status}); set YARN_OPS_SERVER_KEY to the server's own"
            )
        if status in (404, 429):
            remedy = "ask it again when it is ready" if status == 429 else "correct the address or --served"
            raise ServingError(f"{self.url}: answers {status}{_complaint(answer)}; {remedy}")
        return status, answer

    def _request(
        self, prompt: Prompt, tokens: int, logprobs: int | None = None, *, echo: bool = False
    ) -> tuple[str, dict[str, Any]]:
        if self._own_form:  # llama.cpp's
            return "/completion", {
                "prompt": prompt,
                "n_predict": tokens,
                "temperature": 0.0,
                "n_probs": logprobs or 0,
            }
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": tokens, "temperature": 0.0}
        if self._served is not None:
            body["model"] = self._served
        if logprobs is not None:
            body["logprobs"] = logprobs
        if echo:
            body["echo"] = True
        return "/v1/completions", body

    def _understood(self, answer: Any, read: Callable[[Any], Any]) -> Any:
        try:
            return read(answer)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            found = one_line(json.dumps(answer))[:WORDS]
            raise ServingError(
                f"{self.url}: answers, but not as OpenAI's completions do ({found}); "
                "name the address of an inference server"
            ) from None

    def _read(self, answer: Any) -> NextToken:
        written = self._written(answer)
        if self._own_form:
            told = _content(answer.get("completion_probabilities"))
        else:
            logprobs = answer["choices"][0].get("logprobs") or {}
            content = logprobs.get("content")
            told = _content(content) if content else _legacy(logprobs.get("top_logprobs"))
        return NextToken(written.text, told, written.prompt_tokens)

    def _written(self, answer: Any) -> Completion:
        if self._own_form:
            ended = answer.get("stop_type") == "eos" or answer.get("stopped_eos") is True
            return Completion(_text(answer["content"]), ended, _count(answer.get("tokens_evaluated")))
        choice = answer["choices"][0]
        usage = answer.get("usage") or {}
        ended = choice.get("finish_reason") == "stop"
        return Completion(_text(choice["text"]), ended, _count(usage.get("prompt_tokens")))

    def _send(self, method: str, path: str, body: Any = None, *, most: int = MOST_BYTES) -> tuple[int, Any]:
        """Status, and the JSON value or text of the answer. A broken connection is tried once more, a server
        that says when to ask again is asked then."""
        waits = WAITS
        while True:
            status, data, wait_s = self._try_twice(method, path, body, most)
            if status not in (429, 503) or wait_s is None or not waits:
                break
            waits -= 1
            time.sleep(wait_s)
        if 300 <= status < 400:
            raise ServingError(f"{self.url}: sends elsewhere ({status}); name that address itself")
        try:
            return status, json.loads(data)
        except (ValueError, RecursionError):
            if status == 200:
                raise ServingError(f"{self.url}: answers without JSON; name an inference server") from None
            return status, data.decode("utf-8", "replace")

    def _try_twice(self, method: str, path: str, body: Any, most: int) -> tuple[int, bytes, float | None]:
        for tries_left in (1, 0):
            try:
                return self._exchange(method, path, body, most)
            except httpx.TimeoutException:
                raise ServingError(f"{self.url}: does not answer in time; see its log") from None
            except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
                if tries_left and not isinstance(error, httpx.ConnectError):
                    continue
                told = str(error) or type(error).__name__
                raise ServingError(f"{self.url}: cannot be asked ({told}); start it, or correct it") from None
        raise AssertionError("the second try returns or raises")

    def _exchange(self, method: str, path: str, body: Any, most: int) -> tuple[int, bytes, float | None]:
        """Status, answer, and for how many seconds the server wants to be left alone, if it says."""
        with self._client.stream(method, self.url + path, json=body) as response:
            data = bytearray()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > most:
                    raise ServingError(f"{self.url}: answers with more than {most:,} bytes; no such server")
            told = response.headers.get("Retry-After", "")
            wait_s = min(float(told), MOST_WAIT_S) if told.isdecimal() else None
            return response.status_code, bytes(data), wait_s


def _complaint(answer: Any) -> str:
    """A server's own words, in brackets; empty without any."""
    for key in ("error", "detail", "message"):
        if isinstance(answer, dict) and key in answer:
            return _complaint(answer[key])
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return f" ({one_line(text)[:WORDS]})" if text else ""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _echoed(answer: Any) -> list[tuple[float, float]] | None:
    """Of a prompt and what follows it; None where only what follows is told."""
    logprobs = answer["choices"][0].get("logprobs") or {}
    told = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not told or len(told) < 2:
        return None
    tops = logprobs.get("top_logprobs") or [None] * len(told)
    return [
        (math.nan if value is None else float(value), max(map(float, (top or {"": 0.0}).values())))
        for value, top in zip(told, tops, strict=True)
    ]


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
