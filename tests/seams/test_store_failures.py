"""What goes wrong with stores, and the one line that says so."""

from __future__ import annotations

import os
import re
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from stores import make_tree, swift_options
from swift_cluster import SwiftCluster

from yarn_ops.errors import StoreError
from yarn_ops.store import Store, StoreOptions, open_store
from yarn_ops.store.pull import pull_tree
from yarn_ops.store.trees import put_tree

MIB = 1 << 20
SECRET = "not-the-secret-1234"


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """A disk that is full after so many bytes of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def nobody() -> Iterator[None]:
    """Without root's leave to write everywhere."""
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)


class CuttingProxy:
    """Passes connections on to a server, and cuts each of the first `cuts` after `after_bytes` of answer."""

    def __init__(self, port: int, cuts: int, after_bytes: int) -> None:
        self._port, self._cuts, self._after_bytes = port, cuts, after_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            threading.Thread(target=self._pass, args=(client, server, 1 << 60), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, self._after_bytes), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, cut_after_bytes: int) -> None:
        passed = 0
        with source, target:
            while data := _receive(source):
                passed += len(data)
                if passed > cut_after_bytes and self.cut < self._cuts:
                    self.cut += 1
                    target.shutdown(socket.SHUT_RDWR)
                    return
                try:
                    target.sendall(data)
                except OSError:
                    return


def _receive(source: socket.socket) -> bytes:
    try:
        return source.recv(1 << 16)
    except OSError:
        return b""


