"""The same tests for every object store: a local directory and a bucket of a real S3 server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
from swift_cluster import SwiftCluster

from yarn_ops.store import Store, StoreOptions, open_store


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftCluster]:
    """A running Swift for the whole session; every test makes its own bucket."""
    with SwiftCluster(tmp_path_factory.mktemp("swift")) as cluster:
        yield cluster


def swift_options(swift: SwiftCluster) -> StoreOptions:
    return StoreOptions(swift.endpoint_url, swift.access_key, swift.secret_key, swift.region)


@pytest.fixture
def bucket(swift: SwiftCluster) -> str:
    """A new, empty bucket."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    swift.create_bucket(name)
    return name


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "local":
        return open_store((tmp_path / "store").as_uri())
    bucket = request.getfixturevalue("bucket")
    return open_store(f"s3://{bucket}/below/here", swift_options(request.getfixturevalue("swift")))


@pytest.fixture
def s3(swift: SwiftCluster, bucket: str) -> Store:
    """An empty S3 store."""
    return open_store(f"s3://{bucket}/below/here", swift_options(swift))


def make_tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


class Counting:
    """A store that counts the bytes fetched from it, by key; everything else passes through."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.fetched_bytes: dict[str, int] = {}
        self._lock = Lock()

    def read_range(self, key: str, start: int, stop: int) -> Iterator[bytes]:
        for chunk in self._store.read_range(key, start, stop):
            with self._lock:
                self.fetched_bytes[key] = self.fetched_bytes.get(key, 0) + len(chunk)
            yield chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)
