"""Content-addressed directories on every store: put once, verified when fetched, composed by the store."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from stores import Counting, make_tree

from yarn_ops.digests import digest_tree, tree_digest
from yarn_ops.errors import StoreError
from yarn_ops.store import Store
from yarn_ops.store.local import LocalStore
from yarn_ops.store.manifest import MANIFEST, read_manifest
from yarn_ops.store.trees import compose_tree, fetch_tree, put_tree, put_tree_at, tree_present

FILES = {"model.safetensors": os.urandom(300_000), "config.json": b"{}", "deep/er/empty": b"", "ü b": b"1"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "source", FILES)


def modified(store: Store) -> dict[str, object]:
    return {info.key: info.modified for info in store.list("")}


def test_a_tree_comes_back(store: Store, source: Path, tmp_path: Path) -> None:
    tree = put_tree(store, source)
    fetched = fetch_tree(store, tree, tmp_path / "cache")
    assert {name: (fetched / name).read_bytes() for name in FILES} == FILES
    assert tree.digest == tree_digest(digest_tree(source))
    assert tree.uri == f"{store.url}/artifacts/{tree.digest}"
    assert (tree.files, tree.size_bytes) == (4, 300_003)
    assert tree_present(store, tree)


def test_a_manifest_lists_every_file(store: Store, source: Path) -> None:
    tree = put_tree(store, source)
    listed = json.loads(store.read(f"artifacts/{tree.digest}/manifest.json"))
    digests = digest_tree(source)
    assert listed == {
        "files": {name: {"sha256": digests[name], "size_bytes": len(data)} for name, data in FILES.items()}
    }


def test_a_stored_tree_is_not_sent_again(store: Store, source: Path) -> None:
    tree = put_tree(store, source)
    before = modified(store)
    assert put_tree(store, source) == tree
    again = modified(store)
    manifest = f"artifacts/{tree.digest}/{MANIFEST}"
    assert again.pop(manifest) >= before.pop(manifest)  # it is in use from now
    assert again == before


def test_a_partial_tree_is_completed(store: Store, source: Path, tmp_path: Path) -> None:
    tree = put_tree(store, source)
    prefix = f"artifacts/{tree.digest}"
    store.delete(f"{prefix}/manifest.json")
    store.delete(f"{prefix}/config.json")
    kept = modified(store)
    assert not tree_present(store, tree)
    assert put_tree(store, source) == tree
    assert tree_present(store, tree)
    assert {key: when for key, when in modified(store).items() if key in kept} == kept


def test_progress_reaches_the_total(store: Store, source: Path) -> None:
    put: list[tuple[int, int]] = []
    put_tree(store, source, report=lambda done, total, _: put.append((done, total)))
    assert put[-1] == (300_003, 300_003)
    assert put == sorted(put)


def test_eight_puts_of_one_tree_at_once(store: Store, source: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        trees = set(pool.map(lambda _: put_tree(store, source).digest, range(8)))
        (digest,) = trees
        tree = put_tree(store, source)
        paths = set(pool.map(lambda _: fetch_tree(store, tree, tmp_path / "cache"), range(8)))
    assert tree.digest == digest
    assert len(paths) == 1
    assert len(list(store.list(""))) == len(FILES) + 1


@pytest.mark.parametrize("name", ["model.safetensors", "ü b"])
def test_a_flipped_byte_is_named(store: Store, source: Path, tmp_path: Path, name: str) -> None:
    tree = put_tree(store, source)
    data = bytearray(FILES[name])
    data[len(data) // 2] ^= 1
    store.write(f"artifacts/{tree.digest}/{name}", bytes(data))
    with pytest.raises(StoreError, match=f"damaged: {name} "):
        fetch_tree(store, tree, tmp_path / "cache")
    assert not (tmp_path / "cache" / tree.digest).exists()


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_a_tree_with_a_file_missing_is_not_present(
    store: Store, source: Path, tmp_path: Path, name: str
) -> None:
    tree = put_tree(store, source)
    store.delete(f"artifacts/{tree.digest}/{name}")
    assert not tree_present(store, tree)
    with pytest.raises(StoreError, match=name):
        fetch_tree(store, tree, tmp_path / "cache")


def test_a_cut_file_makes_a_tree_not_present(store: Store, source: Path) -> None:
    tree = put_tree(store, source)
    store.write(f"artifacts/{tree.digest}/model.safetensors", FILES["model.safetensors"][:-1])
    assert not tree_present(store, tree)
    put_tree(store, source)
    assert tree_present(store, tree)


def test_another_tree_in_its_place_is_refused(store: Store, source: Path, tmp_path: Path) -> None:
    tree = put_tree(store, source)
    other = tree.model_copy(update={"digest": "0" * 64})
    assert not tree_present(store, other)
    with pytest.raises(StoreError, match="not the directory that was recorded"):
        fetch_tree(store, other, tmp_path / "cache")


def test_an_empty_directory_is_not_stored(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing to store"):
        put_tree(store, tmp_path / "missing")


def test_a_file_called_like_the_manifest_is_refused(store: Store, tmp_path: Path) -> None:
    make_tree(tmp_path / "source", {"manifest.json": b"{}"})
    with pytest.raises(StoreError, match="rename the file"):
        put_tree(store, tmp_path / "source")


def test_a_composed_directory_holds_source_and_extras(store: Store, source: Path, tmp_path: Path) -> None:
    tree = put_tree(store, source)
    extra = {"README.md": b"# card\n", "config.json": b'{"a": 1}'}
    composed = compose_tree(store, tree, extra, f"{store.url}/mlflow/1/run/artifacts/model")
    path = fetch_tree(store, composed, tmp_path / "cache")
    expected = {**FILES, **extra}
    assert {name: (path / name).read_bytes() for name in expected} == expected
    assert (composed.files, composed.uri) == (5, f"{store.url}/mlflow/1/run/artifacts/model")
    assert tree_present(store, tree)


def test_composing_twice_changes_nothing(store: Store, source: Path) -> None:
    tree = put_tree(store, source)
    target = f"{store.url}/release"
    first = compose_tree(store, tree, {"README.md": b"1"}, target)
    before = modified(store)
    assert compose_tree(store, tree, {"README.md": b"1"}, target) == first
    assert modified(store) == before


def test_composing_something_else_replaces_the_directory(store: Store, source: Path, tmp_path: Path) -> None:
    first = put_tree(store, source)
    second = put_tree(store, make_tree(source, {"model.safetensors": os.urandom(300_000)}))
    target = f"{store.url}/release"
    compose_tree(store, first, {}, target)
    composed = compose_tree(store, second, {}, target)
    assert composed.digest == second.digest
    fetch_tree(store, composed, tmp_path / "cache")


def test_a_source_that_lost_a_file_is_not_composed(store: Store, source: Path) -> None:
    tree = put_tree(store, source)
    target = f"{store.url}/release"
    composed = compose_tree(store, tree, {}, target)
    store.delete(f"artifacts/{tree.digest}/model.safetensors")
    with pytest.raises(StoreError, match=r"model\.safetensors \(300000 bytes expected, none found"):
        compose_tree(store, tree, {"README.md": b"1"}, target)
    assert tree_present(store, composed), "what is complete stays so until all of the new one is there"


class BreakingOff(Counting):
    """A store that copies all but the weights."""

    def copy(self, source_key: str, target_key: str, size_bytes: int | None = None) -> None:
        if source_key.endswith("model.safetensors"):
            raise StoreError("broken off")
        self._store.copy(source_key, target_key, size_bytes)


def test_an_interrupted_composition_is_not_a_directory(store: Store, source: Path) -> None:
    tree = put_tree(store, source)
    target = f"{store.url}/release"
    composed = compose_tree(store, tree, {}, target)
    with pytest.raises(StoreError, match="broken off"):
        compose_tree(BreakingOff(store), tree, {"README.md": b"1"}, target)
    assert not tree_present(store, composed)
    assert compose_tree(store, tree, {}, target) == composed


def test_a_composition_outside_the_store_is_refused(store: Store, source: Path) -> None:
    tree = put_tree(store, source)
    with pytest.raises(StoreError, match=r"not below the store|not a local directory"):
        compose_tree(store, tree, {}, "s3://elsewhere/release")


def test_a_local_composition_is_hard_linked(source: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    tree = put_tree(store, source)
    compose_tree(store, tree, {"README.md": b"1"}, f"{store.url}/release")
    original = store.path_of(f"artifacts/{tree.digest}/model.safetensors")
    assert store.path_of("release/model.safetensors").samefile(original)


def test_a_local_tree_is_used_in_place(source: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    tree = put_tree(store, source)
    assert fetch_tree(store, tree, tmp_path / "cache") == tmp_path / "store" / "artifacts" / tree.digest
    assert not (tmp_path / "cache").exists()


def test_files_that_the_store_has_are_copied_by_it(store: Store, source: Path, tmp_path: Path) -> None:
    whole = put_tree(store, make_tree(tmp_path / "whole", {**FILES, "more/a": b"more"}))
    for info in [*store.list("artifacts/")]:
        store.delete(info.key)
    part = put_tree_at(store, make_tree(tmp_path / "part", {"a": b"more"}), "units/key")
    assert read_manifest(store, "units/key") == part
    tree = put_tree(store, source, copies={"more/a": ("units/key/a", part.files["a"])})
    assert tree == whole and tree_present(store, tree)
    fetched = fetch_tree(store, tree, tmp_path / "cache")
    assert (fetched / "more/a").read_bytes() == b"more"
