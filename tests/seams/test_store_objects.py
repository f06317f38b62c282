"""What every store does with single objects; the same on a local directory and on Swift's S3."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from yarn_ops.errors import StoreError
from yarn_ops.store import Store

MIB = 1 << 20


def test_bytes_come_back(store: Store) -> None:
    store.write("a/b.bin", b"\x00\xffone")
    assert store.read("a/b.bin") == b"\x00\xffone"
    assert store.size("a/b.bin") == 5
    assert store.find("a/b.bin") == b"\x00\xffone"


def test_an_object_is_replaced_whole(store: Store) -> None:
    store.write("a", b"long first content")
    store.write("a", b"short")
    assert store.read("a") == b"short"


def test_an_empty_object_is_an_object(store: Store, tmp_path: Path) -> None:
    store.write("empty", b"")
    store.get_file("empty", tmp_path / "empty")
    assert store.size("empty") == 0
    assert (tmp_path / "empty").read_bytes() == b""


def test_a_missing_object_has_no_size_and_cannot_be_read(store: Store, tmp_path: Path) -> None:
    assert store.size("nothing") is None
    assert store.find("nothing") is None
    with pytest.raises(StoreError, match=r"below/here/nothing: no such|store/nothing: no such"):
        store.read("nothing")
    with pytest.raises(StoreError, match="nothing: no such"):
        store.get_file("nothing", tmp_path / "file")


def test_deleting_twice_is_no_error(store: Store) -> None:
    store.write("a", b"1")
    store.delete("a")
    store.delete("a")
    assert store.size("a") is None


def test_list_is_by_prefix_and_sorted(store: Store) -> None:
    for key in ("runs/b", "runs/a/x", "run", "runs2/a", "other/runs/a"):
        store.write(key, key.encode())
    assert [(info.key, info.size_bytes) for info in store.list("runs/")] == [("runs/a/x", 8), ("runs/b", 6)]
    assert [info.key for info in store.list("run")] == ["run", "runs/a/x", "runs/b", "runs2/a"]
    assert [info.key for info in store.list("")] == ["other/runs/a", "run", "runs/a/x", "runs/b", "runs2/a"]
    assert list(store.list("none/")) == []


@pytest.mark.slow
def test_list_goes_on_after_a_thousand(s3: Store) -> None:
    keys = [f"many/{number:04}" for number in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: s3.write(key, b""), keys))
    assert [info.key for info in s3.list("many/")] == keys


def test_list_tells_when_an_object_was_written(store: Store) -> None:
    store.write("a", b"1")
    (info,) = store.list("")
    assert abs(datetime.now(UTC) - info.modified) < timedelta(minutes=1)


def test_uris_and_keys_are_the_same_thing_twice(store: Store) -> None:
    key = "a b/ü%20#?.bin"
    store.write(key, b"1")
    assert store.key_of(store.uri_of(key)) == key
    assert store.key_of(store.url) == ""
    assert [info.key for info in store.list("a b/")] == [key]
    with pytest.raises(StoreError, match="not below the store"):
        store.key_of(store.url + "-other/a")


def test_a_large_file_goes_up_in_parts_and_comes_back(store: Store, tmp_path: Path) -> None:
    data = os.urandom(MIB) * 40
    (tmp_path / "up").write_bytes(data)
    sent: list[int] = []
    store.put_file(tmp_path / "up", "large", sent.append)
    store.get_file("large", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == data
    assert sum(sent) == len(data) == store.size("large")


def test_only_the_rest_of_a_partial_file_is_fetched(store: Store, tmp_path: Path) -> None:
    data = os.urandom(5 * MIB)
    store.write("a", data)
    there = os.urandom(3 * MIB + 17)  # had it been fetched, it would be the store's
    (tmp_path / "a").write_bytes(there)
    store.get_file("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == there + data[len(there) :]


def test_a_failed_upload_leaves_no_object(store: Store, tmp_path: Path) -> None:
    (tmp_path / "up").write_bytes(os.urandom(MIB) * 40)

    def fail(_: int) -> None:
        raise StoreError("stopped by the test")

    with pytest.raises(StoreError, match="stopped by the test"):
        store.put_file(tmp_path / "up", "large", fail)
    assert store.size("large") is None
    assert list(store.list("")) == []


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("size_bytes", [0, 1000, 70 * MIB])
def test_copies_hold_the_same_bytes(store: Store, tmp_path: Path, size_bytes: int, told: bool) -> None:
    data = (os.urandom(1000) * (size_bytes // 1000 + 1))[:size_bytes]
    (tmp_path / "a").write_bytes(data)
    store.put_file(tmp_path / "a", "from/a")
    store.copy("from/a", "to/a", size_bytes if told else None)
    store.copy("from/a", "to/a", size_bytes if told else None)
    store.delete("from/a")
    store.get_file("to/a", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert [info.key for info in store.list("")] == ["to/a"]


def test_copying_nothing_is_an_error(store: Store) -> None:
    for size_bytes in (None, 7):
        with pytest.raises(StoreError, match="no such"):
            store.copy("from/a", "to/a", size_bytes)


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../a", "a/../../b", "a//b", "a/", "./a", "a\0b", "a\\b", "x" * 300]
)
def test_keys_that_leave_the_store_are_refused(store: Store, key: str) -> None:
    for attempt in (store.read, store.size, store.delete, store.uri_of):
        with pytest.raises(StoreError, match="refused as an object name"):
            attempt(key)
    with pytest.raises(StoreError, match="refused as an object name"):
        store.write(key, b"1")