def one_line(error: pytest.ExceptionInfo[StoreError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert SECRET not in text
    return text


def test_a_wrong_secret_is_said(swift: SwiftCluster, bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{bucket}/x", StoreOptions(swift.endpoint_url, swift.access_key, SECRET))
    (tmp_path / "large").write_bytes(bytes(20 * MIB))
    attempts = (
        lambda: store.read("a"),
        lambda: store.write("a", b"1"),
        lambda: store.size("a"),
        lambda: list(store.list("")),
        lambda: store.delete("a"),
        lambda: store.put_file(tmp_path / "large", "a"),
    )
    for attempt in attempts:
        with pytest.raises(StoreError) as caught:
            attempt()
        assert re.match(
            rf"s3://{bucket}/x.*: access key or secret key wrong; check YARN_OPS_S3", one_line(caught)
        )


def test_an_unknown_access_key_is_said(swift: SwiftCluster, bucket: str) -> None:
    store = open_store(f"s3://{bucket}", StoreOptions(swift.endpoint_url, "test:stranger", SECRET))
    with pytest.raises(StoreError, match="access key or secret key wrong"):
        store.size("a")


def test_a_missing_bucket_is_said(swift: SwiftCluster, tmp_path: Path) -> None:
    store = open_store("s3://no-such-bucket/x", swift_options(swift))
    (tmp_path / "file").write_bytes(b"1")
    attempts = (
        lambda: store.size("a"),
        lambda: store.write("a", b"1"),
        lambda: list(store.list("")),
        lambda: store.put_file(tmp_path / "file", "a"),
    )
    for attempt in attempts:
        with pytest.raises(StoreError, match=r"s3://no-such-bucket/x.*: no such bucket; create it") as caught:
            attempt()
        one_line(caught)


def test_an_unreachable_endpoint_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    store = open_store("s3://bucket", StoreOptions(f"http://127.0.0.1:{port}", "key", SECRET))
    with pytest.raises(StoreError, match=f"127.0.0.1:{port} does not answer; is it running") as caught:
        store.read("a")
    one_line(caught)


def test_no_secret_shows_in_repr() -> None:
    options = StoreOptions("http://127.0.0.1:1", "key", SECRET)
    assert SECRET not in repr(options)
    assert SECRET not in repr(open_store("s3://bucket", options))


@pytest.mark.parametrize(
    "url", ["", "relative/path", "http://bucket", "s3://", "s3://bucket/../x", "file://host/x"]
)
def test_a_url_of_no_store_is_refused(url: str) -> None:
    with pytest.raises(StoreError):
        open_store(url)


def test_broken_connections_are_taken_up_again(swift: SwiftCluster, bucket: str, tmp_path: Path) -> None:
    data = os.urandom(8 * MIB)
    open_store(f"s3://{bucket}", swift_options(swift)).write("a", data)
    proxy = CuttingProxy(swift.port, cuts=3, after_bytes=2 * MIB)
    try:
        store = open_store(
            f"s3://{bucket}", StoreOptions(proxy.endpoint_url, swift.access_key, swift.secret_key)
        )
        store.get_file("a", tmp_path / "a")
    finally:
        proxy.close()
    assert proxy.cut == 3
    assert (tmp_path / "a").read_bytes() == data


def test_a_pull_through_broken_connections_arrives(swift: SwiftCluster, bucket: str, tmp_path: Path) -> None:
    data = os.urandom(20 * MIB)
    source = make_tree(tmp_path / "source", {"model.safetensors": data})
    tree = put_tree(open_store(f"s3://{bucket}", swift_options(swift)), source)
    proxy = CuttingProxy(swift.port, cuts=5, after_bytes=2 * MIB)
    try:
        store = open_store(
            f"s3://{bucket}", StoreOptions(proxy.endpoint_url, swift.access_key, swift.secret_key)
        )
        pull_tree(store, tree.uri, tmp_path / "to")
    finally:
        proxy.close()
    assert proxy.cut == 5
    assert (tmp_path / "to" / "model.safetensors").read_bytes() == data


def test_a_failed_upload_leaves_no_parts_behind(swift: SwiftCluster, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(40 * MIB))

    def fail(_: int) -> None:
        raise StoreError("stopped by the test")

    with pytest.raises(StoreError, match="stopped by the test"):
        open_store(f"s3://{bucket}", swift_options(swift)).put_file(tmp_path / "large", "large", fail)
    assert "Uploads" not in swift.client().list_multipart_uploads(Bucket=bucket)


def test_a_tree_whose_upload_fails_leaves_no_parts_behind(
    swift: SwiftCluster, bucket: str, tmp_path: Path
) -> None:
    source = make_tree(tmp_path / "source", {name: os.urandom(20 * MIB) for name in "abc"})
    store = open_store(f"s3://{bucket}", swift_options(swift))

    def fail(done: int, total: int, _: str) -> None:
        if done > total // 2:
            raise StoreError("stopped by the test")

    with pytest.raises(StoreError, match="stopped by the test"):
        put_tree(store, source, report=fail)
    assert "Uploads" not in swift.client().list_multipart_uploads(Bucket=bucket)
    assert not any(info.key.endswith("manifest.json") for info in store.list(""))


def test_a_full_disk_leaves_no_object(tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())
    source = make_tree(tmp_path / "source", {"large": bytes(4 * MIB)})
    with file_size_limit(MIB), pytest.raises(StoreError, match="no space left on the disk") as caught:
        put_tree(store, source)
    one_line(caught)
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_a_full_disk_stops_a_pull_that_then_goes_on(store: Store, tmp_path: Path) -> None:
    tree = put_tree(store, make_tree(tmp_path / "source", {"large": os.urandom(4 * MIB)}))
    with file_size_limit(MIB), pytest.raises(StoreError, match="no space left on the disk"):
        pull_tree(store, tree.uri, tmp_path / "to")
    assert not (tmp_path / "to").exists()
    pull_tree(store, tree.uri, tmp_path / "to")
    assert (tmp_path / "to" / "large").read_bytes() == (tmp_path / "source" / "large").read_bytes()


def test_a_directory_that_may_not_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o555)
    store = open_store((tmp_path / "store").as_uri())
    with nobody(), pytest.raises(StoreError, match="permission denied; check owner and mode") as caught:
        store.write("a", b"1")
    one_line(caught)


def test_a_pull_to_where_none_may_write_is_said(store: Store, tmp_path: Path) -> None:
    tree = put_tree(store, make_tree(tmp_path / "source", {"a": b"1"}))
    (tmp_path / "closed").write_text("a file")
    with pytest.raises(StoreError, match="a file stands where a directory is needed"):
        pull_tree(store, tree.uri, tmp_path / "closed" / "to")


def test_a_file_in_the_place_of_the_store_is_said(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    store = open_store((tmp_path / "store").as_uri())
    with pytest.raises(StoreError, match="a file stands where a directory is needed"):
        store.write("a", b"1")


def test_a_missing_file_cannot_be_put(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file"):
        store.put_file(tmp_path / "missing", "a")
    assert store.size("a") is None
