"""A stored directory pulled to a local one: verified, resumed, never half there."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from stores import Counting, make_tree
from swift_cluster import SwiftCluster

from yarn_ops.errors import StoreError
from yarn_ops.records import Tree
from yarn_ops.store import Store
from yarn_ops.store.pull import pull_tree
from yarn_ops.store.trees import put_tree

MIB = 1 << 20
FILES = {"a.safetensors": os.urandom(3 * MIB), "b.safetensors": os.urandom(2 * MIB), "sub/config.json": b"{}"}

KILLED = """
import os, signal, sys
from pathlib import Path
from yarn_ops.store import StoreOptions, open_store
from yarn_ops.store.pull import pull_tree

def kill(done, total, note):
    if done >= total / 2:
        print(done, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

url, uri, to = sys.argv[1:]
store = open_store(url, StoreOptions(*sys.stdin.read().split("\\n")))
pull_tree(store, uri, Path(to), report=kill)
"""


@pytest.fixture
def tree(store: Store, tmp_path: Path) -> Tree:
    return put_tree(store, make_tree(tmp_path / "source", FILES))


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def flip(store: Store, key: str) -> None:
    data = bytearray(store.read(key))
    data[len(data) // 3] ^= 128
    store.write(key, bytes(data))


def test_the_pulled_directory_is_the_stored_one(store: Store, tree: Tree, tmp_path: Path) -> None:
    manifest = pull_tree(store, tree.uri, tmp_path / "to")
    found = contents(tmp_path / "to")
    assert json.loads(found.pop("manifest.json")) == manifest.model_dump()
    assert found == FILES
    assert manifest.digest == tree.digest
    assert not (tmp_path / ".to.partial").exists()


def test_only_the_rest_of_a_broken_pull_is_fetched(store: Store, tree: Tree, tmp_path: Path) -> None:
    counting = Counting(store)

    def break_off(done: int, total: int, _: str) -> None:
        if done > 4 * MIB:
            raise StoreError("cut off by the test")

    with pytest.raises(StoreError, match="cut off by the test"):
        pull_tree(counting, tree.uri, tmp_path / "to", report=break_off)
    assert not (tmp_path / "to").exists()
    kept = sum(counting.fetched_bytes.values())
    assert kept > 4 * MIB
    counting.fetched_bytes.clear()
    pull_tree(counting, tree.uri, tmp_path / "to")
    assert sum(counting.fetched_bytes.values()) == tree.size_bytes - kept
    assert contents(tmp_path / "to").items() >= FILES.items()
    assert list(tmp_path.glob(".to*")) == []


def test_a_pull_killed_at_half_fetches_only_the_rest(swift: SwiftCluster, s3: Store, tmp_path: Path) -> None:
    data = os.urandom(50 * MIB)
    tree = put_tree(s3, make_tree(tmp_path / "source", {"model.safetensors": data}))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, s3.url, tree.uri, tmp_path / "to"],
        input="\n".join((swift.endpoint_url, swift.access_key, swift.secret_key)),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    done = int(killed.stdout.split()[-1])
    counting = Counting(s3)
    pull_tree(counting, tree.uri, tmp_path / "to")
    assert 0 < counting.fetched_bytes[f"artifacts/{tree.digest}/model.safetensors"] <= len(data) - done
    assert done >= 25 * MIB
    assert (tmp_path / "to" / "model.safetensors").read_bytes() == data


def test_a_flipped_byte_is_named_and_only_that_file_fetched_again(
    store: Store, tree: Tree, tmp_path: Path
) -> None:
    key = f"artifacts/{tree.digest}/b.safetensors"
    flip(store, key)
    with pytest.raises(StoreError, match=r"damaged: b\.safetensors \(sha256 differs"):
        pull_tree(store, tree.uri, tmp_path / "to")
    assert not (tmp_path / "to").exists()
    flip(store, key)
    counting = Counting(store)
    pull_tree(counting, tree.uri, tmp_path / "to")
    assert counting.fetched_bytes == {key: 2 * MIB}


@pytest.mark.parametrize("account", [b"", b"12345", struct.pack("<I", 3 * MIB)])
def test_kept_bytes_that_are_wrong_are_fetched_anew(
    store: Store, tree: Tree, tmp_path: Path, account: bytes
) -> None:
    sha256 = hashlib.sha256(FILES["a.safetensors"]).hexdigest()
    make_tree(tmp_path / ".to.files", {f".{sha256}.partial": bytes(3 * MIB), f".{sha256}.parts": account})
    make_tree(tmp_path / ".to.partial", {"stray": b"1"})
    pull_tree(store, tree.uri, tmp_path / "to")
    found = contents(tmp_path / "to")
    del found["manifest.json"]
    assert found == FILES


def test_a_complete_directory_is_verified_and_left(store: Store, tree: Tree, tmp_path: Path) -> None:
    pull_tree(store, tree.uri, tmp_path / "to")
    counting = Counting(store)
    pull_tree(counting, tree.uri, tmp_path / "to")
    assert counting.fetched_bytes == {}
    make_tree(tmp_path / "to", {"sub/config.json": b"[]"})
    with pytest.raises(StoreError, match=r"damaged: sub/config\.json"):
        pull_tree(store, tree.uri, tmp_path / "to")


def test_a_directory_of_something_else_is_refused(store: Store, tree: Tree, tmp_path: Path) -> None:
    make_tree(tmp_path / "to", {"thesis.tex": b"mine"})
    with pytest.raises(StoreError, match="exists and is something else"):
        pull_tree(store, tree.uri, tmp_path / "to")
    assert contents(tmp_path / "to") == {"thesis.tex": b"mine"}


def test_another_version_is_refused(store: Store, tree: Tree, tmp_path: Path) -> None:
    other = put_tree(store, make_tree(tmp_path / "other", {"a.safetensors": b"1"}))
    pull_tree(store, tree.uri, tmp_path / "to")
    with pytest.raises(StoreError, match="exists and is something else"):
        pull_tree(store, other.uri, tmp_path / "to")
    assert contents(tmp_path / "to").items() >= FILES.items()


def test_an_empty_directory_is_filled(store: Store, tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    pull_tree(store, tree.uri, tmp_path / "to")
    assert contents(tmp_path / "to").items() >= FILES.items()


def test_six_pulls_to_one_place_at_once(store: Store, tree: Tree, tmp_path: Path) -> None:
    counting = Counting(store)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: pull_tree(counting, tree.uri, tmp_path / "to"), range(6)))
    assert contents(tmp_path / "to").items() >= FILES.items()
    assert sum(counting.fetched_bytes.values()) == tree.size_bytes


def test_a_directory_without_a_manifest_is_not_pulled(store: Store, tmp_path: Path) -> None:
    store.write("half/a", b"1")
    with pytest.raises(StoreError, match="no such manifest"):
        pull_tree(store, f"{store.url}/half", tmp_path / "to")
    assert list(tmp_path.glob(".to*")) == []


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "manifest.json"])
def test_a_manifest_cannot_write_outside(store: Store, tmp_path: Path, name: str) -> None:
    entry = {"sha256": "0" * 64, "size_bytes": 1}
    store.write("evil/manifest.json", json.dumps({"files": {name: entry}}).encode())
    with pytest.raises(StoreError, match=r"evil/manifest\.json: not a manifest of ours"):
        pull_tree(store, f"{store.url}/evil", tmp_path / "inner" / "to")
    assert not (tmp_path / "inner").exists()


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"files": {"a": {"sha256": "xyz", "size_bytes": 1}}}', b"\xff"]
)
def test_a_damaged_manifest_is_one_line(store: Store, tmp_path: Path, data: bytes) -> None:
    store.write("bad/manifest.json", data)
    with pytest.raises(StoreError, match="not a manifest of ours") as caught:
        pull_tree(store, f"{store.url}/bad", tmp_path / "to")
    assert "\n" not in str(caught.value)
