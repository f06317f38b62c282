"""An S3 server that breaks a fifth of what it is asked: what is stored and pulled is whole all the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from proxy import Chooser, Passage, Proxy, refusal, share
from stores import make_tree
from swift_cluster import SwiftCluster

from yarn_ops.store import StoreOptions, open_store
from yarn_ops.store.pull import pull_tree
from yarn_ops.store.trees import compose_tree, fetch_tree, put_tree, tree_present

MIB = 1 << 20


FAULTS = {
    "500": share(0.2, refusal(500), refusal(500, afterwards=True)),
    "503": share(0.2, refusal(503)),
    "cut": share(0.2, Passage.cut),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fifth_of_all_requests_fails(swift: SwiftCluster, bucket: str, tmp_path: Path, fault: str) -> None:
    choose: Chooser = FAULTS[fault]
    files = {f"file-{number}": os.urandom(1000) for number in range(12)} | {"model": os.urandom(20 * MIB)}
    source = make_tree(tmp_path / "source", files)
    with Proxy(swift.endpoint_url, choose, seed=2) as proxy:
        store = open_store(f"s3://{bucket}", StoreOptions(proxy.url, swift.access_key, swift.secret_key))
        tree = put_tree(store, source)
        assert tree_present(store, tree)
        pull_tree(store, tree.uri, tmp_path / "to")
        composed = compose_tree(store, tree, {"README.md": b"card"}, store.uri_of("mlflow/model"))
        fetched = fetch_tree(store, composed, tmp_path / "cache")
    assert proxy.broken > 10
    assert {name: (tmp_path / "to" / name).read_bytes() for name in files} == files
    assert (fetched / "model").read_bytes() == files["model"]
    assert (fetched / "README.md").read_bytes() == b"card"
