"""Flips, cuts, losses, swaps in every kind of stored and cached file: seen before use, named, put right."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stores import make_tree, swift_options
from swift_cluster import SwiftCluster

from yarn_ops.bases import fetch_base
from yarn_ops.digests import digest_tree, tree_files
from yarn_ops.errors import Damaged, StoreError, YarnOpsError
from yarn_ops.models.checkpoints import checkpoint_files
from yarn_ops.recipe import Base
from yarn_ops.records import Tree
from yarn_ops.shipped import MODELS
from yarn_ops.store import Store
from yarn_ops.store.pull import pull_tree
from yarn_ops.store.trees import compose_tree, fetch_tree, put_tree, tree_present

SOURCE = random.Random(1)
FILES = {
    "model-1.safetensors": SOURCE.randbytes(70_000),
    "model-2.safetensors": SOURCE.randbytes(70_000),
    "config.json": b'{"a": 1}',
    "deep/index.bin": SOURCE.randbytes(500),
}
RELEASE = "mlflow/1/run/artifacts/model"
DRAWS = 200


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "source", FILES)


@pytest.fixture
def tree(store: Store, source: Path) -> Tree:
    return put_tree(store, source)


def changed(data: bytes, draw: random.Random) -> bytes:
    """Other bytes than these: a bit, an end, nothing at all."""
    if not data:  # of an earlier draw that nobody has come to see
        return b"x"
    at = draw.randrange(len(data))
    return draw.choice(
        [
            data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :],
            data[:at],
            b"",
            data + b"\0",
        ]
    )


def damage_object(store: Store, prefix: str, draw: random.Random) -> str:
    """Change, remove or swap objects of a stored directory; the name of one."""
    names = sorted(info.key.removeprefix(f"{prefix}/") for info in store.list(f"{prefix}/"))
    name, other = draw.sample(names, 2)
    data, others = store.read(f"{prefix}/{name}"), store.read(f"{prefix}/{other}")
    match draw.randrange(6):
        case 0:
            store.delete(f"{prefix}/{name}")
        case 1:
            store.write(f"{prefix}/{name}", others)
            store.write(f"{prefix}/{other}", data)
        case _:
            store.write(f"{prefix}/{name}", changed(data, draw))
    return name


def damage_local(folder: Path, draw: random.Random) -> str:
    """The same of files on this machine; also one more that does not belong there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    path, other = draw.sample(paths, 2)
    data, others = path.read_bytes(), other.read_bytes()
    for one in (path, other):
        one.resolve().chmod(0o644)
    match draw.randrange(7):
        case 0:
            path.unlink()
        case 1:
            (folder / "added_tokens.json").write_bytes(b"{}")
        case 2:
            path.write_bytes(others)
            other.write_bytes(data)
        case _:
            path.write_bytes(changed(data, draw))
    return str(path.relative_to(folder))


def is_sound(folder: Path) -> bool:
    found = {name: path.read_bytes() for name, path in tree_files(folder).items()}
    found.pop("manifest.json", None)
    return found == FILES


def fetched(store: Store, tree: Tree, cache: Path, source: Path) -> Path:
    """Fetched; where the store is damaged, refused by a line that names it, put again, and fetched."""
    try:
        return fetch_tree(store, tree, cache)
    except Damaged as error:
        assert error.set_aside == tree.digest and "\n" not in str(error)
        assert not tree_present(store, tree)
    assert put_tree(store, source) == tree
    return fetch_tree(store, tree, cache)


def store_draw(store: Store, tree: Tree, source: Path, cache: Path, draw: random.Random) -> None:
    """Damage at one of the places that a stage's directory passes; then use it."""
    prefix, place = (
        f"artifacts/{tree.digest}",
        draw.choice(["stored", "cached", "files", "composed", "source"]),
    )
    fetched(store, tree, cache, source)
    local = "artifacts" in str(fetch_tree(store, tree, cache))
    if place in ("cached", "files") and not local:
        folder = cache / (tree.digest if place == "cached" else "files")
        damage_local(folder, draw)
        if place == "files":
            shutil.rmtree(cache / tree.digest)
    elif place == "composed":
        compose_tree(store, tree, {"README.md": b"card"}, store.uri_of(RELEASE))
        damage_object(store, RELEASE, draw)
    else:
        damage_object(store, prefix, draw)
    if place in ("composed", "source"):
        for attempt in range(2):
            try:
                compose_tree(store, tree, {"README.md": b"card"}, store.uri_of(RELEASE))
                break
            except Damaged as error:
                assert attempt == 0 and error.set_aside == tree.digest, str(error)
                assert put_tree(store, source) == tree
        shutil.rmtree(cache.parent / "pulled", ignore_errors=True)
        pull_tree(store, store.uri_of(RELEASE), cache.parent / "pulled")
        (cache.parent / "pulled" / "README.md").unlink()
        assert is_sound(cache.parent / "pulled")
    else:
        assert is_sound(fetched(store, tree, cache, source))


