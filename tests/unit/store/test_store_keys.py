"""No key and no name in a manifest leaves its directory, whatever it is made of."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yarn_ops.errors import StoreError
from yarn_ops.store.keys import MAX_KEY_BYTES, check_key
from yarn_ops.store.local import INCOMING, LocalStore
from yarn_ops.store.manifest import parse_manifest

PARTS = st.sampled_from(
    ["..", ".", "", "a", "\0", "~", " ", "C:", "\\", "%2e%2e", "…", "\ud800", "\n", "e\u0301", "*"]
)
HOSTILE = st.one_of(st.text(max_size=40), st.lists(PARTS, max_size=6).map("/".join))


def below(root: Path, path: Path) -> bool:
    return root in path.resolve().parents


@given(HOSTILE)
def test_an_accepted_key_lies_below_its_root(key: str) -> None:
    root = Path("/some/root")
    try:
        check_key(key)
    except StoreError as error:
        assert "\n" not in str(error)
    else:
        assert below(root, root / key)
        assert (root / key).relative_to(root).as_posix() == key


@given(HOSTILE)
def test_a_local_store_writes_below_its_root_or_not_at_all(key: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        outer = Path(folder).resolve()
        store = LocalStore(outer / "root")
        try:
            store.write(key, b"x")
        except StoreError:
            written = []
        else:
            written = [outer / "root" / key]
            assert store.read(key) == b"x"
            assert [info.key for info in store.list("")] == [key]
            assert store.key_of(store.uri_of(key)) == key
        assert [path for path in outer.rglob("*") if path.is_file()] == written


@given(HOSTILE)
def test_a_hostile_uri_is_below_the_store_or_refused(text: str) -> None:
    root = Path("/some/root")
    for uri in (text, f"/some/root/{text}", f"file:///some/root/{text}"):
        try:
            key = LocalStore(root).key_of(uri)
        except StoreError as error:
            assert "\n" not in str(error)
        else:
            assert key == "" or below(root, root / key)


@given(HOSTILE)
def test_a_name_in_a_manifest_lies_below_its_directory(name: str) -> None:
    entry = {"sha256": "0" * 64, "size_bytes": 1}
    try:
        manifest = parse_manifest(json.dumps({"files": {name: entry}}).encode(), "here")
    except StoreError as error:
        assert str(error).startswith("here: not a manifest of ours")
    else:
        assert all(below(Path("/d"), Path("/d") / found) for found in manifest.files)


@pytest.mark.parametrize(
    "key", ["a", "a/b.c", ".hidden", "a..b", "...", "ü/€ €", "-", "'; DROP TABLE x; --", "$(id)"]
)
def test_ordinary_and_odd_names_are_accepted(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "..", "a/..", ".", "a\0", "a\nb", "a\\b", "a" * 256, "\ud800"]
)
def test_keys_that_are_unsafe_are_refused(key: str) -> None:
    with pytest.raises(StoreError, match="refused as an object name"):
        check_key(key)


def test_a_key_longer_than_s3_allows_is_refused() -> None:
    longest = "/".join(["a" * 203] * 5) + "/abc"
    assert len(check_key(longest)) == MAX_KEY_BYTES - 1
    with pytest.raises(StoreError, match="longer than 1024 bytes"):
        check_key(longest + "de")


def test_a_message_shortens_a_long_key() -> None:
    with pytest.raises(StoreError) as caught:
        check_key("x" * 10_000)
    assert len(str(caught.value)) < 250


def test_the_stores_own_directory_is_not_a_key(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the store's own"):
        LocalStore(tmp_path).write(f"{INCOMING}/a", b"1")
