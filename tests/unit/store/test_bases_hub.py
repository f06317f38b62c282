"""A base in Hugging Face's cache is held to the hub's digests: from its API, or from its blobs' names."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import constants

from yarn_ops.bases import fetch_base
from yarn_ops.digests import digest_tree
from yarn_ops.errors import BaseModelError
from yarn_ops.models.checkpoints import checkpoint_files
from yarn_ops.recipe import Base
from yarn_ops.shipped import MODELS
from yarn_ops.store import StoreOptions

BASE512 = MODELS / "base512"
CLEAN = checkpoint_files(BASE512)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = ".safetensors"
"""names of what the hub keeps in its large file storage end so"""


def hub_digest(name: str) -> str:
    """As the hub names a file: by sha256 where it is large, by git's digest otherwise."""
    data = (BASE512 / name).read_bytes()
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """The requests that the hub's own client makes for one model, answered from this directory."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        if self.path.startswith("/api/models/org/tiny/tree/"):
            self._answer(json.dumps(self._listing()).encode())
        elif self.path.startswith("/api/models/org/tiny/"):
            self._answer(json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": self._siblings()}).encode())
        elif self.path.startswith(f"/org/tiny/resolve/{COMMIT}/") and name in CLEAN:
            self._answer((BASE512 / name).read_bytes(), ETag=f'"{hub_digest(name)}"')
        else:
            self.send_error(404)

    def _listing(self) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": one["rfilename"], "size": one["size"], "oid": one["blobId"]}
            | ({"lfs": {**one["lfs"], "oid": one["lfs"]["sha256"]}} if "lfs" in one else {})
            for one in self._siblings()
        ]

    def _siblings(self) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = []
        for name in CLEAN:
            size = (BASE512 / name).stat().st_size
            lfs = {"sha256": hub_digest(name), "size": size, "pointerSize": 130}
            blob = {"blobId": "0" * 40, "lfs": lfs} if name.endswith(LARGE) else {"blobId": hub_digest(name)}
            told.append({"rfilename": name, "size": size, **blob})
        return told

    def _answer(self, data: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A hub on loopback, and a cache of its own for its client."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def fetch(tmp_path: Path) -> dict[str, str]:
    _, path = fetch_base(
        Base(model=f"hf:org/tiny@{COMMIT}"),
        cache=tmp_path / "cache",
        store_options=StoreOptions(),
        find_release=None,
    )
    return digest_tree(path)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def snapshot(tmp_path: Path) -> Path:
    return tmp_path / "hub" / "models--org--tiny" / "snapshots" / COMMIT


ORIGINALS = {name: digest for name, digest in digest_tree(BASE512).items() if name in CLEAN}


@pytest.mark.parametrize("seed", range(5))
def test_what_is_damaged_is_fetched_again(hub: ThreadingHTTPServer, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    assert fetch(tmp_path) == ORIGINALS
    name, other = draw.sample(CLEAN, 2)
    path, second = snapshot(tmp_path) / name, snapshot(tmp_path) / other
    match seed:
        case 0:
            flip(snapshot(tmp_path) / "model.safetensors")
        case 1:
            path.write_bytes(b"")
        case 2:
            path.unlink()
        case 3:  # each is whole, under the other's name
            one, two = path.readlink(), second.readlink()
            for link, target in ((path, two), (second, one)):
                link.unlink()
                link.symlink_to(target)
        case 4:
            flip(path)
            flip(next((tmp_path / "cache" / "bases").glob("*.json")))
    assert fetch(tmp_path) == ORIGINALS


def test_without_the_hub_a_damaged_file_is_refused_by_name(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    fetch(tmp_path)
    hub.shutdown()
    hub.server_close()
    constants.HF_HUB_OFFLINE = True
    shutil.rmtree(tmp_path / "cache")
    assert fetch(tmp_path) == ORIGINALS  # the blobs' names tell their digests
    flip(snapshot(tmp_path) / "model.safetensors")
    for _ in range(2):
        with pytest.raises(
            BaseModelError,
            match=r"damaged: model\.safetensors \(digest .*cannot be fetched again: .*go online",
        ) as caught:
            fetch(tmp_path)
        assert "\n" not in str(caught.value)


def test_files_of_which_nothing_tells_the_digest_are_refused_offline(
    hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    snapshot(tmp_path).parent.mkdir(parents=True)
    shutil.copytree(BASE512, snapshot(tmp_path))
    assert fetch(tmp_path) == ORIGINALS  # the hub tells them
    shutil.rmtree(tmp_path / "cache")
    constants.HF_HUB_OFFLINE = True
    with pytest.raises(BaseModelError, match=r"nothing tells what its bytes should be.*give the directory"):
        fetch(tmp_path)
