"""`yarn-ops push` as typed: to a real OCI registry, to a layout on disk, and by the hub's own client.

The registry is Debian's docker-registry, taken from the package where it is not installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from hub import Hub

from yarn_ops import processes
from yarn_ops.shipped import MODELS
from yarn_ops.store.manifest import MANIFEST
from yarn_ops.store.trees import manifest_of

CARD = (
    "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- long-context\n---\n\n# small\n"
)
PASSWORD = "open sesame"
HTPASSWD = "me:$2b$04$I38rO43vajteROfFtROhhe/QU/YX04NnIHl9nAgSDKZkAlDfkTA82\n"
"""of that password"""
LOGIN = {"YARN_OPS_REGISTRY_USER": "me", "YARN_OPS_REGISTRY_PASSWORD": PASSWORD}
IMAGE = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A released model directory: a card, pictures, two names for the same bytes."""
    out = tmp_path / "small"
    shutil.copytree(MODELS / "base512", out, ignore=shutil.ignore_patterns("pretrain.json"))
    (out / "README.md").write_text(CARD)
    (out / "overview.png").write_bytes(b"\x89PNG\r\n\x1a\n1")
    (out / "capacity.png").write_bytes(b"\x89PNG\r\n\x1a\n1")
    return out


@pytest.fixture
def push(tmp_path: Path):
    """push(model, destination, …, VARIABLE=…): (status, output, complaint)"""

    def run(*words: object, **variables: str) -> tuple[int, str, str]:
        environment = {**os.environ, "YARN_OPS_STATE_DIR": str(tmp_path / "state"), **variables}
        command = [sys.executable, "-c", "from yarn_ops.cli import main; main()", "push", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        return done.returncode, done.stdout, done.stderr

    return run


def files_of(model: Path) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in manifest_of(model).files.items()}


@pytest.fixture(scope="module")
def registry_program(tmp_path_factory: pytest.TempPathFactory) -> str:
    if found := shutil.which("docker-registry"):
        return found
    folder = tmp_path_factory.mktemp("debian")
    try:
        run = partial(subprocess.run, cwd=folder, check=True, capture_output=True, timeout=60)
        run(["apt-get", "download", "docker-registry"])
        run(["dpkg", "-x", *folder.glob("*.deb"), "x"])
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no docker-registry, and none to be had; apt-get install docker-registry")
    return str(folder / "x/usr/bin/docker-registry")


class Registry:
    """A running docker-registry and its log."""

    def __init__(self, program: str, folder: Path, auth: dict) -> None:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.host = f"127.0.0.1:{one.getsockname()[1]}"
        config = {
            "version": 0.1,
            "log": {"accesslog": {"disabled": False}},
            "storage": {"filesystem": {"rootdirectory": str(folder / "blobs")}},
            "http": {"addr": self.host, "secret": "s"},
            **auth,
        }
        (folder / "config.yml").write_text(json.dumps(config))
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [program, "serve", folder / "config.yml"], stdout=log, stderr=log, start_new_session=True
            )
        for _ in range(200):
            try:
                httpx.get(f"http://{self.host}/v2/")
                return
            except httpx.HTTPError:
                time.sleep(0.1)
        raise AssertionError(self._log.read_text())

    def sent(self) -> int:
        """How many blobs were sent to it."""
        return sum(
            '"PUT /v2/' in line and "/blobs/uploads/" in line for line in self._log.read_text().splitlines()
        )

    def pulled(self, at: str, **options) -> dict[str, str]:
        """{title: sha256 of what is fetched} of an artifact."""
        name, _, tag = at.partition(":")
        with httpx.Client(base_url=f"http://{self.host}/v2/{name}/", **options) as client:
            image = client.get(f"manifests/{tag}", headers={"Accept": IMAGE}).raise_for_status().json()
            assert image["artifactType"] == "application/vnd.yarn-ops.model.v1"
            blobs = {
                layer["annotations"]["org.opencontainers.image.title"]: client.get(f"blobs/{layer['digest']}")
                for layer in image["layers"]
            }
            assert client.get(f"blobs/{image['config']['digest']}").content == b"{}"
        return {title: hashlib.sha256(blob.content).hexdigest() for title, blob in blobs.items()}

    def stop(self) -> None:
        processes.stop(self._process)


@pytest.fixture
def registry(registry_program: str, tmp_path: Path) -> Iterator[Registry]:
    """Wants a user and a password."""
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    auth = {"auth": {"htpasswd": {"realm": "here", "path": str(tmp_path / "htpasswd")}}}
    running = Registry(registry_program, tmp_path, auth)
    yield running
    running.stop()


def test_a_registry_has_the_model_and_what_is_there_is_not_sent_again(push, model, registry):
    to = f"oci://{registry.host}/models/small:v1"
    status, said, complaint = push(model, to)
    assert status == 2 and "wants a login" in complaint and complaint.count("\n") == 1
    status, said, complaint = push(model, to, **LOGIN | {"YARN_OPS_REGISTRY_PASSWORD": "other"})
    assert status == 2 and "may not push" in complaint and "other" not in complaint
    assert registry.sent() == 0
    status, said, complaint = push(model, to, **LOGIN)
    assert status == 0, complaint
    assert said.startswith(f"small -> {to}@sha256:")
    assert registry.pulled("models/small:v1", auth=("me", PASSWORD)) == files_of(model)
    first = registry.sent()
    assert first == len({*files_of(model).values()}) + 1  # and the empty config
    (model / "README.md").write_text(CARD + "More.\n")
    assert push(model, to.replace("v1", "v2"), **LOGIN)[0] == 0
    assert registry.sent() == first + 1
    assert registry.pulled("models/small:v2", auth=("me", PASSWORD)) == files_of(model)


