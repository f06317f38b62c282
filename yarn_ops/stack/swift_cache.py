"""What a proxy server of Swift remembers of accounts and containers, in place of memcached.

Without any cache every request for an object asks for its account and its container first. Each process of
the proxy remembers for itself: an account or a container that was found is known for as long as Swift says (a
minute), so one that another process deletes is gone for all only then. One that was not found is not
remembered.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

MOST_ENTRIES = 4096


class Remembered:
    """The part of swift.common.memcached.MemcacheRing that the pipeline of swift.py uses."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: dict[str, tuple[float, str]] = {}

    def get(self, key: str, raise_on_error: bool = False) -> Any:
        """A copy of the value, None when there is none (any more)."""
        until, value = self._entries.get(key, (0.0, ""))
        if value and self._clock() < until:
            return json.loads(value)
        self.delete(key)
        return None

    def set(self, key: str, value: Any, serialize: bool = True, time: float = 0, **_more: Any) -> None:
        """Remember `value` for `time` seconds, unless it says that something was not found."""
        if isinstance(value, dict) and int(value.get("status", 200)) // 100 != 2:
            return
        if len(self._entries) >= MOST_ENTRIES:
            self._entries.clear()
        self._entries[key] = (self._clock() + time, json.dumps(value))

    def delete(self, key: str, server_key: str | None = None) -> None:
        self._entries.pop(key, None)


def filter_factory(_global_conf: dict[str, str], **_local_conf: str) -> Callable[[Application], Application]:
    """For Paste Deploy: `paste.filter_factory = yarn_ops.stack.swift_cache:filter_factory`."""

    def remembering(app: Application) -> Application:
        remembered = Remembered()

        def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            environ["swift.cache"] = remembered
            return app(environ, start_response)

        return call

    return remembering