@pytest.mark.parametrize("seed", range(12))
def test_a_damage_on_the_way_is_seen(
    store: Store, tree: Tree, source: Path, tmp_path: Path, seed: int
) -> None:
    store_draw(store, tree, source, tmp_path / "cache", random.Random(seed))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_damages_on_the_way(store: Store, tree: Tree, source: Path, tmp_path: Path) -> None:
    for seed in range(DRAWS):
        store_draw(store, tree, source, tmp_path / "cache", random.Random(1000 + seed))


@pytest.mark.parametrize("name", FILES)
def test_a_composed_damage_is_named_and_nothing_is_complete(store: Store, tree: Tree, name: str) -> None:
    data = bytearray(FILES[name])
    data[0] ^= 1
    store.write(f"artifacts/{tree.digest}/{name}", bytes(data))
    with pytest.raises(
        Damaged, match=rf"damaged: {name} \(sha256 [0-9a-f]{{12}} expected, [0-9a-f]{{12}} found"
    ):
        compose_tree(store, tree, {}, store.uri_of(RELEASE))
    assert store.find(f"{RELEASE}/manifest.json") is None
    assert store.find(f"artifacts/{tree.digest}/{name}") is None
    assert store.find(f"artifacts/{tree.digest}/manifest.json") is None


def test_the_bytes_of_a_base_elsewhere_are_never_taken_away(
    store: Store, source: Path, tmp_path: Path
) -> None:
    """Only directories that `put_tree` made are: here somebody's own, with a manifest of ours."""
    base = compose_tree(store, put_tree(store, source), {}, f"{store.url}/mine")
    store.write("mine/config.json", b'{"a": 2}')
    with pytest.raises(StoreError, match="config"):
        fetch_tree(store, base, tmp_path / "cache")
    assert store.read("mine/config.json") == b'{"a": 2}'
    assert store.find("mine/manifest.json") is not None


# Bases from a bucket without a manifest

BASE512 = MODELS / "base512"
CLEAN = checkpoint_files(BASE512)


@pytest.fixture
def bare_base(s3: Store) -> str:
    for name in CLEAN:
        s3.put_file(BASE512 / name, f"model/{name}")
    return f"{s3.url}/model"


@pytest.fixture
def fetch(swift: SwiftCluster, bare_base: str, tmp_path: Path) -> Iterator[Callable[[], Path]]:
    def take() -> Path:
        options = swift_options(swift)
        _, path = fetch_base(
            Base(model=bare_base), cache=tmp_path / "cache", store_options=options, find_release=None
        )
        return path

    yield take


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))]
)
def test_a_cached_base_is_held_to_what_arrived(fetch: Callable[[], Path], tmp_path: Path, seed: int) -> None:
    draw, originals = random.Random(seed), digest_tree(BASE512)
    fetch()
    for _ in range(3):
        folders = [path for path in (tmp_path / "cache" / "bases").iterdir() if path.is_dir()]
        damage_local(draw.choice(sorted(folders)), draw)
        assert digest_tree(fetch()) == {name: originals[name] for name in CLEAN}


def test_a_cached_base_without_a_manifest_is_fetched_again(fetch: Callable[[], Path], tmp_path: Path) -> None:
    """As an earlier version left it."""
    fetch()
    (listed,) = (tmp_path / "cache" / "bases").glob("*/manifest.json")
    listed.unlink()
    weights = listed.parent / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    originals = digest_tree(BASE512)
    assert digest_tree(fetch()) == {name: originals[name] for name in CLEAN}
    assert set(json.loads(listed.read_bytes())["files"]) == set(CLEAN)


def test_a_fetch_that_was_broken_off_and_damaged_meanwhile_is_seen(
    fetch: Callable[[], Path], tmp_path: Path
) -> None:
    fetch()
    (whole,) = {path.parent for path in (tmp_path / "cache" / "bases").glob("*/manifest.json")}
    (whole / "manifest.json").unlink()
    data = bytearray((whole / "model.safetensors").read_bytes())
    data[1000] ^= 1
    (whole / "model.safetensors").write_bytes(data[:-5])
    whole.rename(whole.with_name(f".{whole.name}.partial"))
    with pytest.raises(YarnOpsError, match=r"damaged: model.safetensors \(sha256"):
        fetch()
    originals = digest_tree(BASE512)
    assert digest_tree(fetch()) == {name: originals[name] for name in CLEAN}
