"""Garbage in a store: uploads that were broken off, directories that nothing refers to."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from yarn_ops.atomic import disk_errors
from yarn_ops.errors import StoreError
from yarn_ops.store import ObjectInfo, Store
from yarn_ops.store.keys import join
from yarn_ops.store.local import INCOMING, LocalStore
from yarn_ops.store.manifest import MANIFEST
from yarn_ops.store.s3 import S3Store

ARTIFACTS = "artifacts"
UNITS = "units"
"""results of units of a corpus: shards have copies of them, a corpus that grew uses them again"""


@dataclass(frozen=True)
class Leftover:
    """`kind`: upload (never finished), tree (artifacts/<digest>/), unit (of a corpus)."""

    kind: str
    name: str
    size_bytes: int
    modified: datetime
    upload_id: str = ""


def unfinished_uploads(store: Store, before: datetime) -> Iterator[Leftover]:
    """Uploads that began before that moment and have neither been finished nor given up."""
    if isinstance(store, LocalStore):
        yield from _incoming_files(store.root / INCOMING, before)
    elif isinstance(store, S3Store):
        yield from _multipart_uploads(store, before)


def trees(store: Store) -> dict[str, Leftover]:
    """Every directory of artifacts/<digest>/, complete or not, by its digest."""
    found = _directories(store, ARTIFACTS, "tree")
    return {tree.name: tree for tree in found if re.fullmatch("[0-9a-f]{64}", tree.name)}


def units(store: Store) -> Iterator[Leftover]:
    """Results of units, units/<key>/."""
    return _directories(store, UNITS, "unit")


def _directories(store: Store, below: str, kind: str) -> Iterator[Leftover]:
    found: dict[str, list[ObjectInfo]] = defaultdict(list)
    for info in store.list(f"{below}/"):
        found[info.key.split("/")[1]].append(info)
    for name, infos in found.items():
        newest = max(info.modified for info in infos)
        yield Leftover(kind, name, sum(info.size_bytes for info in infos), newest)


def remove_directory(store: Store, leftover: Leftover, taken_up: Callable[[], bool]) -> bool:
    """Delete a directory, unless it was written to since it was listed or `taken_up` says that it is used.

    `taken_up` is asked again when the manifest is gone: whoever came before finds it put back, and whoever
    comes after finds the directory incomplete and stores it again.
    """
    below = join(UNITS if leftover.kind == "unit" else ARTIFACTS, leftover.name)
    now = {info.key: info.modified for info in store.list(f"{below}/")}
    if any(when > leftover.modified for when in now.values()) or taken_up():
        return False
    manifest = f"{below}/{MANIFEST}"
    if (data := store.find(manifest)) is not None:
        store.delete(manifest)
        if taken_up():
            store.write(manifest, data)
            return False
    for key in now:
        store.delete(key)
    return True


def give_up_upload(store: Store, leftover: Leftover) -> None:
    """Give its space back; gone already is fine."""
    if isinstance(store, LocalStore):
        with disk_errors(store.root / INCOMING):
            (store.root / INCOMING / leftover.name).unlink(missing_ok=True)
    elif isinstance(store, S3Store):
        with store._errors(store.url):
            store._client.abort_multipart_upload(
                Bucket=store.bucket, Key=leftover.name, UploadId=leftover.upload_id
            )
    else:
        raise StoreError(f"{store.url}: knows no uploads")


def _incoming_files(folder: Path, before: datetime) -> Iterator[Leftover]:
    for path in folder.glob("*"):
        try:
            facts = path.stat()
        except FileNotFoundError:  # it has just been finished
            continue
        modified = datetime.fromtimestamp(facts.st_mtime, UTC)
        if modified < before:
            yield Leftover("upload", path.name, facts.st_size, modified)


def _multipart_uploads(store: S3Store, before: datetime) -> Iterator[Leftover]:
    with store._errors(store.url):
        pages = store._client.get_paginator("list_multipart_uploads").paginate(
            Bucket=store.bucket, Prefix=join(store._prefix, "")
        )
        for page in pages:
            for upload in page.get("Uploads", ()):
                if upload["Initiated"] < before:
                    size = _uploaded_bytes(store, upload["Key"], upload["UploadId"])
                    yield Leftover(
                        "upload", upload["Key"], size, upload["Initiated"], upload_id=upload["UploadId"]
                    )


def _uploaded_bytes(store: S3Store, key: str, upload_id: str) -> int:
    parts = store._client.get_paginator("list_parts").paginate(
        Bucket=store.bucket, Key=key, UploadId=upload_id
    )
    return sum(part["Size"] for page in parts for part in page.get("Parts", ()))
