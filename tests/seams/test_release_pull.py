"""Releases that somebody rewrote in the store, or that hold code: refused by name, and nothing is left."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from yarn_ops.bases import fetch_base
from yarn_ops.catalogue import DIGEST_TAG, ModelVersion
from yarn_ops.cli.pull import check_files, check_list, pull_release
from yarn_ops.cli.push import push
from yarn_ops.errors import StoreError, YarnOpsError
from yarn_ops.models.checkpoints import checkpoint_files
from yarn_ops.recipe import Base
from yarn_ops.release import open_tracking
from yarn_ops.settings import Settings
from yarn_ops.shipped import MODELS
from yarn_ops.store import StoreOptions, open_store
from yarn_ops.store.local import LocalStore
from yarn_ops.store.manifest import MANIFEST
from yarn_ops.store.pull import pull_tree
from yarn_ops.store.trees import manifest_of, put_tree_at

BASE512 = MODELS / "base512"
CHECKPOINT = {name: (BASE512 / name).read_bytes() for name in checkpoint_files(BASE512)}
TEMPLATES = {"chat_template.jinja": b"own", "additional_chat_templates/tool_use.jinja": b"tools"}
FILES = {**CHECKPOINT, **TEMPLATES, "README.md": b"# card"}


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(state_dir=tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def published(settings: Settings) -> Path:
    """Where `rewritten` version 1 lies, in a store on this machine; and `early` 1, without a digest."""
    store, tracking = open_store(settings.store), open_tracking(settings)
    source = lay(settings.home / "source", FILES)
    run_id = tracking.start_run("extend", "first", {})
    uri = f"{tracking.artifact_uri(run_id)}/model"
    manifest = put_tree_at(store, source, store.key_of(uri))
    tags = {"gate": "passed"}
    tracking.register("rewritten", uri, run_id, {**tags, DIGEST_TAG: manifest.digest})
    tracking.register("early", uri, run_id, tags)
    assert isinstance(store, LocalStore)
    return store.root / store.key_of(uri)


@pytest.fixture
def rewritten(published: Path) -> Iterator[Callable[[dict[str, bytes]], None]]:
    """Puts other files into the store, and a list that fits them; what was there comes back."""

    def rewrite(files: dict[str, bytes]) -> None:
        shutil.rmtree(published)
        lay(published, files)
        (published / MANIFEST).write_bytes(manifest_of(published).to_bytes())

    yield rewrite
    rewrite(FILES)


@pytest.fixture(autouse=True)
def state(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YARN_OPS_STATE_DIR", str(settings.home))


def pull(name: str, to: Path) -> ModelVersion:
    return pull_release(name, to, tags={}, alias=None, version=None, include_rejected=False)


def test_a_registered_model_is_pulled_and_sent(published, tmp_path, capsys):
    push("rewritten", f"oci:{tmp_path / 'layout'}:v1")
    assert capsys.readouterr().out.startswith(f"rewritten version 1 -> oci:{tmp_path / 'layout'}:v1@sha256:")
    sent = {path.name for path in (tmp_path / "layout/blobs/sha256").iterdir()}
    assert {hashlib.sha256(data).hexdigest() for data in FILES.values()} <= sent


CONFIG = json.loads(FILES["config.json"])
TENSORS = FILES["model.safetensors"]
OTHERS = {
    "another config": {**FILES, "config.json": json.dumps(CONFIG | {"rms_norm_eps": 0.5}).encode()},
    "another weight": {**FILES, "model.safetensors": TENSORS[:-1] + bytes([TENSORS[-1] ^ 1])},
    "a file more": {**FILES, "merges.txt": b"a b"},
    "a file less": {name: data for name, data in FILES.items() if name != "README.md"},
    "another name": {
        **{name: data for name, data in FILES.items() if name != "README.md"},
        "readme.md": b"# card",
    },
}


@pytest.mark.parametrize("change", OTHERS)
def test_a_list_rewritten_with_its_files_is_refused(
    rewritten: Callable[[dict[str, bytes]], None], tmp_path: Path, change: str
) -> None:
    rewritten(OTHERS[change])
    with pytest.raises(
        YarnOpsError, match=r"^rewritten version 1: \S+/manifest\.json lists other files"
    ) as refusal:
        pull("rewritten", tmp_path / "to")
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_taken_as_a_base_is_checked_the_same(
    rewritten: Callable[[dict[str, bytes]], None], settings: Settings, tmp_path: Path
) -> None:
    def fetch() -> None:
        base = Base(model="models:/rewritten/1")
        find = open_tracking(settings).behind
        fetch_base(base, cache=tmp_path, store_options=StoreOptions(), find_release=find)

    fetch()
    rewritten(OTHERS["another config"])
    with pytest.raises(StoreError, match="not the directory that was recorded"):
        fetch()


def test_a_base_whose_list_is_gone_is_not_taken_without(
    published: Path, settings: Settings, tmp_path: Path
) -> None:
    listed = published / MANIFEST
    text = listed.read_bytes()
    listed.unlink()
    try:
        with pytest.raises(StoreError, match="what was released there is gone"):
            fetch_base(
                Base(model="models:/rewritten/1"), cache=tmp_path, store_options=StoreOptions(),
                find_release=open_tracking(settings).behind,
            )  # fmt: skip
    finally:
        listed.write_bytes(text)


def test_what_was_released_arrives(published: Path, tmp_path: Path) -> None:
    assert pull("rewritten", tmp_path / "to").tree_digest is not None
    assert pull("rewritten", tmp_path / "to").version == 1  # once more, into the same directory
    assert {name: (tmp_path / "to" / name).read_bytes() for name in FILES} == FILES


def test_a_release_from_before_is_pulled_uncovered(published: Path, tmp_path: Path) -> None:
    assert pull("early", tmp_path / "to").tree_digest is None


# Code


def with_key(name: str, key: str, value: object = "x", **more: object) -> dict[str, bytes]:
    known = json.loads(FILES.get(name, b"{}"))
    return {name: json.dumps({**known, key: value, **more}).encode()}


def zipped() -> bytes:
    with zipfile.ZipFile(made := BytesIO(), "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x04.")
    return made.getvalue()


NAMES = (
    "modeling_llama.py", "MODELING.PY", "setup.pyc", "tokenizer.json.py", "pytorch_model.bin", "model.pkl",
    "weights.pt", "model.PTH", "last.ckpt", "arrays.npz", "model.h5", "model.onnx", "kernel.so",
    "libcuda.so.1", "module.pyd", "plugin.dll", "run.sh", "Makefile", "page.html", "card.MD", "Config.json",
    "config.json ", "model.safetensors.bak", "adapter_config.json", "preprocessor_config.json",
    "requirements.txt", ".env", "sub/config.json", "sub/x.safetensors", ".hidden.safetensors",
    "-x.safetensors",
)  # fmt: skip
CONTENTS: dict[str, dict[str, bytes]] = {
    "auto_map": with_key("config.json", "auto_map", {"AutoModelForCausalLM": "modeling.Model"}),
    "auto_map, emptied by a second one": {
        "config.json": b'{"auto_map": {"AutoConfig": "x.Y"}, "auto_map": null, '
        + FILES["config.json"].lstrip()[1:]
    },
    "auto_map in a part": with_key("config.json", "text_config", {"auto_map": {"AutoConfig": "a/b--c.D"}}),
    "auto_map in a list": with_key("config.json", "parts", [[{"auto_map": {}}]]),
    "auto_map of the tokenizer": with_key(
        "tokenizer_config.json", "tokenizer_class", "Mine", auto_map={"AutoTokenizer": ["tok.Mine", None]}
    ),
    "auto_map of generation": with_key("generation_config.json", "auto_map", {}),
    "auto_map of special tokens": with_key("special_tokens_map.json", "auto_map", {}),
    "remote code asked for": with_key("tokenizer_config.json", "trust_remote_code", value=True),
    "a pipeline": with_key("config.json", "custom_pipelines", {"x": {"impl": "x.Y"}}),
    "a quantisation's kernels": with_key("config.json", "quantization_config", {"quant_method": "gptq"}),
    "attention from the hub": with_key("config.json", "attn_implementation", "evil/attention"),
    "attention from the hub, inner": with_key(
        "config.json", "_attn_implementation", "flash|evil/attention:f"
    ),
    "kernels from the hub": with_key("config.json", "hub_kernel_repo", "evil/kernels"),
    "no JSON": {"generation_config.json": b"import os"},
    "a nest": {"generation_config.json": b'{"a":' * 100_000},
    "a pickle for weights": {"model.safetensors": zipped()},
    "an archive behind the weights": {"model.safetensors": TENSORS + zipped()},
    "a tensor file of no model": {"evil.safetensors": TENSORS},
    "an archive for a tensor file": {"evil.safetensors": zipped()},
    "weights elsewhere": {
        "model.safetensors.index.json": json.dumps({"weight_map": {"x": "../../evil.safetensors"}}).encode()
    },
    "a header longer than the file": {"model.safetensors": struct.pack("<Q", 1 << 40) + TENSORS[8:]},
}


@pytest.fixture
def early(published: Path) -> ModelVersion:
    return ModelVersion("early", 1, published.as_uri(), "", {}, (), "", None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_no_model_has_is_refused_before_any_arrives(
    early: ModelVersion, tmp_path: Path, name: str
) -> None:
    manifest = manifest_of(lay(tmp_path / "made", {**FILES, name: b"x"}))
    with pytest.raises(YarnOpsError, match=r"which is no file of a model directory and may be code"):
        check_list(early, manifest)
    with pytest.raises(YarnOpsError, match="lists other files"):  # and the digest speaks first
        check_list(replace(early, tags={DIGEST_TAG: "0" * 64}), manifest)


@pytest.mark.parametrize("what", CONTENTS)
def test_what_asks_for_code_is_refused_and_does_not_stay(tmp_path: Path, what: str) -> None:
    files = {**FILES, **CONTENTS[what]}
    if "model.safetensors.index.json" in files:
        del files["model.safetensors"]
    store = LocalStore(tmp_path / "store")
    put_tree_at(store, lay(tmp_path / "made", files), "model")
    with pytest.raises(YarnOpsError) as refusal:
        pull_tree(store, f"{store.url}/model", tmp_path / "new" / "to", check=check_files)
    assert "\n" not in str(refusal.value)
    assert [
        path for path in (tmp_path / "new").rglob("*") if path.is_file() and ".files" not in str(path)
    ] == []
    shutil.copytree(store.root / "model", tmp_path / "there")
    with pytest.raises(YarnOpsError):  # nor is one that is there already
        pull_tree(store, f"{store.url}/model", tmp_path / "there", check=check_files)


def test_every_shipped_model_is_taken(tmp_path: Path) -> None:
    models = [model for model in MODELS.iterdir() if (model / "config.json").is_file()]
    assert models
    for model in models:
        files = {name: (model / name).read_bytes() for name in checkpoint_files(model)}
        folder = lay(tmp_path / model.name, files)
        check_files(folder, manifest_of(folder))


def test_what_a_person_adds_to_a_pulled_model_is_theirs(published: Path, tmp_path: Path) -> None:
    pull("rewritten", tmp_path / "to")
    (tmp_path / "to" / "capacity.html").write_text("<p>measured here</p>")
    pull("rewritten", tmp_path / "to")
