"""A real HTTP proxy on loopback that breaks a share of the requests it passes on, by a fixed seed."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

LOOPBACK = "127.0.0.1"
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "te", "trailer", "upgrade"}
LARGEST_BODY_BYTES = 1 << 30
SLOW_S = 2.0

Fault = Callable[["Passage"], Awaitable[web.StreamResponse]]
"""what becomes of a request instead of its being passed on"""
Chooser = Callable[[web.Request, random.Random], Fault | None]
"""which fault meets a request; None: it is passed on"""


class Passage:
    """One request on its way to the server."""

    def __init__(
        self, request: web.Request, upstream: URL, session: aiohttp.ClientSession, host: bool
    ) -> None:
        self.request = request
        self._url = upstream.join(URL(request.raw_path, encoded=True))
        self._session = session
        self._keep_host = host

    async def pass_on(self) -> web.StreamResponse:
        """The server's whole answer."""
        status, headers, body = await self._ask()
        return await self._answer(status, headers, body, len(body))

    async def refuse(self, status: int, *, afterwards: bool) -> web.StreamResponse:
        if afterwards:
            await self._ask()
        return web.Response(status=status, text="the proxy says so")

    async def dawdle(self) -> web.StreamResponse:
        await asyncio.sleep(SLOW_S)
        return await self.pass_on()

    async def cut(self) -> web.StreamResponse:
        """The connection ends in the middle of the answer's body; where there is none, before the answer."""
        status, headers, body = await self._ask()
        response = web.Response(status=status)
        if body:
            response = await self._answer(status, headers, body, len(body) // 2)
            await asyncio.sleep(0.05)  # so that what was written is on its way
        assert self.request.transport is not None
        self.request.transport.abort()
        return response

    async def _ask(self) -> tuple[int, Any, bytes]:
        dropped = HOP_BY_HOP if self._keep_host else HOP_BY_HOP | {"host"}
        headers = [
            (name, value) for name, value in self.request.headers.items() if name.lower() not in dropped
        ]
        async with self._session.request(
            self.request.method,
            self._url,
            headers=headers,
            data=await self.request.read() or None,
            allow_redirects=False,
        ) as answer:
            return answer.status, answer.headers, await answer.read()

    async def _answer(self, status: int, headers: Any, body: bytes, sent: int) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        for name, value in headers.items():
            if name.lower() not in HOP_BY_HOP:
                response.headers.add(name, value)
        if self.request.method != "HEAD" and status not in (204, 304):
            response.content_length = len(body)
        await response.prepare(self.request)
        if self.request.method != "HEAD" and sent:
            await response.write(body[:sent])
        return response


class Proxy:
    """Between a client and the server at `upstream`, in a thread of its own while the block runs.

    `keep_host`: the server is told the proxy's name, as a client that signs its requests needs.
    """

    def __init__(self, upstream: str, choose: Chooser, *, seed: int = 0, keep_host: bool = True) -> None:
        self._upstream = URL(upstream)
        self._choose = choose
        self._random = random.Random(seed)
        self._keep_host = keep_host
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.url = ""
        self.passed = 0
        self.broken = 0

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner = self._loop.run_until_complete(self._start())
        self._loop.run_forever()
        self._loop.run_until_complete(self._stop(runner))
        self._loop.close()

    async def _start(self) -> web.AppRunner:
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=120),
            connector=aiohttp.TCPConnector(limit=0),
        )
        application = web.Application(client_max_size=LARGEST_BODY_BYTES)
        application.router.add_route("*", "/{anything:.*}", self._meet)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, LOOPBACK, 0)
        await site.start()
        port = runner.addresses[0][1]
        self.url = f"http://{LOOPBACK}:{port}"
        self._ready.set()
        return runner

    async def _stop(self, runner: web.AppRunner) -> None:
        await runner.cleanup()
        await self._session.close()

    async def _meet(self, request: web.Request) -> web.StreamResponse:
        passage = Passage(request, self._upstream, self._session, self._keep_host)
        fault = self._choose(request, self._random)
        self.passed += 1
        if fault is None:
            return await passage.pass_on()
        self.broken += 1
        return await fault(passage)


def refusal(status: int, *, afterwards: bool = False) -> Fault:
    """An error of the server; `afterwards`: it has done what was asked all the same."""
    return lambda passage: passage.refuse(status, afterwards=afterwards)


def share(rate: float, *faults: Fault) -> Chooser:
    """Each request meets one of these faults with this probability."""

    def choose(request: web.Request, dice: random.Random) -> Fault | None:
        return dice.choice(faults) if dice.random() < rate else None

    return choose


def first(count: int, path_end: str, fault: Fault) -> Chooser:
    """The first `count` POSTs to this path meet the fault."""
    left = [count]

    def choose(request: web.Request, dice: random.Random) -> Fault | None:
        if request.method != "POST" or not request.path.endswith(path_end) or not left[0]:
            return None
        left[0] -= 1
        return fault

    return choose
