"""A script at the end of each page of another server, and nothing else of it changed."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from yarn_ops.page_script import PageScript

PAGE = b"<!doctype html><p>a page</p>"


def server(kind: bytes) -> Any:
    """Answers in two parts with what it is asked for; compressed, were that asked for."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        asked = {name for name, _ in scope["headers"]}
        body = b"compressed" if {b"accept-encoding", b"if-none-match"} & asked else PAGE
        headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body[:5], "more_body": True})
        await send({"type": "http.response.body", "body": body[5:]})

    return answer


@pytest.mark.parametrize(
    ("method", "accept", "kind", "longer"),
    [
        ("GET", "text/html,*/*", b"text/html; charset=utf-8", True),
        ("GET", "text/html,*/*", b"application/json", False),
        ("POST", "text/html", b"text/html", False),
        ("GET", "application/json", b"text/html", False),
    ],
)
def test_a_page_is_longer_by_its_script(method: str, accept: str, kind: bytes, longer: bool) -> None:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(PageScript(server(kind), "begin()"))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.request(method, "/", headers={"accept": accept, "if-none-match": "a"})

    answer = asyncio.run(ask())
    whole = accept.startswith("text/html") and method == "GET"
    body = (PAGE if whole else b"compressed") + (b"<script>begin()</script>" if longer else b"")
    assert answer.content == body
    assert int(answer.headers["content-length"]) == len(body)
