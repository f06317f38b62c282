"""A real PostgreSQL of our own: a new cluster on a free port of loopback, gone at the end.

    with PostgresCluster(find_postgres()) as postgres:
        url = postgres.create_database()

PostgreSQL refuses to run as root: started by root, it runs as the system's user `postgres`.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

USER = "yarn"
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
PR_SET_PDEATHSIG = 1


def find_postgres() -> Path | None:
    """The directory of the newest PostgreSQL's programs, Debian's or the one in PATH; None without one."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if debian:
        return debian[-1].parent
    found = shutil.which("initdb")
    return Path(found).parent if found else None


class PostgresCluster:
    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._owner = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        self.password = secrets.token_hex(8)
        self.port = _free_port()

    def __enter__(self) -> PostgresCluster:
        # Not below pytest's temporary directory: that is closed to other users.
        self._directory = Path(tempfile.mkdtemp(prefix="postgres-"))
        try:
            os.chown(self._directory, self._owner.pw_uid, self._owner.pw_gid)
            self._initialise()
            self._start()
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGQUIT)  # immediate shutdown: its files go anyway
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def url(self, database: str = "postgres", password: str | None = None) -> str:
        return f"postgresql://{USER}:{password or self.password}@127.0.0.1:{self.port}/{database}"

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

    def _initialise(self) -> None:
        password_file = self._directory / "password"
        password_file.write_text(self.password)
        os.chown(password_file, self._owner.pw_uid, self._owner.pw_gid)
        command = [
            *(self._programs / "initdb", "--pgdata", self._directory / "data", "--username", USER),
            *("--auth", "scram-sha-256", "--pwfile", password_file, "--encoding", "UTF8", "--locale", "C"),
            *("--no-sync", "--no-instructions"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, **self._as_owner())
        if done.returncode:
            raise RuntimeError(f"initdb failed: {done.stderr}")

    def _start(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self._directory,
            "fsync": "off",
            "max_connections": 60,
        }
        command: list[Any] = [self._programs / "postgres", "-D", self._directory / "data"]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        self._log = self._directory / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, preexec_fn=_die_with_parent, **self._as_owner()
            )
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=2).close()
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self._process.kill()
                    raise RuntimeError(f"PostgreSQL did not start: {self._log.read_text()}") from error
                time.sleep(0.05)

    def _as_owner(self) -> dict[str, Any]:
        who = {"user": self._owner.pw_uid, "group": self._owner.pw_gid} if os.geteuid() == 0 else {}
        return {**who, "cwd": self._directory, "env": {"PATH": os.defpath, "HOME": str(self._directory)}}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresCluster]:
    programs = find_postgres()
    if programs is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    with PostgresCluster(programs) as cluster:
        yield cluster
