"""What a stored directory consists of: a manifest.json, written last:

{"files": {name: {sha256, size_bytes}}}
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from yarn_ops.digests import canonical_json, tree_digest
from yarn_ops.errors import StoreError
from yarn_ops.records import Tree
from yarn_ops.store import Store
from yarn_ops.store.keys import check_key, join

MANIFEST = "manifest.json"


class FileEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Field(ge=0)]


class Manifest(BaseModel):
    """File names are safe to join to any directory (`keys.check_key`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[str, FileEntry]

    @field_validator("files")
    @classmethod
    def _names_are_safe(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            check_file_name(name)
        return dict(sorted(files.items()))

    @property
    def digest(self) -> str:
        return tree_digest({name: entry.sha256 for name, entry in self.files.items()})

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.files.values())

    def to_bytes(self) -> bytes:
        return canonical_json(self.model_dump(mode="json")).encode() + b"\n"

    def tree_at(self, uri: str) -> Tree:
        return Tree(uri=uri, digest=self.digest, files=len(self.files), size_bytes=self.size_bytes)


def check_file_name(name: str) -> str:
    """`name` itself; StoreError when a file of a stored directory cannot be called that."""
    if check_key(name) == MANIFEST:
        raise StoreError(f"{MANIFEST}: the name is taken by the store's own list of files; rename the file")
    return name


def parse_manifest(data: bytes, where: str) -> Manifest:
    """StoreError, naming `where`, unless `data` is a manifest with safe names."""
    try:
        return Manifest.model_validate_json(data)
    except (ValidationError, StoreError) as error:
        fault = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise StoreError(
            f"{where}: not a manifest of ours ({fault}); pull a directory written by yarn-ops"
        ) from None


def read_manifest(store: Store, prefix: str) -> Manifest:
    """The manifest of the directory at `prefix`; StoreError when there is none."""
    key = join(prefix, MANIFEST)
    data = store.find(key)
    if data is None:
        raise StoreError(
            f"{store.uri_of(key)}: no such manifest; the directory was never finished, or is not ours"
        )
    return parse_manifest(data, store.uri_of(key))
