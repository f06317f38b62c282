"""A snapshot in Hugging Face's cache, held to the digests that the hub gives of its files.

The hub names a large file by its sha256 and a small one by git's digest of it, and its cache names blobs by
them. They are asked for once a commit, and kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from yarn_ops.atomic import atomic_write, disk_errors
from yarn_ops.digests import canonical_json, digest_of, tree_files
from yarn_ops.errors import BaseModelError
from yarn_ops.store.damage import Fault, refusal
from yarn_ops.store.transfer import Transfer

ANSWER_S = 10.0
SHA256_DIGITS, GIT_DIGITS = 64, 40

log = logging.getLogger(__name__)


def verify_snapshot(name: str, snapshot: Path, cache: Path, wanted: Callable[[str], bool]) -> None:
    """Read every wanted file of a model's snapshot; what is damaged is fetched again.

    `cache`: where the digests are kept. BaseModelError, naming the files, where that cannot be, or where
    nothing tells their digests.
    """
    kept = cache / f"{digest_of([name, snapshot.name])}.json"
    digests = _kept(kept)
    if digests is None:
        digests = asked_digests(name, snapshot.name) or _blob_names(name, snapshot)
        digests = {file: digest for file, digest in digests.items() if wanted(file)}
        with disk_errors(kept), atomic_write(kept, durable=True) as draft:
            draft.write_bytes(canonical_json([digest_of(digests), digests]).encode())
    faults = faults_of(snapshot, digests)
    if not faults:
        return
    log.warning("%s", refusal(snapshot, faults, "fetched again"))
    for fault in faults:
        _fetch_again(name, snapshot, fault)
    if faults := faults_of(snapshot, digests):
        raise BaseModelError(f"hf:{name}: {refusal(snapshot, faults, 'remove it and run again')}")


def _kept(path: Path) -> dict[str, str] | None:
    """The digests as they were kept; None where they were not, or are damaged."""
    try:
        digest, digests = json.loads(path.read_bytes())
        return digests if digest == digest_of(digests) else None
    except (OSError, ValueError, TypeError):
        return None


def asked_digests(name: str, commit: str) -> dict[str, str] | None:
    """{file: digest} of a commit as the hub tells; None where it cannot be asked."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(name, revision=commit, files_metadata=True, timeout=ANSWER_S)
    except Exception:  # offline, HTTP, TLS, proxies: the cache's own names tell it as well
        return None
    told = {
        file.rfilename: file.lfs.sha256 if file.lfs is not None else file.blob_id
        for file in info.siblings or ()
    }
    return {file: digest for file, digest in told.items() if digest} or None


def _blob_names(name: str, snapshot: Path) -> dict[str, str]:
    """{file: digest} by the names of the blobs that the snapshot's links point to."""
    digests = {}
    for file, path in tree_files(snapshot).items():
        blob = path.resolve()
        if blob.parent.name != "blobs" or len(blob.name) not in (SHA256_DIGITS, GIT_DIGITS):
            raise BaseModelError(
                f"hf:{name}: {path}: nothing tells what its bytes should be, and the hub cannot be asked; "
                f"go online, or give the directory {snapshot} itself"
            )
        digests[file] = blob.name
    return digests


def faults_of(snapshot: Path, digests: dict[str, str]) -> list[Fault]:
    """The files of a directory that have another digest than the hub's."""

    def check(item: tuple[str, str]) -> Fault | None:
        file, digest = item
        path = snapshot / file
        found = _digest(path, len(digest)) if path.is_file() else "none"
        return None if found == digest else Fault(file, f"digest {digest[:12]}", found[:12])

    with disk_errors(snapshot):
        return list(filter(None, Transfer(0, None).run(check, digests.items())))


def _digest(path: Path, digits: int) -> str:
    """sha256, or git's digest of a blob, by how many digits are asked for."""
    sha = hashlib.sha256()
    if digits == GIT_DIGITS:
        sha = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: sha).hexdigest()


def _fetch_again(name: str, snapshot: Path, fault: Fault) -> None:
    from huggingface_hub import hf_hub_download

    path, cache = snapshot / fault.name, snapshot.parents[2]
    blob = path.readlink() if path.is_symlink() else None
    if blob is not None:
        path.unlink()  # it may lead to another file's blob, and the hub's client leaves it as it is
    try:
        hf_hub_download(name, fault.name, revision=snapshot.name, cache_dir=cache, force_download=True)
    except Exception as error:
        if blob is not None:
            path.symlink_to(blob)
        told = str(error).strip().partition("\n")[0]
        raise BaseModelError(
            f"{refusal(snapshot, [fault], 'it cannot be fetched again')}: {told}; go online and run again"
        ) from None
