"""No file of this machine comes into a run, a release or an export through a link in a model directory."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from yarn_ops.bases import fetch_base
from yarn_ops.cli.rope import directory_of
from yarn_ops.digests import tree_files
from yarn_ops.errors import BaseModelError
from yarn_ops.export.model import export_model, place_files
from yarn_ops.models.checkpoints import checkpoint_files, load_tokenizer, refuse_links
from yarn_ops.models.files import CONFIG, TOKENIZER_FILES, open_model_file
from yarn_ops.models.inspection import inspect_checkpoint
from yarn_ops.opening import open_regular
from yarn_ops.recipe import Base
from yarn_ops.store import StoreOptions

SECRET = "a secret of this machine"
LINKED = [name for name in TOKENIZER_FILES if name != "tokenizer_config.json"]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "host" / "secret"
    path.parent.mkdir()
    path.write_text(SECRET)
    return path


def fetch(model: Path | str, tmp_path: Path) -> Path:
    options = StoreOptions()
    return fetch_base(
        Base(model=str(model)), cache=tmp_path / "cache", store_options=options, find_release=None
    )[1]


def refused(model: Path | str, tmp_path: Path) -> str:
    with pytest.raises(BaseModelError, match="outside of the model directory") as caught:
        fetch(model, tmp_path)
    assert "\n" not in str(caught.value)
    assert not any(SECRET in file.read_text("latin1") for file in tree_files(tmp_path / "cache").values())
    return str(caught.value)


@pytest.mark.parametrize("name", [*LINKED, "generation_config.json"])
def test_a_link_to_a_file_of_the_machine(checkpoint: Path, secret: Path, tmp_path: Path, name: str) -> None:
    (checkpoint / name).unlink(missing_ok=True)
    (checkpoint / name).symlink_to(secret)
    assert f"{name}: a link to {secret}" in refused(checkpoint, tmp_path)
    with pytest.raises(BaseModelError, match="outside of"):
        directory_of(str(checkpoint), None)
    with pytest.raises(BaseModelError, match="outside of"):
        place_files(checkpoint, tmp_path / "export", [name])


@pytest.mark.parametrize("name", [CONFIG, "tokenizer_config.json", "model.safetensors"])
def test_a_link_to_what_is_needed(checkpoint: Path, tmp_path: Path, name: str) -> None:
    outside = (checkpoint / name).rename(tmp_path / name)
    (checkpoint / name).symlink_to(outside)
    assert f"{name}: a link to {outside}" in refused(checkpoint, tmp_path)
    with pytest.raises(BaseModelError, match="outside of"):
        export_model(checkpoint, "vllm", to=None, weights="f16", report=lambda *_: None)


@pytest.mark.parametrize("way", ["chain", "directory", "relative", "absolute target within"])
def test_ways_out(checkpoint: Path, secret: Path, tmp_path: Path, way: str) -> None:
    template = checkpoint / "chat_template.jinja"
    if way == "chain":
        (checkpoint / "one").symlink_to(secret)
        template.symlink_to(checkpoint / "one")
    elif way == "directory":
        (checkpoint / "folder").symlink_to(secret.parent)
        template.symlink_to("folder/secret")
    elif way == "relative":
        template.symlink_to("../host/secret")
    else:
        template.symlink_to(checkpoint / ".." / "host" / "secret")
    refused(checkpoint, tmp_path)
    refused(checkpoint.as_uri(), tmp_path)


def test_links_within_are_followed(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "files").mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (checkpoint / name).rename(checkpoint / "files" / name)
        (checkpoint / name).symlink_to(Path("files") / name)
    (tmp_path / "current").symlink_to(checkpoint)
    for model in (checkpoint, tmp_path / "current"):
        view = fetch(model, tmp_path)
        assert not (view / "tokenizer.json").is_symlink()
        assert len(load_tokenizer(view)) == 8192


@pytest.mark.parametrize("shared", [False, True])
def test_a_snapshot_links_to_the_blobs_of_its_cache(checkpoint: Path, tmp_path: Path, shared: bool) -> None:
    """As Hugging Face's client lays them out, with and without blobs that models share."""
    repository = tmp_path / "hub" / "models--org--tiny"
    snapshot, blobs = repository / "snapshots" / "0123", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    common = tmp_path / "hub" / "blobs"
    common.mkdir()
    if shared:
        (common / ".huggingface-shared-blobs").write_text("1\n")
    for file in checkpoint.iterdir():
        shutil.copy(file, (common if shared else blobs) / file.name)
        if shared:
            (blobs / file.name).symlink_to(Path("../../blobs") / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert inspect_checkpoint(snapshot, source="base").parameters == 5048576
    assert (fetch(snapshot, tmp_path) / CONFIG).read_bytes() == (checkpoint / CONFIG).read_bytes()
    (common / ".huggingface-shared-blobs").unlink(missing_ok=True)
    if shared:
        refused(snapshot, tmp_path)


def test_blobs_that_lead_on_are_no_blobs(checkpoint: Path, secret: Path, tmp_path: Path) -> None:
    snapshot = Path(shutil.copytree(checkpoint, tmp_path / "evil" / "snapshots" / "1"))
    (tmp_path / "evil" / "blobs").symlink_to(secret.parent)
    (snapshot / "chat_template.jinja").symlink_to("../../blobs/secret")
    refused(snapshot, tmp_path)


@pytest.mark.parametrize("place", ["../other.safetensors", "/other.safetensors", "a/b.safetensors", "..", ""])
def test_an_index_names_files_beside_it_only(checkpoint: Path, shard, tmp_path: Path, place: str) -> None:
    index = shard(checkpoint)
    shutil.copy(checkpoint / "model-00001-of-00002.safetensors", tmp_path / "other.safetensors")
    index["weight_map"]["model.norm.weight"] = str(tmp_path) + place if place.startswith("/") else place
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BaseModelError, match="only safetensors beside the index are read"):
        refuse_links(checkpoint)


