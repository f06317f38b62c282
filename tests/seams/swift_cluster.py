"""A real S3 server for tests: the stack's own Swift, on free ports.

with SwiftCluster(directory) as swift:
    swift.create_bucket("bucket")
    boto3.client("s3", endpoint_url=swift.endpoint_url, ...)
"""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from pathlib import Path

from yarn_ops.servers import free_port
from yarn_ops.stack.part import RunningPart
from yarn_ops.stack.swift import Swift


class SwiftCluster(Swift):
    """Its data outlive `stop()`."""

    def __init__(self, directory: Path, secret_key: str | None = None) -> None:
        super().__init__(directory, port=free_port(), secret_key=secret_key or secrets.token_hex(16))
        self._running = ExitStack()

    def start(self) -> None:
        """Return when the server is ready."""
        self.prepare()
        server = RunningPart.start(self.part(), self.directory)
        self._running.callback(server.stop)
        server.wait()

    def stop(self) -> None:
        """End the server and its workers."""
        self._running.close()

    def __enter__(self) -> SwiftCluster:
        self.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()
