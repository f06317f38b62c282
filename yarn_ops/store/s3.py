"""Object storage in an S3 bucket, on AWS or any server that speaks its API."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
import botocore.session
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as NoConnection

from yarn_ops.atomic import disk_errors
from yarn_ops.errors import StoreError
from yarn_ops.store import ObjectInfo, StoreOptions, Traffic
from yarn_ops.store.keys import check_key, elsewhere, join

MIB = 1 << 20
UPLOAD = TransferConfig(multipart_threshold=16 * MIB, multipart_chunksize=32 * MIB, max_concurrency=8)
# The server moves the bytes: large parts, few requests. One request may copy 5 GiB at most (S3).
COPY = TransferConfig(multipart_threshold=64 * MIB, multipart_chunksize=64 * MIB, max_concurrency=8)
CONNECTIONS = 32
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
PIECE_BYTES = 256 << 10  # larger ones cost the allocator more than they save
ATTEMPTS = 5
"""of a request, and of a broken download without a byte of progress"""

# Some of these are OSErrors too: they must be caught before `disk_errors` sees them.
BROKEN_OFF = (HTTPClientError, IncompleteReadError, NoConnection)

REMEDIES = {
    "SignatureDoesNotMatch": "access key or secret key wrong; check YARN_OPS_S3_ACCESS_KEY and …_SECRET_KEY",
    "InvalidAccessKeyId": "the access key is unknown there; check YARN_OPS_S3_ACCESS_KEY",
    "AccessDenied": "access denied; check the keys and what they are allowed",
    "403": "access denied; check the keys and what they are allowed",
    "NoSuchBucket": "no such bucket; create it or correct the URL",
    "NoSuchKey": "no such object",
    "404": "no such object",
    "PreconditionFailed": "was replaced while it was read; run again",
    "RequestTimeTooSkewed": "this machine's clock differs from the server's; set it",
    "AuthorizationHeaderMalformed": "another region; check YARN_OPS_S3_REGION",
    "PermanentRedirect": "another region; check YARN_OPS_S3_REGION",
    "InsufficientStorage": "no space left on the server; free some and run again",
    "507": "no space left on the server; free some and run again",
    "QuotaExceeded": "the quota is used up; free some and run again",
}


class S3Store:
    """A `Store` whose keys lie below s3://bucket/prefix."""

    def __init__(self, url: str, options: StoreOptions, *, any_key: bool = False) -> None:
        """any_key: take keys that no path could have."""
        self._check = (lambda key: key) if any_key else check_key
        self._options = options
        self.traffic = Traffic()
        self.bucket, _, prefix = url.removeprefix("s3://").rstrip("/").partition("/")
        if not self.bucket:
            raise StoreError(f"{url}: names no bucket; write s3://bucket/prefix")
        self._prefix = check_key(prefix) if prefix else ""

    def __repr__(self) -> str:
        return f"S3Store({self.url!r}, {self._options!r})"

    @property
    def url(self) -> str:
        return f"s3://{join(self.bucket, self._prefix)}" if self._prefix else f"s3://{self.bucket}"

    def uri_of(self, key: str) -> str:
        return f"{self.url}/{self._check(key)}"

    def key_of(self, uri: str) -> str:
        plain = uri.rstrip("/")
        if plain == self.url:
            return ""
        if not plain.startswith(f"{self.url}/"):
            raise elsewhere(uri, self.url)
        return check_key(plain.removeprefix(f"{self.url}/"))

    def put_file(self, path: Path, key: str, on_bytes: Callable[[int], None] | None = None) -> None:
        def sent(count: int) -> None:
            self.traffic.sent(count)
            if on_bytes is not None:
                on_bytes(count)

        with disk_errors(path), self._errors(self.uri_of(key)):
            self._client.upload_file(str(path), **self._named(key), Config=UPLOAD, Callback=sent)

    def get_file(self, key: str, path: Path) -> None:
        info = self.head(key)
        if info is None:
            raise StoreError(f"{self.uri_of(key)}: {REMEDIES['404']}")
        with disk_errors(path), self._errors(self.uri_of(key)), path.open("ab") as file:
            file.writelines(self.read_range(key, file.tell(), info.size_bytes, version=info.version))
            file.flush()
            os.fsync(file.fileno())

    def read_range(self, key: str, start: int, stop: int, version: str | None = None) -> Iterator[bytes]:
        """Also: of that version alone; StoreError when it was replaced."""
        return self._pieces(key, start, stop, **({} if version is None else {"IfMatch": f'"{version}"'}))

    def read(self, key: str) -> bytes:
        with self._errors(self.uri_of(key)):
            idle = 0
            while True:
                try:
                    data: bytes = self._client.get_object(**self._named(key))["Body"].read()
                    self.traffic.received(len(data))
                    return data
                except BROKEN_OFF:
                    idle += 1
                    if idle == ATTEMPTS:
                        raise

    def find(self, key: str) -> bytes | None:
        try:
            return self.read(key)
        except StoreError as error:
            if isinstance(error.__cause__, ClientError) and _code(error.__cause__) == "NoSuchKey":
                return None
            raise

    def write(self, key: str, data: bytes) -> None:
        with self._errors(self.uri_of(key)):
            self._client.put_object(**self._named(key), Body=data)
        self.traffic.sent(len(data))

    def size(self, key: str) -> int | None:
        info = self.head(key)
        return None if info is None else info.size_bytes

    def head(self, key: str) -> ObjectInfo | None:
        """What `list` tells of an object, None when there is no such object."""
        with self._errors(self.uri_of(key)):
            try:
                found = self._client.head_object(**self._named(key))
            except ClientError as error:
                if _code(error) not in ("403", "404"):
                    raise
                # The answer to HEAD has no body; that to GET tells a missing object from a missing bucket.
                try:
                    found = self._client.get_object(**self._named(key))
                except ClientError as told:
                    if _code(told) != "NoSuchKey":
                        raise
                    return None
        return ObjectInfo(key, found["ContentLength"], found["LastModified"], found["ETag"].strip('"'))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        full = join(self._prefix, prefix)
        skip = len(full) - len(prefix)
        with self._errors(f"s3://{self.bucket}/{full}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=full)
            for page in pages:
                for item in page.get("Contents", ()):
                    yield ObjectInfo(
                        item["Key"][skip:],
                        item["Size"],
                        item["LastModified"],
                        version=item["ETag"].strip('"'),
                    )

    def delete(self, key: str) -> None:
        with self._errors(self.uri_of(key)):
            self._client.delete_object(**self._named(key))

    def copy(self, source_key: str, target_key: str, size_bytes: int | None = None) -> None:
        """Made by the server, in parts when large: no byte passes through this machine."""
        source, target = self._named(source_key), self._named(target_key)
        with self._errors(self.uri_of(source_key)):
            if size_bytes is not None and size_bytes < COPY.multipart_threshold:
                self._client.copy_object(CopySource=source, **target)
            else:
                self._client.copy(source, **target, Config=COPY)

    @cached_property
    def _client(self) -> Any:
        options = self._options
        config = Config(
            retries={"mode": "standard", "max_attempts": ATTEMPTS},
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            max_pool_connections=CONNECTIONS,
            s3={"addressing_style": "path" if options.endpoint_url else "auto"},
            # Servers other than AWS need not know its newer checksum headers; contents are ours to check.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        with self._errors(self.url):
            session = _session(options)
            return session.client(
                "s3",
                endpoint_url=options.endpoint_url,
                aws_access_key_id=options.access_key,
                aws_secret_access_key=options.secret_key,
                aws_session_token=options.session_token,
                region_name=options.region or session.region_name or "us-east-1",
                config=config,
            )

    def _named(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": join(self._prefix, self._check(key))}

    def _pieces(self, key: str, start: int, stop: int, **condition: str) -> Iterator[bytes]:
        """A connection that breaks is made again, at the first byte that is missing."""
        with self._errors(self.uri_of(key)):
            idle = 0
            while start < stop:
                try:
                    for chunk in self._chunks(key, start, stop, condition):
                        start += len(chunk)
                        self.traffic.received(len(chunk))
                        idle = 0
                        yield chunk
                except BROKEN_OFF:
                    idle += 1
                    if idle == ATTEMPTS:
                        raise

    def _chunks(self, key: str, start: int, stop: int, condition: dict[str, str]) -> Iterator[bytes]:
        wanted = {"Range": f"bytes={start}-{stop - 1}", **condition}
        body = self._client.get_object(**self._named(key), **wanted)["Body"]
        with body:
            yield from body.iter_chunks(PIECE_BYTES)

    @contextmanager
    def _errors(self, where: str) -> Iterator[None]:
        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error) as error:
            raise StoreError(f"{where}: {self._explain(error)}") from error
        except RecursionError:  # botocore asks where the bucket is, and is sent on with that, too
            raise StoreError(
                f"{where}: {self._options.endpoint_url or 'the S3 server'} only sends on to another address; "
                "write that one into YARN_OPS_S3_ENDPOINT_URL, or the bucket's region into YARN_OPS_S3_REGION"
            ) from None

    def _explain(self, error: Exception) -> str:
        if isinstance(error, Boto3Error) and isinstance(error.__context__, Exception):
            return self._explain(error.__context__)
        if isinstance(error, ClientError):
            told = error.response.get("Error", {}).get("Message", "")
            return REMEDIES.get(_code(error), f"the server answered {_code(error)}: {told[:200]}")
        if isinstance(error, BROKEN_OFF):
            server = self._options.endpoint_url or "the S3 server"
            return f"{server} does not answer; is it running, is YARN_OPS_S3_ENDPOINT_URL right?"
        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            return "no keys; set YARN_OPS_S3_ACCESS_KEY and YARN_OPS_S3_SECRET_KEY"
        return str(error)


def _session(options: StoreOptions) -> boto3.session.Session:
    """A session of boto3; of a profile only where the keys come from it."""
    if options.access_key is None:
        return boto3.session.Session()
    without_profile = {"profile": (None, None, None, None)}
    return boto3.session.Session(botocore_session=botocore.session.Session(without_profile))


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "?"))
