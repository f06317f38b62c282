"""The database behind the registry: opened, checked, migrated; its failures told in one line."""

from __future__ import annotations

import re
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, inspect, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from yarn_ops.digests import canonical_json
from yarn_ops.errors import RegistryError
from yarn_ops.registry.columns import read_json
from yarn_ops.registry.tables import Table as Tables

if TYPE_CHECKING:
    from alembic.config import Config

BUSY_TIMEOUT_S = 15
LOCKED_S = 0.05
"""How long SQLite waits for another writer: well below a third of the default lease."""

CHECK_S = 5.0
"""How long a file may be looked through for damage."""

POSTGRESQL_OPTIONS = {
    "connect_timeout": 10,
    # A dead network must fail a renewal while its lease still lives, not after the kernel's 15 minutes.
    "tcp_user_timeout": 15_000,
    "keepalives_idle": 15,
    "client_encoding": "utf8",  # whatever the database's is
}
VERSIONS = Path(__file__).parent / "migrations" / "versions"
MIGRATION_LOCK = 0x7961726E  # any number of ours: upgrades of one PostgreSQL database take turns


@dataclass(frozen=True)
class Database:
    """An engine and what to call it in an error: its URL without the password."""

    engine: Engine
    name: str

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back by an exception; RegistryError on a failure."""
        with _failures_of(self.name), self._sessions.begin() as session:
            yield session

    @property
    def _sessions(self) -> sessionmaker[Session]:
        return sessionmaker(self.engine, expire_on_commit=False)

    def insert(self, table: type[Tables]) -> Any:
        """INSERT that can say ON CONFLICT, in this database's dialect."""
        rows: Any = table.__table__
        assert isinstance(rows, Table)
        return sqlite.insert(rows) if self.engine.name == "sqlite" else postgresql.insert(rows)

    def close(self) -> None:
        self.engine.dispose()


def open_database(url: str) -> Database:
    """The database of `url`, migrated to this program's revision.

    RegistryError: unreachable, refused, damaged, not migrated, or migrated by a newer program.
    """
    address = _parse(url)
    database = Database(_engine(address), _shown(address))
    if address.get_backend_name() == "sqlite" and not _sqlite_path(address).is_file():
        raise RegistryError(f"{database.name}: no such database; run `yarn-ops db upgrade`")
    with _failures_of(database.name), database.engine.begin() as connection:
        _check_encoding(connection, database.name)
        if not _is_current(connection):
            _refuse_newer(connection, database.name)
            raise RegistryError(f"{database.name}: not migrated; run `yarn-ops db upgrade`")
    return database


def upgrade(url: str) -> None:
    """Create the database's tables or bring them to this program's revision; nothing to do is fine.

    RegistryError: unreachable, refused, damaged, or migrated by a newer program.
    """
    address = _parse(url)
    name = _shown(address)
    if address.get_backend_name() == "sqlite":
        _make_parent(_sqlite_path(address), name)
    engine = _engine(address)
    try:
        with _failures_of(name), engine.begin() as connection:
            _check_encoding(connection, name)
            if engine.name == "postgresql":
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
            if _is_current(connection):
                return
            from alembic import command

            _refuse_newer(connection, name)
            command.upgrade(migrations(connection), "head")
    finally:
        engine.dispose()


def migrations(connection: Connection) -> Config:
    """Alembic's configuration for the migrations of this package, run on `connection`."""
    from alembic.config import Config

    config = Config(stdout=sys.stdout)  # its default is what that was when Alembic was imported
    config.set_main_option("script_location", "yarn_ops.registry:migrations")
    config.attributes["connection"] = connection
    return config


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite database; None of another kind. RegistryError as `open_database`."""
    address = _parse(url)
    return _sqlite_path(address) if address.get_backend_name() == "sqlite" else None


def sqlite_damage(path: Path, timeout_s: float = CHECK_S) -> str | None:
    """What SQLite's own check of every page and index finds wrong first; None when nothing is, or no file.

    What is not seen within `timeout_s` is not told of.
    """
    if not path.is_file():
        return None
    deadline = time.monotonic() + timeout_s
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            for check in ("quick_check", "integrity_check"):
                found = str(connection.execute(f"PRAGMA {check}(1)").fetchone()[0])
                if found != "ok":
                    return found.splitlines()[-1]
    except sqlite3.DatabaseError as error:
        return str(error) if _DAMAGE.search(str(error)) else None
    return None


def _check_encoding(connection: Connection, name: str) -> None:
    """RegistryError where a PostgreSQL database has not every letter."""
    if connection.engine.name != "postgresql":
        return
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    if encoding not in ("UTF8", "SQL_ASCII"):
        raise RegistryError(f"{name}: the database's encoding is {encoding}; make one with ENCODING 'UTF8'")


def _is_current(connection: Connection) -> bool:
    """Whether it has this program's newest migration, told by the file names: Alembic loads slowly."""
    if not inspect(connection).has_table("alembic_version"):
        return False
    newest = max(path.name.partition("_")[0] for path in VERSIONS.glob("[0-9]*.py"))
    return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == newest


