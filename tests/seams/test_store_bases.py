"""Base models from a bucket, with and without a manifest of ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from stores import swift_options
from swift_cluster import SwiftCluster

from yarn_ops.bases import fetch_base
from yarn_ops.digests import digest_tree, tree_files
from yarn_ops.errors import BaseModelError, StoreError
from yarn_ops.models.checkpoints import checkpoint_files
from yarn_ops.recipe import Base
from yarn_ops.shipped import MODELS
from yarn_ops.store import Store
from yarn_ops.store.trees import put_tree

BASE512 = MODELS / "base512"
CLEAN = checkpoint_files(BASE512)


def fetch(swift: SwiftCluster, uri: str, cache: Path) -> Path:
    record, path = fetch_base(
        Base(model=uri), cache=cache, store_options=swift_options(swift), find_release=None
    )
    assert record.source == uri
    return path


def test_a_prefix_without_a_manifest(swift: SwiftCluster, s3: Store, tmp_path: Path) -> None:
    for name in (*CLEAN, "pretrain.json"):
        s3.put_file(BASE512 / name, f"model/{name}")
    s3.write("model/code.py", b"raise SystemExit")
    s3.write("model/onnx/model.safetensors", b"other")
    path = fetch(swift, f"{s3.url}/model", tmp_path / "cache")
    originals = digest_tree(BASE512)
    assert digest_tree(path) == {name: originals[name] for name in CLEAN}
    assert fetch(swift, f"{s3.url}/model/", tmp_path / "cache") == path


def test_a_stored_tree(swift: SwiftCluster, s3: Store, tmp_path: Path) -> None:
    tree = put_tree(s3, BASE512)
    path = fetch(swift, tree.uri, tmp_path / "cache")
    assert list(tree_files(path)) == CLEAN
    kept = list((tmp_path / "cache" / "files").iterdir())  # where pulled models have theirs
    assert any(file.samefile(path / "model.safetensors") for file in kept)
    s3.write(f"artifacts/{tree.digest}/config.json", b"{}")
    with pytest.raises(StoreError, match=r"config\.json: 2 bytes long"):
        fetch(swift, tree.uri, tmp_path / "another cache")


def test_pickles_in_a_bucket_are_refused(swift: SwiftCluster, s3: Store, tmp_path: Path) -> None:
    s3.put_file(BASE512 / "config.json", "model/config.json")
    s3.write("model/pytorch_model.bin", b"cos\nsystem\n")
    with pytest.raises(BaseModelError, match="pickled weights are refused"):
        fetch(swift, f"{s3.url}/model", tmp_path / "cache")


def test_an_empty_prefix_is_said(swift: SwiftCluster, s3: Store, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="nothing: no safetensors there"):
        fetch(swift, f"{s3.url}/nothing", tmp_path / "cache")
