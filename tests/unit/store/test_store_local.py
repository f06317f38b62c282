"""What only a local directory does as an object store."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from yarn_ops.errors import StoreError
from yarn_ops.store import open_store
from yarn_ops.store.local import INCOMING, LocalStore


def test_opening_creates_nothing(tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())
    assert store.size("a") is None
    assert list(store.list("")) == []
    store.delete("a")
    assert not (tmp_path / "store").exists()


def test_a_store_may_lie_in_a_directory_with_odd_letters(tmp_path: Path) -> None:
    root = tmp_path / "a b%20ü#?"
    store = open_store(root.as_uri())
    store.write("k", b"1")
    assert (root / "k").read_bytes() == b"1"
    assert store.key_of(store.uri_of("k")) == "k"


def test_a_path_names_an_object_too(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert store.key_of(str(tmp_path / "mlflow" / "run")) == "mlflow/run"


@pytest.mark.parametrize(
    "uri", ["{root}/../other", "/etc", "file:///etc", "s3://bucket/a", "relative", "/a\0b", "file:///%00"]
)
def test_uris_elsewhere_are_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(StoreError, match=r"not below the store|not a local directory"):
        LocalStore(tmp_path).key_of(uri.format(root=tmp_path))


def test_a_copy_is_a_hard_link(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.write("a", b"1")
    store.copy("a", "deep/b")
    assert store.path_of("a").samefile(store.path_of("deep/b"))
    store.write("a", b"2")
    assert store.read("deep/b") == b"1"


def test_a_copy_is_made_where_links_are_not_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    store = LocalStore(tmp_path)
    store.write("a", b"1")
    store.copy("a", "b")
    assert store.read("b") == b"1"
    assert not store.path_of("a").samefile(store.path_of("b"))


def test_nothing_is_left_of_what_was_on_its_way(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.write("a", b"1")
    store.copy("a", "b")
    with pytest.raises(StoreError, match="a file stands where a directory is needed"):
        store.write("a/b", b"1")
    assert list((tmp_path / INCOMING).iterdir()) == []