def test_named_templates_are_read_from_the_directory_alone(checkpoint: Path, secret: Path) -> None:
    named = checkpoint / "additional_chat_templates" / "tool_use.jinja"
    named.parent.mkdir()
    (checkpoint / "chat_template.jinja").write_text("own")
    named.write_text("tools")
    assert load_tokenizer(checkpoint).chat_template == {"default": "own", "tool_use": "tools"}
    assert "additional_chat_templates/tool_use.jinja" in checkpoint_files(checkpoint)
    named.unlink()
    named.symlink_to(secret)
    with pytest.raises(BaseModelError, match="outside of the model directory"):
        load_tokenizer(checkpoint)


@pytest.mark.parametrize("swapped", ["file", "folder"])
def test_a_link_put_there_between_check_and_use_is_not_followed(
    tmp_path: Path, secret: Path, swapped: str
) -> None:
    """Reads a file while another thread keeps exchanging it, or its folder, for a link."""
    place = tmp_path / "folder" / "template"
    place.parent.mkdir()
    place.write_text("own")
    (tmp_path / "host" / "template").write_text(SECRET)
    own = place if swapped == "file" else place.parent
    link = tmp_path / "link"
    link.symlink_to(secret if swapped == "file" else secret.parent)
    over = threading.Event()

    def exchange() -> None:
        kept = tmp_path / "kept"
        while not over.is_set():
            own.rename(kept)
            link.rename(own)
            own.rename(link)
            kept.rename(own)

    thread = threading.Thread(target=exchange)
    thread.start()
    outcomes: dict[str, int] = {}
    try:
        for _ in range(4000):
            try:
                with open_regular(place) as file:
                    outcome = file.read().decode()
            except OSError as error:
                outcome = str(error.errno)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    finally:
        over.set()
        thread.join()
    assert SECRET not in outcomes
    assert outcomes["own"] and len(outcomes) > 1, outcomes


def test_what_is_no_regular_file_is_not_waited_for(checkpoint: Path) -> None:
    for name, make in {"fifo": os.mkfifo, "folder": os.mkdir}.items():
        make(checkpoint / name)
        with pytest.raises(BaseModelError, match="not a regular file"):
            open_model_file(checkpoint, name)
