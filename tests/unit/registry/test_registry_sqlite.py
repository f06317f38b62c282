"""What only SQLite can do wrong: files that are missing, damaged, locked, read-only or no database."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from yarn_ops.errors import RegistryError
from yarn_ops.registry import database, open_registry, upgrade


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


def failure(use: object, url: str) -> str:
    with pytest.raises(RegistryError) as raised:
        use(url)  # type: ignore[operator]
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_missing_file_is_told_and_not_made(path: Path) -> None:
    assert failure(open_registry, f"sqlite:///{path}").endswith("no such database; run `yarn-ops db upgrade`")
    assert not path.exists()


def test_upgrade_makes_the_directories(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "registry.db"
    upgrade(f"sqlite:///{path}")
    assert path.is_file()


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "its directory cannot be made" in failure(
        upgrade, f"sqlite:///{tmp_path / 'file' / 'registry.db'}"
    )


@pytest.mark.parametrize("use", [open_registry, upgrade])
def test_another_file_is_told(path: Path, use: object) -> None:
    path.write_text("# Not a database, but a text of more than a hundred bytes\n" * 100)
    told = failure(use, f"sqlite:///{path}")
    assert "file is not a database; the file is damaged, then run `yarn-ops db rebuild`" in told
    assert told.endswith("or something else, then set YARN_OPS_DATABASE_URL")
    assert path.read_text().startswith("# Not a database")


def test_a_damaged_database_is_told(path: Path) -> None:
    upgrade(f"sqlite:///{path}")
    content = bytearray(path.read_bytes())
    content[4096 : 4096 * 3] = b"\xff" * 4096 * 2
    path.write_bytes(content)
    assert "malformed; the file is damaged; run `yarn-ops db rebuild`" in failure(
        lambda url: open_registry(url).runs(), f"sqlite:///{path}"
    )


def test_a_locked_database_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    upgrade(f"sqlite:///{path}")
    registry = open_registry(f"sqlite:///{path}")
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert "database is locked; another process writes" in failure(
        lambda _: registry.begin_run({}, "d" * 64), ""
    )
    writer.rollback()
    registry.begin_run({}, "d" * 64)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "cannot be read; write sqlite:///file or postgresql://…"),
        ("nonsense", "cannot be read; write sqlite:///file or postgresql://…"),
        ("sqlite://", "not supported"),
        ("sqlite:///:memory:", "not supported"),
        ("mysql://me:hunter2@host/db", "mysql://me:***@host/db: not supported"),
        ("postgresql://me:hunter2@127.0.0.1:1/db", "Connection refused; start the server"),
        ("postgresql://me:hunter2@localhost:1/db", "Connection refused"),
        ("postgresql://me:hunter2@127.0.0.1:port/db", "cannot be read"),
    ],
)
@pytest.mark.parametrize("use", [open_registry, upgrade])
def test_unusable_urls_are_told_without_the_password(use: object, url: str, message: str) -> None:
    text = failure(use, url)
    assert message in text
    assert "hunter2" not in text


def test_the_file_is_in_write_ahead_mode(path: Path) -> None:
    upgrade(f"sqlite:///{path}")
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_foreign_keys_hold(path: Path) -> None:
    upgrade(f"sqlite:///{path}")
    registry = open_registry(f"sqlite:///{path}")
    with pytest.raises(RegistryError, match="FOREIGN KEY"):
        registry.note_use("no run", "no stage", reused=False, seconds=0.0)


def test_migrations_run_from_any_directory_and_say_nothing(tmp_path: Path, path: Path) -> None:
    program = (
        "import logging, sys; logging.basicConfig(level=logging.WARNING); "
        "from yarn_ops.registry import upgrade; upgrade(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, f"sqlite:///{path}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
