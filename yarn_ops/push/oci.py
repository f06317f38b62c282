"""A model as an OCI artifact, as `oras pull` takes it: one layer a file, its name in the layer's title.

To an image layout on disk, or to a registry over HTTP (OCI distribution 1.1). Blobs are named by their
sha256, so that what is there already is not sent again, and a push that broke goes on with the next blob.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from yarn_ops.atomic import atomic_write, disk_errors
from yarn_ops.digests import CHUNK_BYTES, canonical_json, file_digest
from yarn_ops.errors import ReleaseError
from yarn_ops.outward import LOOPBACK
from yarn_ops.progress import OnProgress
from yarn_ops.secrecy import without_secrets
from yarn_ops.store.manifest import FileEntry, Manifest

IMAGE = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
ARTIFACT = "application/vnd.yarn-ops.model.v1"
EMPTY, EMPTY_TYPE = b"{}", "application/vnd.oci.empty.v1+json"
LAYER = "application/octet-stream"
TITLE, REFERENCE = "org.opencontainers.image.title", "org.opencontainers.image.ref.name"
NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
CONNECT_S, ANSWER_S, TRIES = 10.0, 600.0, 3
WORDS = 160
"""letters of a registry's own complaint that are repeated"""
Login = tuple[str, str]
"""user and password"""


def artifact(manifest: Manifest, annotations: Mapping[str, str]) -> bytes:
    """The image manifest of a directory's files."""
    return canonical_json({
        "schemaVersion": 2,
        "mediaType": IMAGE,
        "artifactType": ARTIFACT,
        "config": _descriptor(EMPTY_TYPE, EMPTY),
        "layers": [
            {"mediaType": LAYER, "digest": f"sha256:{entry.sha256}", "size": entry.size_bytes,
             "annotations": {TITLE: name}}
            for name, entry in manifest.files.items()
        ],
        "annotations": dict(annotations),
    }).encode()  # fmt: skip


def write_layout(
    folder: Path, manifest: Manifest, to: Path, tag: str, annotations: Mapping[str, str], report: OnProgress
) -> str:
    """Put the files into the image layout `to`, beside what it holds; the digest of the image manifest.

    ReleaseError: `to` is something else, the tag is none, or a file is not what its manifest says.
    """
    _require(TAG, tag, "a tag")
    image = artifact(manifest, annotations)
    with disk_errors(to):
        known = _index_of(to)
        done, blobs = 0, to / "blobs/sha256"
        blobs.mkdir(parents=True, exist_ok=True)
        for name, entry in manifest.files.items():
            report(done, manifest.size_bytes, name)
            _put_file(folder / name, entry, blobs / entry.sha256)
            done += entry.size_bytes
        for data in (EMPTY, image):
            with atomic_write(blobs / hashlib.sha256(data).hexdigest()) as draft:
                draft.write_bytes(data)
        described = _descriptor(IMAGE, image) | {"artifactType": ARTIFACT, "annotations": {REFERENCE: tag}}
        kept = [one for one in known if (one.get("annotations") or {}).get(REFERENCE) != tag]
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*kept, described]}
        for name, value in (("oci-layout", {"imageLayoutVersion": "1.0.0"}), ("index.json", index)):
            with atomic_write(to / name) as draft:
                draft.write_text(canonical_json(value), "utf-8")
    report(manifest.size_bytes, manifest.size_bytes, "")
    return str(described["digest"])


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _index_of(layout: Path) -> list[dict[str, Any]]:
    """What a layout holds; nothing where there is none yet."""
    if not layout.exists() or (layout.is_dir() and not any(layout.iterdir())):
        return []
    try:
        found = json.loads((layout / "index.json").read_bytes())["manifests"]
        if (layout / "oci-layout").is_file() and all(isinstance(one, dict) for one in found):
            return list(found)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ReleaseError(f"{layout}: is no OCI image layout; remove it or choose another directory")


def _put_file(path: Path, entry: FileEntry, blob: Path) -> None:
    if blob.is_file() and file_digest(blob) == entry.sha256:
        return
    with atomic_write(blob) as draft:
        shutil.copyfile(path, draft)
        if file_digest(draft) != entry.sha256:
            raise ReleaseError(f"{path}: changed while it was read; push again when it is whole")


def _require(pattern: re.Pattern[str], value: str, what: str) -> None:
    if not pattern.fullmatch(value):
        raise ReleaseError(f"{value!r}: is not {what} as OCI writes it ({pattern.pattern}); correct it")


