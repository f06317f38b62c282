"""A real S3 server without Docker: OpenStack Swift, one process a service, everything on loopback.

The directory's filesystem must carry extended attributes (Swift keeps its metadata there).
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yarn_ops.errors import SettingsError
from yarn_ops.stack.part import StackPart

BIN = Path(sys.executable).parent
LOOPBACK = "127.0.0.1"
STORAGE = ("account", "container", "object")
SERVERS = (*STORAGE, "proxy")

SERVER = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = {workers}
user = {user}
swift_dir = {etc}
devices = {devices}
mount_check = false
fallocate_reserve = 0
log_address = {etc}/no-syslog
log_level = WARNING

"""

STORAGE_PIPELINE = """
[pipeline:main]
pipeline = {kind}-server

[app:{kind}-server]
use = egg:swift#{kind}
"""

PASSED = "catch_errors gatekeeper cache listing_formats bulk s3api tempauth slo dlo symlink"
"""what a request passes on its way to the proxy, in this order"""
OURS = {"cache": "paste.filter_factory = yarn_ops.stack.swift_cache:filter_factory"}
FILTER_SETTINGS = {
    "s3api": "s3_acl = false\nlocation = us-east-1\n",
    "tempauth": "user_yarn_ops = {secret_key} .admin\n",
}

PROXY_PIPELINE = f"""
[pipeline:main]
pipeline = {PASSED} proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
""" + "".join(
    f"\n[filter:{name}]\n{OURS.get(name, f'use = egg:swift#{name}')}\n{FILTER_SETTINGS.get(name, '')}"
    for name in PASSED.split()
)

RINGS = """
import sys
from swift.common.ring import RingBuilder
for kind, port in (argument.split("=") for argument in sys.argv[2:]):
    builder = RingBuilder(6, 1, 1)  # 64 partitions, one copy
    at = {"ip": "127.0.0.1", "port": int(port)}
    at |= {f"replication_{name}": value for name, value in at.items()}
    builder.add_dev({"region": 1, "zone": 1, "device": "d1", "weight": 1.0, "meta": "", **at})
    builder.rebalance()
    builder.get_ring().save(f"{sys.argv[1]}/{kind}.ring.gz")
"""
"""A child of its own: Swift's command would be started nine times."""


class Swift:
    """Account, container, object and proxy server of one Swift, with its data in `directory`."""

    access_key = "yarn:ops"
    region = "us-east-1"

    def __init__(self, directory: Path, *, ports: Mapping[str, int], secret_key: str) -> None:
        if importlib.util.find_spec("swift") is None:
            raise SettingsError("the S3 server (OpenStack Swift) is not installed; pip install -e '.[stack]'")
        self.directory = directory
        self.ports = dict(ports)
        self.secret_key = secret_key

    @property
    def endpoint_url(self) -> str:
        return f"http://{LOOPBACK}:{self.ports['proxy']}"

    def prepare(self) -> None:
        """Write the configuration and the rings."""
        devices = self.directory / "devices"
        self._etc.mkdir(parents=True, exist_ok=True)
        (devices / "d1").mkdir(parents=True, exist_ok=True)
        salt = "[swift-hash]\nswift_hash_path_prefix = yarn\nswift_hash_path_suffix = ops\n"
        policy = "[storage-policy:0]\nname = default\ndefault = yes\n"
        (self._etc / "swift.conf").write_text(salt + policy)
        for kind in SERVERS:
            pipeline = PROXY_PIPELINE if kind == "proxy" else STORAGE_PIPELINE
            text = (SERVER + pipeline).format(
                port=self.ports[kind],
                workers=2 if kind in ("proxy", "object") else 0,
                user=pwd.getpwuid(os.getuid()).pw_name,
                etc=self._etc,
                devices=devices,
                kind=kind,
                secret_key=self.secret_key,
            )
            path = self._etc / f"{kind}-server.conf"
            path.touch(mode=0o600)
            path.write_text(text)
        self._build_rings()

    def parts(self) -> list[StackPart]:
        environment = {"PATH": os.defpath, "HOME": str(self.directory)}
        return [
            StackPart(
                f"s3-{kind}",
                [BIN / f"swift-{kind}-server", self._etc / f"{kind}-server.conf", "--verbose"],
                environment,
                self._answers if kind == "proxy" else lambda kind=kind: self._listens(kind),  # type: ignore[misc]
            )
            for kind in SERVERS
        ]

    def client(self) -> Any:
        """A boto3 S3 client that is allowed everything here."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
        )

    def create_bucket(self, name: str) -> None:
        """Make the bucket; one that is there already stays."""
        client = self.client()
        try:
            client.create_bucket(Bucket=name)
        except client.exceptions.BucketAlreadyOwnedByYou:
            return

    @property
    def _etc(self) -> Path:
        return self.directory / "etc"

    def _build_rings(self) -> None:
        """Where the data lie: on one device, behind one server a kind. Kept while their ports are."""
        wanted = " ".join(f"{kind}={self.ports[kind]}" for kind in STORAGE)
        built_for = self._etc / "rings.ports"
        if built_for.exists() and built_for.read_text() == wanted:
            return
        command = [sys.executable, "-c", RINGS, str(self._etc), *wanted.split()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SettingsError(f"{self._etc}: Swift's rings cannot be made: {done.stderr.splitlines()[-1:]}")
        built_for.write_text(wanted)

    def _answers(self) -> bool:
        """The proxy knows its features."""
        try:
            with urllib.request.urlopen(f"{self.endpoint_url}/info", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def _listens(self, kind: str) -> bool:
        try:
            socket.create_connection((LOOPBACK, self.ports[kind]), timeout=5).close()
        except OSError:
            return False
        return True
