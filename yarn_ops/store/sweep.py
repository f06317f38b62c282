"""What a store holds that nobody will ask for: uploads that were broken off, directories nobody refers to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from yarn_ops.errors import StoreError
from yarn_ops.store import ObjectInfo, Store
from yarn_ops.store.disk import disk_errors
from yarn_ops.store.keys import join
from yarn_ops.store.local import INCOMING, LocalStore
from yarn_ops.store.manifest import MANIFEST
from yarn_ops.store.s3 import S3Store

ARTIFACTS = "artifacts"
UNITS = "units"
"""results of units of a corpus: shards have copies of them, a corpus that grew uses them again"""


@dataclass(frozen=True)
class Leftover:
    """`kind`: upload (never finished), tree (a directory without a reference), unit (of a corpus)."""

    kind: str
    name: str
    size_bytes: int
    modified: datetime
    keys: tuple[str, ...] = ()
    upload_id: str = ""


def unfinished_uploads(store: Store, before: datetime) -> Iterator[Leftover]:
    """Uploads that began before that moment and have neither been finished nor given up."""
    if isinstance(store, LocalStore):
        yield from _incoming_files(store.root / INCOMING, before)
    elif isinstance(store, S3Store):
        yield from _multipart_uploads(store, before)


def unreferenced_trees(store: Store, referenced: Collection[str], before: datetime) -> Iterator[Leftover]:
    """Directories of artifacts/<digest>/ that are not referenced and that nobody wrote to since then."""
    return _old_directories(store, ARTIFACTS, "tree", referenced, before)


def old_units(store: Store, before: datetime) -> Iterator[Leftover]:
    """Results of units, units/<key>/, made before that moment."""
    return _old_directories(store, UNITS, "unit", (), before)


def _old_directories(
    store: Store, below: str, kind: str, referenced: Collection[str], before: datetime
) -> Iterator[Leftover]:
    trees: dict[str, list[ObjectInfo]] = defaultdict(list)
    for info in store.list(f"{below}/"):
        digest = info.key.split("/")[1]
        if digest not in referenced:
            trees[digest].append(info)
    for digest, infos in trees.items():
        newest = max(info.modified for info in infos)
        if newest < before:
            # The manifest first: without it the directory is not complete for anybody.
            keys = sorted((info.key for info in infos), key=lambda key: not key.endswith(f"/{MANIFEST}"))
            yield Leftover(kind, digest, sum(info.size_bytes for info in infos), newest, tuple(keys))


def remove(store: Store, leftover: Leftover) -> None:
    """Give its space back; gone already is fine."""
    if leftover.kind in ("tree", "unit"):
        for key in leftover.keys:
            store.delete(key)
    elif isinstance(store, LocalStore):
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