class OciRegistry:
    """A repository of an OCI registry. Every method raises ReleaseError, in one line."""

    def __init__(self, host: str, name: str, login: Login | None) -> None:
        """login: None asks as anybody. A registry on this machine is asked without TLS."""
        _require(NAME, name, "a repository's name")
        here = urlsplit(f"//{host}").hostname in LOOPBACK
        self.url, self.name = f"{'http' if here else 'https'}://{host}", name
        self._login, self._authorization = login, ""
        self._client = httpx.Client(timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S), verify=not here)

    def __enter__(self) -> OciRegistry:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def push(
        self, folder: Path, manifest: Manifest, tag: str, annotations: Mapping[str, str], report: OnProgress
    ) -> str:
        """Send what the registry does not have, the image manifest last; its digest, as the registry gives
        it back."""
        _require(TAG, tag, "a tag")
        try:
            return self._push(folder, manifest, tag, artifact(manifest, annotations), report)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            told = without_secrets(str(error)) or type(error).__name__
            raise ReleaseError(
                f"{self.url}: cannot be asked ({told}); start it, or correct it, and push again"
            ) from None

    def _push(self, folder: Path, manifest: Manifest, tag: str, image: bytes, report: OnProgress) -> str:
        done = 0
        self._put_blob(hashlib.sha256(EMPTY).hexdigest(), len(EMPTY), lambda: iter([EMPTY]))
        for name, entry in manifest.files.items():

            def content(name: str = name, done: int = done) -> Iterator[bytes]:
                sent = done
                with (folder / name).open("rb") as file:
                    while chunk := file.read(CHUNK_BYTES):
                        report(sent, manifest.size_bytes, name)
                        yield chunk
                        sent += len(chunk)

            self._put_blob(entry.sha256, entry.size_bytes, content)
            done += entry.size_bytes
        report(done, manifest.size_bytes, "")
        at = f"/v2/{self.name}/manifests/{tag}"
        self._expect(
            self._send("PUT", at, {"Content-Type": IMAGE}, lambda: iter([image]), len(image)), 201, tag
        )
        kept = self._expect(self._send("GET", at, {"Accept": IMAGE}), 200, tag).content
        digest = hashlib.sha256(image).hexdigest()
        if hashlib.sha256(kept).hexdigest() != digest:
            raise ReleaseError(f"{self.url}/{self.name}:{tag}: is another manifest than was sent; push again")
        return f"sha256:{digest}"

    def _put_blob(self, sha256: str, size: int, content: Callable[[], Iterator[bytes]]) -> None:
        """Unless it is there."""
        blobs = f"/v2/{self.name}/blobs"
        for tries_left in reversed(range(TRIES)):
            try:
                if self._send("HEAD", f"{blobs}/sha256:{sha256}").status_code == 200:
                    return
                begun = self._expect(self._send("POST", f"{blobs}/uploads/", size=0), 202, "an upload")
                place = urljoin(str(begun.request.url), begun.headers.get("Location", ""))
                place += f"{'&' if '?' in place else '?'}digest=sha256:{sha256}"
                sent = self._send("PUT", place, {"Content-Type": LAYER}, content, size)
                self._expect(sent, 201, f"sha256:{sha256[:12]}")
                return
            except httpx.TransportError as error:
                if not tries_left or isinstance(error, httpx.ConnectError):
                    raise

    def _send(
        self,
        method: str,
        place: str,
        headers: Mapping[str, str] | None = None,
        content: Callable[[], Iterator[bytes]] | None = None,
        size: int | None = None,
    ) -> httpx.Response:
        """Asked again once with what a 401 wants."""
        url = urljoin(self.url, place)
        for asked_again in (False, True):
            sent = dict(headers or {}) | ({} if size is None else {"Content-Length": str(size)})
            if self._authorization and urlsplit(url).netloc == urlsplit(self.url).netloc:
                sent["Authorization"] = self._authorization
            response = self._client.request(
                method, url, headers=sent, content=content() if content else None,
                follow_redirects=method in ("GET", "HEAD"),
            )  # fmt: skip
            if response.status_code != 401 or asked_again:
                break
            self._authorize(response.headers.get("WWW-Authenticate", ""))
        return response

    def _authorize(self, challenge: str) -> None:
        """Basic, or a bearer token from where the challenge says."""
        kind, _, rest = challenge.partition(" ")
        told = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        realm = urlsplit(told.get("realm", ""))
        if kind.lower() == "bearer" and (realm.scheme == "https" or realm.hostname in LOOPBACK):
            asked = {name: told[name] for name in ("service", "scope") if name in told}
            answer = self._client.get(told["realm"], params=asked, auth=self._login)
            try:
                value = answer.json()
                self._authorization = f"Bearer {value.get('token') or value['access_token']}"
                return
            except (ValueError, KeyError, AttributeError, TypeError):
                pass
        elif kind.lower() == "basic" and self._login is not None:
            self._authorization = f"Basic {b64encode(':'.join(self._login).encode()).decode()}"
            return
        raise ReleaseError(
            f"{self.url}: {'refuses this login' if self._login else 'wants a login'}; set "
            "YARN_OPS_REGISTRY_USER and YARN_OPS_REGISTRY_PASSWORD to one that may push"
        )

    def _expect(self, response: httpx.Response, status: int, what: str) -> httpx.Response:
        if response.status_code == status:
            return response
        if response.status_code in (401, 403):
            raise ReleaseError(
                f"{self.url}: this login may not push to {self.name} ({response.status_code}); set "
                "YARN_OPS_REGISTRY_USER and YARN_OPS_REGISTRY_PASSWORD"
            )
        told = " ".join(response.text.split())[:WORDS]
        raise ReleaseError(
            f"{self.url}/{self.name}: does not take {what} ({response.status_code} {told}); see its log, "
            "push again"
        )
