"""Doctor tells of every dependency whether it is there and right, and what to do where it is not."""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from yarn_ops.cli.doctor import Finding, examine
from yarn_ops.records import Corpus, Tree
from yarn_ops.registry import upgrade
from yarn_ops.registry.database import sqlite_damage
from yarn_ops.services import open_run_registry
from yarn_ops.settings import read_settings
from yarn_ops.store import open_store, store_options

NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("machine") / "state"


@pytest.fixture
def state(machine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One for all tests here: MLflow takes seconds to make its database."""
    monkeypatch.setenv("YARN_OPS_STATE_DIR", str(machine))
    return machine


def finding(name: str) -> Finding:
    return next(found for found in examine(read_settings()) if found.name == name)


def test_a_fresh_machine_is_healthy(yarn_ops: Any, state: Path) -> None:
    answer = yarn_ops("doctor", "--json", YARN_OPS_DEVICE="cpu")
    found = {each["name"]: each for each in json.loads(answer.out)}
    assert answer.status == 0
    assert list(found) == [
        "python", "packages", "state directory", "registry", "store", "mlflow", "prefect", "workers",
        "cluster", "device", "notify",
    ]  # fmt: skip
    assert all(each["healthy"] and not each["remedy"] for each in found.values())
    assert found["registry"]["found"] == f"sqlite:///{state}/registry.db, no runs yet"
    assert found["prefect"]["found"] == "our own, started when needed"
    assert list((state / "store").iterdir()) == [state / "store" / ".incoming"]  # the probe is gone


@pytest.mark.parametrize(
    ("name", "settings", "found", "remedy"),
    [
        ("state directory", {"STATE_DIR": "/dev/null/x"}, "/dev/null/x: the state", "set YARN_OPS_STATE_DIR"),
        (
            "registry",
            {"DATABASE_URL": f"postgresql://me:hunter2@{NOBODY[7:]}/r"},
            "://me:***@",
            "check YARN_OPS_DATA",
        ),
        (
            "registry",
            {"DATABASE_URL": "sqlite:////nowhere/r.db"},
            "no such database",
            "run `yarn-ops db upgrade`",
        ),
        ("store", {"STORE_URL": "file:///dev/null/x"}, "a file stands where", "choose another place"),
        (
            "store",
            {"STORE_URL": "s3://b/p", "S3_ENDPOINT_URL": NOBODY, "S3_ACCESS_KEY": "a", "S3_SECRET_KEY": "b"},
            f"{NOBODY} does not answer",
            "is it running, is YARN_OPS_S3_ENDPOINT_URL right?",
        ),
        ("mlflow", {"MLFLOW_URI": NOBODY}, "nothing answers", "start it, or correct YARN_OPS_MLFLOW_URI"),
        (
            "prefect",
            {"PREFECT_API_URL": f"{NOBODY}/api"},
            "nothing answers at",
            "start it, or unset the variable",
        ),
        (
            "workers",
            {"PREFECT_API_URL": f"{NOBODY}/api"},
            "does not tell its work pools",
            "see what is said of prefect",
        ),
        (
            "cluster",
            {"CLUSTER": "tcp://h:1"},
            "share object storage alone",
            "set YARN_OPS_STORE_URL to s3://",
        ),
        ("device", {"DEVICE": "cuda"}, "no CUDA GPU", "set YARN_OPS_DEVICE to auto or cpu"),
    ],
)
def test_what_is_wrong_has_a_remedy(
    name: str,
    settings: dict[str, str],
    found: str,
    remedy: str,
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for variable, value in settings.items():
        monkeypatch.setenv(f"YARN_OPS_{variable}", value)
    bad = finding(name)
    assert not bad.healthy
    assert found in bad.found
    assert remedy in bad.remedy
    assert "hunter2" not in bad.found + bad.remedy


def test_a_missing_and_an_old_package(monkeypatch: pytest.MonkeyPatch, state: Path) -> None:
    needs = ["pytest>=9999", "no-such-package>=1", "ruff; extra == 'test'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: needs)
    bad = finding("packages")
    assert not bad.healthy
    assert "is not >=9999" in bad.found
    assert "no-such-package is missing" in bad.found
    assert bad.remedy == "install yarn-ops again, with the pins of infra/constraints.txt"


def test_one_wrong_thing_does_not_hide_the_others(yarn_ops: Any, state: Path) -> None:
    answer = yarn_ops("doctor", YARN_OPS_MLFLOW_URI=NOBODY, YARN_OPS_DEVICE="cpu", COLUMNS="80")
    assert answer.status == 2
    lines = answer.out.splitlines()
    assert [line[0] for line in lines if line[0] in "✓✗"] == list("✓✓✓✓✓✗✓✓✓✓✓")
    assert "    → start it, or correct YARN_OPS_MLFLOW_URI" in lines


def test_a_store_that_was_moved_is_told_before_a_run_meets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registry and MLflow name what a store holds by its whole address; a link in the old place is enough."""
    old, new = tmp_path / "old", tmp_path / "new"
    monkeypatch.setenv("YARN_OPS_STATE_DIR", str(old))
    settings = read_settings()
    registry, store = open_run_registry(settings), open_store(settings.store, store_options(settings))
    run = registry.begin_run({}, "d" * 64).id
    tree = Tree(uri=store.uri_of("a"), digest="1" * 64, files=1, size_bytes=1)
    lease = registry.claim("k" * 64, stage="documents", run_id=run, holder="me", lease_s=60)
    assert lease is not None
    registry.complete(lease, Corpus(tree=tree, files=1, size_bytes=1))
    registry.note_use(run, "k" * 64, reused=False, seconds=1.0)
    registry.close()
    assert finding("registry").healthy
    old.rename(new)
    monkeypatch.setenv("YARN_OPS_STATE_DIR", str(new))
    bad = finding("registry")
    assert not bad.healthy and "not below the store" in bad.found
    assert bad.remedy.startswith("put the store back in its old place, or leave a link to it there")
    old.symlink_to(new)
    assert finding("registry").healthy


@pytest.mark.parametrize(
    ("name", "file", "remedy"),
    [
        ("registry", "registry.db", "run `yarn-ops db rebuild`"),
        ("mlflow", "mlflow.db", "restore a backup; without one move it away and run the recipes again"),
        ("prefect", "prefect/prefect.db", "stop `yarn-ops up` and move the file away"),
    ],
)
@pytest.mark.parametrize("where", [0.3, 0.5, 0.9])
def test_a_database_that_is_damaged_in_a_part_nobody_reads(
    name: str, file: str, remedy: str, where: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One page of a table that no query of doctor's touches; the file opens, and the tables are listed."""
    monkeypatch.setenv("YARN_OPS_STATE_DIR", str(tmp_path))
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    if name == "registry":
        upgrade(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE filling (id INTEGER PRIMARY KEY, words TEXT)")
        database.execute("CREATE INDEX by_words ON filling (words)")
        database.executemany("INSERT INTO filling (words) VALUES (?)", [(f"{n:0200}",) for n in range(2000)])
    content = bytearray(path.read_bytes())
    begin = int(where * len(content)) // 4096 * 4096
    content[begin : begin + 4096] = b"\xff" * 4096
    path.write_bytes(content)
    bad = finding(name)
    assert not bad.healthy
    assert bad.found.startswith(f"{path}: damaged (")
    assert remedy in bad.remedy and "\n" not in bad.found + bad.remedy


def test_a_look_for_damage_takes_no_longer_than_it_may(tmp_path: Path) -> None:
    path = tmp_path / "large.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE filling (id INTEGER PRIMARY KEY, words TEXT)")
        database.executemany(
            "INSERT INTO filling (words) VALUES (?)", [(f"{n:0900}",) for n in range(20_000)]
        )
    began = time.monotonic()
    assert sqlite_damage(path, timeout_s=0.0) is None
    assert time.monotonic() - began < 2.0
    assert sqlite_damage(path) is None


def test_a_full_disk_is_told_before_a_run_meets_it(monkeypatch: pytest.MonkeyPatch, state: Path) -> None:
    monkeypatch.setattr(sys.modules["yarn_ops.cli.doctor"], "FREE_BYTES", 1 << 60)
    bad = finding("state directory")
    assert bad.found.endswith("GiB free")
    assert bad.remedy == "make room, a run wants 5 GiB at least"
