"""Object storage: one Protocol, a local directory and S3 behind it.

    keys.py       names that are safe as keys and as paths
    local.py      a directory
    s3.py         a bucket
    manifest.py   what a stored directory consists of
    trees.py      content-addressed directories in a store
    files.py      files by their sha256, fetched in parts at once
    pull.py       a stored directory to a local one: verified, resumed, all or nothing
    documents.py  training documents in a bucket

Objects appear whole or not at all. A directory of objects is complete when its `manifest.json`, written
last, is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Protocol

from pydantic import SecretStr

from yarn_ops.data.files import Files
from yarn_ops.errors import StoreError
from yarn_ops.settings import Settings


@dataclass(frozen=True)
class ObjectInfo:
    key: str
    size_bytes: int
    modified: datetime
    """with its time zone"""
    version: str
    """changes when the object is replaced; not a hash of its contents"""


class Traffic:
    """Bytes of objects that went to a store and came from it; what it copied itself is not among them."""

    def __init__(self) -> None:
        self.sent_bytes = self.received_bytes = 0
        self._lock = Lock()

    def sent(self, count: int) -> None:
        with self._lock:
            self.sent_bytes += count

    def received(self, count: int) -> None:
        with self._lock:
            self.received_bytes += count


class Store(Protocol):
    """Objects by key. Every failure is a StoreError in one line; every method may be called from threads."""

    traffic: Traffic

    @property
    def url(self) -> str:
        """file:///directory or s3://bucket/prefix, without a slash at the end."""

    def uri_of(self, key: str) -> str:
        """Where the object lies, as others (MLflow, a person) name it."""

    def key_of(self, uri: str) -> str:
        """The key of a URI below `url`, "" for `url` itself; StoreError for any other URI."""

    def put_file(self, path: Path, key: str, on_bytes: Callable[[int], None] | None = None) -> None:
        """Store a file's bytes, replacing the object; `on_bytes` hears how many more are on their way."""

    def get_file(self, key: str, path: Path) -> None:
        """Fetch into `path`. If `path` holds the object's first bytes only the rest is fetched.

        After a failure `path` holds what had arrived.
        """

    def read_range(self, key: str, start: int, stop: int) -> Iterator[bytes]:
        """The object's bytes from `start` up to `stop`, in pieces and in order; less only at its end."""

    def read(self, key: str) -> bytes: ...

    def find(self, key: str) -> bytes | None:
        """What `read` reads, or None when there is no such object; in one request."""

    def write(self, key: str, data: bytes) -> None: ...

    def size(self, key: str) -> int | None:
        """Bytes, or None when there is no such object."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix`, by key."""

    def delete(self, key: str) -> None:
        """Remove the object; none is no error."""

    def copy(self, source_key: str, target_key: str, size_bytes: int | None = None) -> None:
        """A second name for the same bytes: a hard link or a copy made by the server.

        One whose size is known need not be asked for it.
        """


@dataclass(frozen=True)
class StoreOptions:
    """How an S3 server is reached. None: boto3's own chain (environment, profile, AWS)."""

    endpoint_url: str | None = None
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    region: str | None = None
    session_token: str | None = field(default=None, repr=False)


def store_options(settings: Settings) -> StoreOptions:
    """How the settings say that S3 is reached."""
    return StoreOptions(
        endpoint_url=settings.s3_endpoint_url,
        access_key=_plain(settings.s3_access_key),
        secret_key=_plain(settings.s3_secret_key),
        region=settings.s3_region,
        session_token=_plain(settings.s3_session_token),
    )


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def open_store(url: str, options: StoreOptions = StoreOptions()) -> Store:
    """The store at file:///directory or s3://bucket/prefix. Nothing is contacted or created yet."""
    if url.startswith("file:///"):
        from yarn_ops.store.local import LocalStore

        return LocalStore.at(url)
    if url.startswith("s3://"):
        from yarn_ops.store.s3 import S3Store

        return S3Store(url, options)
    raise StoreError(f"{url}: not a store; write file:///directory or s3://bucket/prefix")


def files_for(options: StoreOptions) -> Files:
    """Where training documents come from: this machine and S3, told apart by the pattern's scheme."""
    from yarn_ops.store.documents import FilesByScheme

    return FilesByScheme(options)
