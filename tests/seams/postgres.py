"""A real PostgreSQL for tests: the stack's own, in a new cluster on a free port, gone at the end.

with PostgresCluster() as postgres:
    url = postgres.create_database()
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from yarn_ops.servers import free_port
from yarn_ops.stack.part import RunningPart
from yarn_ops.stack.postgres import Postgres, find_programs


class PostgresCluster(Postgres):
    def __init__(self) -> None:
        # Not below pytest's temporary directory: that is closed to other users.
        folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        super().__init__(folder, port=free_port(), password=secrets.token_hex(8), durable=False)
        self._running = ExitStack()

    def __enter__(self) -> PostgresCluster:
        self._running.callback(shutil.rmtree, self.directory, ignore_errors=True)
        with ExitStack() as undo:
            undo.push(self._running)
            self.prepare()
            server = RunningPart.start(self.part(), self.directory / "logs")
            self._running.callback(server.stop)
            server.wait()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def create_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{secrets.token_hex(6)}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]
        return self.url(name)

    def empty(self, database: str) -> None:
        """Drop everything in a database: quicker than another one."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresCluster]:
    if find_programs() is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    with PostgresCluster() as cluster:
        yield cluster
