"""Base models from directories, the checkout, Hugging Face's cache and MLflow references."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import huggingface_hub.constants
import pytest

from yarn_ops.bases import fetch_base
from yarn_ops.catalogue import DIGEST_TAG, ModelVersion
from yarn_ops.digests import tree_files
from yarn_ops.errors import BaseModelError, StoreError
from yarn_ops.models.checkpoints import checkpoint_files
from yarn_ops.recipe import Base
from yarn_ops.records import BaseModel
from yarn_ops.shipped import MODELS
from yarn_ops.store import StoreOptions
from yarn_ops.store.local import LocalStore
from yarn_ops.store.trees import compose_tree, put_tree

BASE512 = MODELS / "base512"
CLEAN = checkpoint_files(BASE512)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fetch(model: str, cache: Path, **more: object) -> tuple[BaseModel, Path]:
    base = Base(model=model, **more)
    return fetch_base(base, cache=cache, store_options=StoreOptions(), find_release=None)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A directory with the checkpoint's files and nothing else."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in CLEAN:
        shutil.copy(BASE512 / name, folder)
    return folder


def keep(repository: Path, name: str, data: bytes) -> None:
    """A file as the hub's client keeps it: a blob by its digest, and a link to it."""
    blob = repository / "blobs" / hashlib.sha256(data).hexdigest()
    blob.write_bytes(data)
    link = repository / "snapshots" / COMMIT / name
    link.unlink(missing_ok=True)
    link.symlink_to(f"../../blobs/{blob.name}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Hugging Face's cache, offline, with one model in it: org/tiny at a commit that main points to."""
    folder = tmp_path / "hub"
    repository = folder / "models--org--tiny"
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in BASE512.iterdir():
        keep(repository, path.name, path.read_bytes())
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    yield folder


def test_a_clean_directory_is_used_in_place(checkpoint: Path, tmp_path: Path) -> None:
    record, path = fetch(str(checkpoint), tmp_path / "cache")
    assert path == checkpoint
    assert (record.source, record.context_tokens, record.tree) == (str(checkpoint), 512, None)
    assert not (tmp_path / "cache" / "bases").exists()


def test_other_files_are_left_out(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "README.md").write_text("# mine")
    (checkpoint / "optimizer.pt").write_bytes(b"state")
    (checkpoint / "logs").mkdir()
    (checkpoint / "logs" / "config.json").write_text("{}")
    _, path = fetch(str(checkpoint), tmp_path / "cache")
    assert list(tree_files(path)) == CLEAN
    assert (path / "config.json").read_bytes() == (checkpoint / "config.json").read_bytes()
    assert fetch(str(checkpoint), tmp_path / "cache")[1] == path


def test_a_changed_directory_gives_another_view(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "README.md").write_text("# mine")
    _, before = fetch(str(checkpoint), tmp_path / "cache")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 256}))
    record, after = fetch(str(checkpoint), tmp_path / "cache")
    assert before != after
    assert record.context_tokens == 256


def test_the_shipped_base_is_found(tmp_path: Path) -> None:
    record, path = fetch("shipped:base512", tmp_path / "cache")
    assert list(tree_files(path)) == CLEAN
    assert record.source == "shipped:base512"


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_a_hub_model_is_recorded_by_its_commit(hub: Path, tmp_path: Path, revision: str) -> None:
    record, path = fetch(f"hf:org/tiny{revision}", tmp_path / "cache")
    assert record.source == f"hf:org/tiny@{COMMIT}"
    assert list(tree_files(path)) == CLEAN


def test_a_hub_model_of_pickles_is_refused(hub: Path, tmp_path: Path) -> None:
    snapshot = hub / "models--org--tiny" / "snapshots" / COMMIT
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match="no safetensors there; pickled weights are refused"):
        fetch("hf:org/tiny", tmp_path / "cache")


def test_a_hub_model_that_brings_code_is_refused(hub: Path, tmp_path: Path) -> None:
    config = json.loads((BASE512 / "config.json").read_bytes()) | {"auto_map": {"AutoModel": "code.Model"}}
    keep(hub / "models--org--tiny", "config.json", json.dumps(config).encode())
    with pytest.raises(BaseModelError, match="remote code, which is never run"):
        fetch("hf:org/tiny", tmp_path / "cache")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("hf:org/absent@main", "cannot be reached and the local cache does not hold it"),
        ("hf:org/tiny@v9", "cannot be reached and the local cache does not hold it"),
        ("hf:", "not a model name"),
        ("hf:../../etc", "not a model name"),
        ("hf:a/b/c", "not a model name"),
        ("shipped:nothing", "not shipped; there is base512"),
        ("shipped:../recipes", "not shipped"),
        ("models:/name@champion", "no MLflow to look it up in"),
        ("ftp://host/model", "unknown kind of base model"),
        ("/no/such/directory", "no such directory"),
    ],
)
def test_a_base_that_cannot_be_found_is_said(hub: Path, tmp_path: Path, model: str, message: str) -> None:
    with pytest.raises(BaseModelError, match=message) as caught:
        fetch(model, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_a_registered_model_is_verified_and_cleaned(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    release = compose_tree(
        store, put_tree(store, BASE512), {"README.md": b"# card"}, f"{store.url}/runs/1/model"
    )
    asked: list[str] = []

    def find_release(reference: str) -> ModelVersion:
        asked.append(reference)
        tags = {DIGEST_TAG: release.digest}
        return ModelVersion("demo-long", 1, release.uri, "", tags, (), "", datetime.now(UTC))

    base = Base(model="models:/demo-long@champion")
    options = {"cache": tmp_path / "cache", "store_options": StoreOptions(), "find_release": find_release}
    record, path = fetch_base(base, **options)
    assert asked == [record.source] == ["models:/demo-long@champion"]
    assert list(tree_files(path)) == CLEAN
    store.write("runs/1/model/config.json", store.read("runs/1/model/config.json").replace(b"512", b"513"))
    with pytest.raises(StoreError, match=r"damaged: config\.json"):
        fetch_base(base, **options)


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StoreError, match="a file stands where a directory is needed"):
        fetch("shipped:base512", tmp_path / "cache")
