"""Files that several pulled directories hold: fetched once, verified each time, linked where possible."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from stores import Counting, make_tree

from yarn_ops.records import Tree
from yarn_ops.store import Store
from yarn_ops.store.pull import pull_tree
from yarn_ops.store.trees import fetch_tree, put_tree

MIB = 1 << 20
WEIGHTS = {f"model-{number}.safetensors": os.urandom(2 * MIB) for number in range(3)}
CHANGED = "model-2.safetensors"


@pytest.fixture
def versions(s3: Store, tmp_path: Path) -> tuple[Tree, Tree]:
    """Two that differ in one file of weights and in their config."""
    first = make_tree(tmp_path / "source", {**WEIGHTS, "config.json": b"{}"})
    second = {CHANGED: os.urandom(2 * MIB), "config.json": b"[]"}
    return put_tree(s3, first), put_tree(s3, make_tree(first, second))


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A directory on another file system."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def test_two_versions_share_files_by_hard_link(
    s3: Store, versions: tuple[Tree, Tree], tmp_path: Path
) -> None:
    first, second = versions
    pull_tree(s3, first.uri, tmp_path / "1", cache=tmp_path / "cache")
    counting = Counting(s3)
    pull_tree(counting, second.uri, tmp_path / "2", cache=tmp_path / "cache")
    assert counting.fetched_bytes == {
        f"artifacts/{second.digest}/{CHANGED}": 2 * MIB,
        f"artifacts/{second.digest}/config.json": 2,
    }
    shared = {name for name in WEIGHTS if (tmp_path / "1" / name).samefile(tmp_path / "2" / name)}
    assert shared == set(WEIGHTS) - {CHANGED}
    (tmp_path / "1" / "config.json").write_bytes(b'{"mine": 1}')
    pull_tree(s3, first.uri, tmp_path / "3", cache=tmp_path / "cache")
    assert (tmp_path / "3" / "config.json").read_bytes() == b"{}"


def test_a_stage_uses_what_was_pulled(s3: Store, versions: tuple[Tree, Tree], tmp_path: Path) -> None:
    first, second = versions
    pull_tree(s3, first.uri, tmp_path / "1", cache=tmp_path / "cache")
    fetched = fetch_tree(s3, second, tmp_path / "cache")
    assert (fetched / "model-0.safetensors").samefile(tmp_path / "1" / "model-0.safetensors")


def test_a_cache_on_another_file_system_is_copied_from(
    s3: Store, versions: tuple[Tree, Tree], tmp_path: Path, elsewhere: Path
) -> None:
    first, _ = versions
    pull_tree(s3, first.uri, tmp_path / "1", cache=elsewhere)
    counting = Counting(s3)
    pull_tree(counting, first.uri, tmp_path / "2", cache=elsewhere)
    assert counting.fetched_bytes == {}
    for name, data in WEIGHTS.items():
        path = tmp_path / "2" / name
        assert (path.read_bytes(), path.stat().st_nlink) == (data, 1)
        path.write_bytes(b"mine")
    pull_tree(s3, first.uri, tmp_path / "3", cache=elsewhere)
    assert {name: (tmp_path / "3" / name).read_bytes() for name in WEIGHTS} == WEIGHTS


def test_a_cached_file_that_was_changed_is_fetched_again(
    s3: Store, versions: tuple[Tree, Tree], tmp_path: Path
) -> None:
    first, _ = versions
    pull_tree(s3, first.uri, tmp_path / "1", cache=tmp_path / "cache")
    changed = tmp_path / "1" / CHANGED
    changed.chmod(0o644)
    with changed.open("r+b") as file:
        file.seek(MIB)
        file.write(bytes([WEIGHTS[CHANGED][MIB] ^ 1]))
    counting = Counting(s3)
    pull_tree(counting, first.uri, tmp_path / "2", cache=tmp_path / "cache")
    assert counting.fetched_bytes == {f"artifacts/{first.digest}/{CHANGED}": 2 * MIB}
    assert {name: (tmp_path / "2" / name).read_bytes() for name in WEIGHTS} == WEIGHTS


def test_pulls_to_several_places_at_once_fetch_a_file_once(
    s3: Store, versions: tuple[Tree, Tree], tmp_path: Path
) -> None:
    counting = Counting(s3)
    pulled = [(tree, tmp_path / f"{number}") for number, tree in enumerate(versions * 2)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: pull_tree(counting, one[0].uri, one[1], cache=tmp_path / "cache"), pulled))
    assert sum(counting.fetched_bytes.values()) == 4 * 2 * MIB + 2 + 2
    assert len({(path / "model-0.safetensors").stat().st_ino for _, path in pulled}) == 1
    kept = {path.name for path in (tmp_path / "cache" / "files").iterdir()}
    assert len(kept) == 6 and not any(name.startswith(".") for name in kept)