def test_a_token_is_fetched_where_the_registry_says(push, model, registry_program, tmp_path):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            asked.append((self.path, self.headers["Authorization"]))
            data = b'{"token": "t"}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    silly = {"realm": f"http://127.0.0.1:{server.server_port}/token", "service": "here"}
    running = Registry(registry_program, tmp_path, {"auth": {"silly": silly}})
    try:
        status, _, complaint = push(model, f"oci://{running.host}/small", **LOGIN)
        assert status == 0, complaint
    finally:
        running.stop()
        server.shutdown()
        server.server_close()
    path, login = asked[0]
    assert "service=here" in path and b64decode(login.split()[1]).decode() == f"me:{PASSWORD}"


def test_a_layout_on_disk_holds_several_and_is_mended(push, model, tmp_path):
    layout = tmp_path / "layout"
    for tag in ("v1", "v2", "v2"):
        status, _, complaint = push(model, f"oci:{layout}:{tag}")
        assert status == 0, complaint
        (model / "README.md").write_text(CARD + "More.\n")
        (layout / "blobs/sha256" / files_of(model)["config.json"]).write_bytes(b"{}")
    push(model, f"oci:{layout}:v2")
    index = json.loads((layout / "index.json").read_bytes())["manifests"]
    assert [one["annotations"]["org.opencontainers.image.ref.name"] for one in index] == ["v1", "v2"]
    assert json.loads((layout / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    for blob in (layout / "blobs/sha256").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    image = json.loads((layout / "blobs/sha256" / index[1]["digest"].removeprefix("sha256:")).read_bytes())
    titles = {one["annotations"]["org.opencontainers.image.title"]: one["digest"] for one in image["layers"]}
    assert titles == {name: f"sha256:{digest}" for name, digest in files_of(model).items()}


@pytest.mark.parametrize(
    ("to", "told"),
    [
        ("s3://bucket/x", "is no destination; write hf:OWNER/NAME"),
        ("hf:", "is no destination"),
        ("oci://127.0.0.1:1/small", "cannot be asked"),
        ("oci://127.0.0.1:1/Small", "is not a repository's name"),
        ("oci://127.0.0.1:1/small:a b", "is not a tag"),
        ("oci:FOLDER", "is no OCI image layout"),
        ("hf:a/b/c", "write hf:OWNER/NAME"),
    ],
)
def test_a_fault_of_what_was_typed_is_one_line(push, model, tmp_path, to, told):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    status, _, complaint = push(model, to.replace("FOLDER", str(tmp_path / "full")))
    assert status == 2 and told in complaint and complaint.count("\n") == 1, complaint


def test_a_hub_that_cannot_be_reached_is_one_line(push, model):
    away = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_x"}
    status, out, err = push(model, "hf:me/small", **away)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "hf:me/small: cannot be sent (" in err and err.endswith("; push again\n")


def test_what_is_no_model_or_is_damaged_is_not_sent(push, model, tmp_path):
    to = f"oci:{tmp_path / 'layout'}"
    (model / ".env").write_text("TOKEN=1")
    status, _, complaint = push(model, to)
    assert status == 2 and "holds .env, which is no file of a model" in complaint
    (model / ".env").unlink()
    (model / MANIFEST).write_bytes(manifest_of(model).to_bytes())
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "model.safetensors").write_bytes(data)
    status, _, complaint = push(model, to)
    assert status == 2 and "model.safetensors" in complaint and "pull it again" in complaint
    assert not (tmp_path / "layout").exists()


@pytest.fixture
def hub() -> Iterator[Hub]:
    running = Hub()
    yield running
    running.close()


def test_a_repository_has_the_model_after_a_push_that_broke(push, model, hub, tmp_path):
    there = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
    there |= {"HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_wrong"}
    status, _, complaint = push(model, "hf:me/small", **there)
    assert status == 2 and "set HF_TOKEN" in complaint and "hf_wrong" not in complaint
    assert complaint.count("\n") == 1
    there["HF_TOKEN"] = "hf_right"
    hub.breaks = 1
    status, _, complaint = push(model, "hf:me/small", **there)
    assert status == 2 and "push again" in complaint and complaint.count("\n") == 1, complaint
    assert hub.created["visibility"] == "private" and "old.safetensors" in hub.files
    hub.breaks = None
    status, said, complaint = push(model, "hf:me/small", **there)
    assert status == 0, complaint
    assert said == f"small -> {hub.url}/me/small/commit/c\n"
    assert len(hub.uploads) == len({*hub.uploads}) == 2  # weights, and one picture for both
    kept = {name: hashlib.sha256(data).hexdigest() for name, (_, data) in hub.files.items()}
    assert kept == {**files_of(model), ".gitattributes": hashlib.sha256(b"").hexdigest()}
    hub.flips = True
    status, _, complaint = push(model, "hf:me/small", "--public", **there)
    assert status == 2 and "holds other bytes of config.json than were sent" in complaint


@pytest.mark.parametrize(
    ("card", "told"),
    [
        (None, "has no README.md"),
        ("# no front matter\n", "names no library_name"),
        ("---\ntags: [a\n---\n", "cannot be read"),
    ],
)
def test_a_card_that_the_hub_cannot_read_is_refused_first(push, model, tmp_path, card, told):
    (model / "README.md").unlink()
    if card is not None:
        (model / "README.md").write_text(card)
    status, _, complaint = push(model, "hf:me/small", HF_ENDPOINT="http://127.0.0.1:1", HF_TOKEN="hf_right")
    assert status == 2 and told in complaint and complaint.count("\n") == 1, complaint