def _refuse_newer(connection: Connection, name: str) -> None:
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    current = MigrationContext.configure(connection).get_current_revision()
    script = ScriptDirectory.from_config(migrations(connection))
    known = {revision.revision for revision in script.walk_revisions()}
    if current is not None and current not in known:
        raise RegistryError(f"{name}: migrated by a newer yarn-ops (revision {current}); update this one")


def _parse(url: str) -> URL:
    try:
        address = make_url(url)
    except (ArgumentError, ValueError):
        raise RegistryError("database URL: cannot be read; write sqlite:///file or postgresql://…") from None
    backend = address.get_backend_name()
    if backend == "postgresql":
        return address.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and address.database and not address.database.startswith((":memory:", "file:")):
        return address
    raise RegistryError(f"{_shown(address)}: not supported; write sqlite:///file or postgresql://…")


def _shown(address: URL) -> str:
    return address.set(query={}).render_as_string(hide_password=True)


def _sqlite_path(address: URL) -> Path:
    assert address.database is not None
    return Path(address.database)


def _make_parent(path: Path, name: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RegistryError(f"{name}: its directory cannot be made ({error.strerror})") from None


def _engine(address: URL) -> Engine:
    json: Any = {"json_serializer": canonical_json, "json_deserializer": read_json}
    if address.get_backend_name() == "postgresql":
        options = {**POSTGRESQL_OPTIONS, **_psycopg_options(address)}
        plain = address.difference_update_query(list(options))
        return create_engine(plain, connect_args=options, pool_pre_ping=True, **json)
    engine = create_engine(address, connect_args={"timeout": BUSY_TIMEOUT_S}, **json)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_immediate)
    return engine


def _psycopg_options(address: URL) -> dict[str, Any]:
    """What an address says to psycopg itself, which takes numbers and truths where an address has texts."""
    options: dict[str, Any] = dict(address.query)
    found = {name: options[name] for name in POSTGRESQL_OPTIONS if name in options}
    found.pop("client_encoding", None)
    if (threshold := options.get("prepare_threshold")) is not None:
        if threshold != "None" and not str(threshold).isdigit():
            raise RegistryError(f"{_shown(address)}: prepare_threshold is no number; write one, or None")
        found["prepare_threshold"] = None if threshold == "None" else int(threshold)
    return found


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.text_factory = lambda data: data.decode("utf-8", "replace")  # damage is seen where it is used
    connection.isolation_level = None  # the driver starts no transaction by itself; `_begin_immediate` does
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:  # of several that make the same new file a write-ahead one, SQLite has none wait
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(LOCKED_S)
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_immediate(connection: Connection) -> None:
    # A transaction that reads first and writes later would fail, not wait, when another one wrote between.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def _failures_of(name: str) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise RegistryError(f"{name}: {_cause(error)}") from None


def _cause(error: SQLAlchemyError) -> str:
    """The driver's own words, which name no password and no bound value, and the remedy where it is known."""
    text = str(getattr(error, "orig", None) or type(error).__name__)
    first_line = text.partition("\n")[0]
    for symptom, remedy in _REMEDIES.items():
        if symptom in text:
            return f"{first_line}; {remedy}"
    # The lines after a failed statement's first quote it and its values.
    return text if isinstance(error, OperationalError) else first_line


_DAMAGE = re.compile("malformed|not a database|corrupt")

_REMEDIES = {
    "disk I/O error": "is the disk full?",
    "disk is full": "free some space and run again",
    "Connection refused": "start the server, or check YARN_OPS_DATABASE_URL",
    "database is locked": "another process writes for long; try again when it has finished",
    "malformed": "the file is damaged; run `yarn-ops db rebuild`, which moves it aside",
    "not a database": "the file is damaged, then run `yarn-ops db rebuild`, which moves it aside; or "
    "something else, then set YARN_OPS_DATABASE_URL",
    "unable to open": "is the directory there and writable?",
    "readonly database": "is the file writable?",
    "password authentication failed": "check the user and password in YARN_OPS_DATABASE_URL",
    "does not exist": "create it first, or set YARN_OPS_DATABASE_URL",
    "could not translate host name": "check the host in YARN_OPS_DATABASE_URL",
    "failed to resolve host": "check the host in YARN_OPS_DATABASE_URL",
}
