"""A PostgreSQL cluster of our own on loopback, from the programs that the system has.

PostgreSQL refuses to run as root: for root it runs as the system's user `postgres`, and its directory has to
be one that this user can enter.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from yarn_ops.atomic import atomic_write
from yarn_ops.errors import SettingsError
from yarn_ops.passwords import write_private
from yarn_ops.stack.part import StackPart

USER = "yarn"
"""the superuser"""
LOOPBACK = "127.0.0.1"
CONNECTIONS = 200
MAINTENANCE = ("postgres", "template1")
HOSTS = f"""\
host all {USER} {LOOPBACK}/32 scram-sha-256
host sameuser all {LOOPBACK}/32 scram-sha-256
"""
"""pg_hba.conf: each user may open the database of its own name, the superuser all"""


def find_programs() -> Path | None:
    """The directory of the newest PostgreSQL's programs, Debian's or the one in PATH; None without one."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if debian:
        return debian[-1].parent
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


def owner() -> pwd.struct_passwd:
    """Whom the server runs as; SettingsError when we are root and the system has no user `postgres`."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        raise SettingsError(
            "PostgreSQL: does not run as root and there is no user postgres; apt-get install postgresql"
        ) from None


class Postgres:
    """The cluster in `directory`, made by the first `prepare`; `durable`: safe from power cuts."""

    def __init__(self, directory: Path, *, port: int, password: str, durable: bool = True) -> None:
        programs = find_programs()
        if programs is None:
            raise SettingsError(
                "PostgreSQL: its programs are not on this machine; apt-get install postgresql"
            )
        self.directory = directory
        self.port = port
        self._programs = programs
        self._password = password
        self._durable = durable
        self._owner = owner()

    def url(self, database: str = "postgres", user: str = USER, password: str | None = None) -> str:
        return f"postgresql://{user}:{password or self._password}@{LOOPBACK}:{self.port}/{database}"

    def prepare(self) -> None:
        """Make the cluster unless it is there, and say who may connect."""
        data = self.directory / "data"
        if not (data / "PG_VERSION").exists():
            self._make(data)
        hosts = data / "pg_hba.conf"
        write_private(hosts, HOSTS)
        self._own(hosts)

    def _make(self, data: Path) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._own(self.directory)
            password_file = self.directory / "password"
            password_file.touch(mode=0o600)
            password_file.write_text(self._password)
            self._own(password_file)
        except OSError as error:
            raise SettingsError(f"{self.directory}: cannot be made ({error.strerror})") from None
        with atomic_write(data) as draft:  # what was left half-made is not taken for a cluster
            self._make_cluster(draft, password_file)

    def _make_cluster(self, draft: Path, password_file: Path) -> None:
        command: list[str | Path] = [
            *(self._programs / "initdb", "--pgdata", draft, "--username", USER),
            *("--auth", "scram-sha-256", "--pwfile", password_file, "--encoding", "UTF8", "--locale", "C"),
            "--no-instructions",
            *([] if self._durable else ["--no-sync"]),
        ]
        who: dict[str, Any] = {} if self._user is None else {"user": self._user, "group": self._owner.pw_gid}
        done = subprocess.run(
            command, capture_output=True, text=True, cwd="/", env=self._environment, check=False, **who
        )
        password_file.unlink()
        if done.returncode:
            last = " ".join(done.stderr.split()[-40:])
            raise SettingsError(f"{self.directory}: no PostgreSQL cluster could be made: {last}")

    def part(self) -> StackPart:
        settings = {
            "listen_addresses": LOOPBACK,
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": CONNECTIONS,
            "fsync": "on" if self._durable else "off",
        }
        command: list[str | Path] = [self._programs / "postgres", "-D", self.directory / "data"]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        return StackPart(
            "postgres",
            command,
            self._environment,
            self.ready,
            user=self._user,
            folder=Path("/"),
            end_by=signal.SIGINT,  # fast: SIGTERM would wait for every client to leave
        )

    def ready(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def ensure_database(self, name: str, password: str) -> str:
        """The URL of database `name`, which its user of the same name owns; both are made when missing."""
        identifier = sql.Identifier(name)
        with psycopg.connect(self.url(), autocommit=True) as connection:
            known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone()
            verb = sql.SQL("ALTER" if known else "CREATE")
            statement = sql.SQL(
                "{} ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD {}"
            )
            connection.execute(statement.format(verb, identifier, sql.Literal(password)))
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(identifier, identifier))
            closed = sql.SQL(", ").join(map(sql.Identifier, (name, *MAINTENANCE)))
            connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(closed))
        return self.url(name, name, password)

    @property
    def _user(self) -> str | None:
        """To change to; None when we are the owner already."""
        return self._owner.pw_name if os.geteuid() == 0 else None

    @property
    def _environment(self) -> dict[str, str]:
        return {"PATH": os.defpath, "HOME": str(self.directory), "LC_ALL": "C"}

    def _own(self, path: Path) -> None:
        if self._user is not None:
            os.chown(path, self._owner.pw_uid, self._owner.pw_gid, follow_symlinks=False)
