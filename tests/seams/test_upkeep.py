"""What nobody refers to is found and removed; what is in use, or young, stays. Dead holders lose leases."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from stores import make_tree

from yarn_ops import upkeep
from yarn_ops.records import Report, Tree
from yarn_ops.registry import Registry, leases, this_process
from yarn_ops.registry import upkeep as records
from yarn_ops.release import Tracking
from yarn_ops.settings import Settings
from yarn_ops.store import Store
from yarn_ops.store.ledger import Ledger
from yarn_ops.store.pull import pull_tree
from yarn_ops.store.s3 import S3Store
from yarn_ops.store.trees import fetch_tree, put_tree, put_tree_at, tree_present

NOW = timedelta(seconds=-5)  # S3 counts in whole seconds


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "home").mkdir()
    return Settings(state_dir=tmp_path / "home")


def stored(store: Store, registry: Registry, folder: Path, data: bytes) -> Tree:
    files = make_tree(folder, {"a": data, "below/b": data})
    return put_tree(store, files, owner=Ledger(store, registry.id))


def finish(registry: Registry, run_id: str, key: str, tree: Tree | None) -> None:
    lease = registry.claim(key, stage="report", run_id=run_id, holder="me", lease_s=60)
    assert lease is not None
    registry.complete(lease, Report(tree=tree, parents=(), pictures=()))


def test_an_unreferenced_directory_is_found_and_removed(
    store: Store, registry: Registry, run_id: str, settings: Settings, tmp_path: Path
) -> None:
    used = stored(store, registry, tmp_path / "used", b"1" * 1000)
    lost = stored(store, registry, tmp_path / "lost", b"2" * 2000)
    finish(registry, run_id, "a" * 64, used)
    assert upkeep.find_garbage(settings, store, registry, timedelta(days=1)) == []
    (found,) = upkeep.find_garbage(settings, store, registry, NOW)
    assert (found.kind, found.name) == ("tree", lost.digest)
    assert found.size_bytes >= 4000
    upkeep.remove(store, registry, found)
    assert upkeep.find_garbage(settings, store, registry, NOW) == []
    assert (tree_present(store, used), tree_present(store, lost)) == (True, False)


def test_results_of_units_are_given_up_by_their_age(
    store: Store, registry: Registry, settings: Settings, tmp_path: Path
) -> None:
    put_tree_at(store, make_tree(tmp_path / "unit", {"a": b"3" * 3000}), "units/key")
    assert upkeep.find_garbage(settings, store, registry, timedelta(days=1)) == []
    (found,) = upkeep.find_garbage(settings, store, registry, NOW)
    assert (found.kind, found.name) == ("unit", "key") and found.size_bytes > 3000
    upkeep.remove(store, registry, found)
    assert [*store.list("units/")] == []


def test_a_broken_off_upload_is_found_and_given_up(
    store: Store, registry: Registry, settings: Settings
) -> None:
    if isinstance(store, S3Store):
        named = {"Bucket": store.bucket, "Key": "below/here/artifacts/x/large"}
        upload = store._client.create_multipart_upload(**named)["UploadId"]
        store._client.upload_part(**named, UploadId=upload, PartNumber=1, Body=b"3" * 3000)
    else:
        incoming = Path(store.url.removeprefix("file://")) / ".incoming"
        incoming.mkdir(parents=True)
        (incoming / "half").write_bytes(b"3" * 3000)
    assert upkeep.find_garbage(settings, store, registry, timedelta(days=1)) == []
    (found,) = upkeep.find_garbage(settings, store, registry, NOW)
    assert (found.kind, found.size_bytes) == ("upload", 3000)
    upkeep.remove(store, registry, found)
    assert upkeep.find_garbage(settings, store, registry, NOW) == []


def test_working_files_of_a_finished_stage_and_of_one_given_up(
    store: Store, registry: Registry, run_id: str, settings: Settings
) -> None:
    for name in ("a" * 16, "b" * 16):
        (settings.home / "work" / name).mkdir(parents=True)
        (settings.home / "work" / name / "checkpoint").write_bytes(b"4" * 40)
    assert upkeep.find_garbage(settings, store, registry, timedelta(days=1)) == []
    found = upkeep.find_garbage(settings, store, registry, NOW)
    assert {(one.kind, one.size_bytes) for one in found} == {("work", 40)}
    for one in found:
        upkeep.remove(store, registry, one)
    assert list((settings.home / "work").iterdir()) == []


def test_cached_files_that_no_directory_links_to(
    store: Store, registry: Registry, settings: Settings, tmp_path: Path
) -> None:
    source = make_tree(tmp_path / "source", {"a": bytes(2 << 20), "b": b"1" * (2 << 20)})
    tree = put_tree(store, source, owner=Ledger(store, registry.id))
    cache = settings.home / "cache"
    pull_tree(store, tree.uri, tmp_path / "to", cache=cache)
    (tmp_path / "to" / "b").unlink()
    assert upkeep.find_garbage(settings, store, registry, timedelta(days=1)) == []
    found = [one for one in upkeep.find_garbage(settings, store, registry, NOW) if one.kind == "cache"]
    assert [one.size_bytes for one in found] == [2 << 20]
    upkeep.remove(store, registry, found[0])
    (kept,) = (cache / "files").iterdir()
    assert kept.samefile(tmp_path / "to" / "a")


def test_fetched_directories_that_no_run_uses(
    store: Store, registry: Registry, settings: Settings, tmp_path: Path
) -> None:
    if not isinstance(store, S3Store):
        pytest.skip("a local store's directories are used where they are")
    source = make_tree(tmp_path / "source", {"a": bytes(2 << 20)})
    tree = put_tree(store, source, owner=Ledger(store, registry.id))
    path = fetch_tree(store, tree, settings.home / "cache")
    os.utime(path, (0, 0))
    assert fetch_tree(store, tree, settings.home / "cache") == path
    assert upkeep.find_garbage(settings, store, registry, timedelta(days=1)) == []
    os.utime(path, (0, 0))
    (found,) = upkeep.find_garbage(settings, store, registry, timedelta(days=1))
    assert upkeep.remove(store, registry, found)
    assert (found.kind, found.folder, path.exists()) == ("cache", path, False)
    (left,) = (one for one in upkeep.find_garbage(settings, store, registry, NOW) if one.kind == "cache")
    assert left.size_bytes == 2 << 20


def test_leases_of_the_dead_and_expired_ones_are_freed(registry: Registry, run_id: str) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    machine = this_process().partition("@")[2]
    holders = {"d" * 64: f"{dead.pid}@{machine}", "e" * 64: this_process(), "f" * 64: "1@elsewhere/0/0"}
    for key, holder in holders.items():
        assert registry.claim(key, stage="train", run_id=run_id, holder=holder, lease_s=60)
    assert registry.claim("9" * 64, stage="merge", run_id=run_id, holder="1@elsewhere/0/0", lease_s=0.01)
    late = registry.claim("8" * 64, stage="merge", run_id=run_id, holder=this_process(), lease_s=0.01)
    assert late is not None
    time.sleep(0.05)
    assert sorted(one.key[0] for one in records.free_leases(registry)) == ["9", "d"]
    assert records.free_leases(registry) == []
    assert registry.holder("e" * 64) == this_process()
    leases.renew(registry.database, late)  # its holder runs: the clock was set, or it stood still
    assert registry.claim("d" * 64, stage="train", run_id=run_id, holder="me", lease_s=60) is not None


def test_a_version_that_its_run_never_recorded_is_not_pulled(
    registry: Registry, run_id: str, tracking: Tracking, tmp_path: Path
) -> None:
    name = f"half-{run_id}"
    mlflow_run = tracking.start_run(name, run_id, {})
    source = f"{tracking.artifact_uri(mlflow_run)}/model"
    tracking.register(name, source, mlflow_run, {"gate": "passed", "run": run_id})
    assert upkeep.half_registered(registry, tracking) == []  # its run goes on
    registry.finish_run(run_id, "failed", "killed")
    assert upkeep.half_registered(registry, tracking) == [(name, 1)]
    assert upkeep.half_registered(registry, tracking) == []
    assert tracking.find(name, include_rejected=True).tags["gate"] == "unfinished"
    tracking.register(name, source, mlflow_run, {"gate": "passed", "run": run_id})  # it goes on after all
    assert tracking.find(name).version == 1


def test_times_are_compared_with_their_zone(store: Store, registry: Registry, settings: Settings) -> None:
    Ledger(store, registry.id).claim("0" * 64)
    store.write("artifacts/" + "0" * 64 + "/file", b"x")
    (found,) = upkeep.find_garbage(settings, store, registry, timedelta(seconds=-5))
    assert abs((datetime.now(UTC) - found.modified).total_seconds()) < 60
