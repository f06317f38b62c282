"""The same tests for every object store: a local directory and a bucket of a real S3 server."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from swift_cluster import SwiftCluster

from yarn_ops.store import Store, StoreOptions, open_store


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
