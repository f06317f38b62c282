"""A few lines of script in the pages of a server that is not ours, where its pages get in a person's way."""

from __future__ import annotations

from yarn_ops.guard import Application, Message, Receive, Send
from yarn_ops.heads import Scope

WHOLE = (b"accept-encoding", b"if-none-match", b"if-modified-since", b"range")
"""headers without which a page comes uncompressed and whole"""


class PageScript:
    """An ASGI application in front of another one: a script stands at the end of each of its pages.

    A page's own scripts that are deferred run after it.
    """

    def __init__(self, app: Application, script: str) -> None:
        self._app = app
        self._script = f"<script>{script}</script>".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        heads = [(bytes(name).lower(), bytes(value)) for name, value in scope.get("headers", ())]
        asks_for_page = b"text/html" in dict(heads).get(b"accept", b"")
        if scope["type"] != "http" or scope["method"] != "GET" or not asks_for_page:
            return await self._app(scope, receive, send)
        is_page = False

        async def send_longer(message: Message) -> None:
            nonlocal is_page
            if message["type"] == "http.response.start":
                told = [(bytes(name).lower(), bytes(value)) for name, value in message["headers"]]
                is_page = dict(told).get(b"content-type", b"").startswith(b"text/html")
                message = {**message, "headers": [self._longer(*one) if is_page else one for one in told]}
            elif is_page and not message.get("more_body", False):
                message = {**message, "body": message.get("body", b"") + self._script}
            await send(message)

        kept = [(name, value) for name, value in heads if name not in WHOLE]
        await self._app({**scope, "headers": kept}, receive, send_longer)

    def _longer(self, name: bytes, value: bytes) -> tuple[bytes, bytes]:
        return name, b"%d" % (int(value) + len(self._script)) if name == b"content-length" else value
