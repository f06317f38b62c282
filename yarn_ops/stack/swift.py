"""A real S3 server without Docker: OpenStack Swift on one port of loopback.

The directory's filesystem must carry extended attributes (Swift keeps its metadata there).
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import sys
from pathlib import Path
from typing import Any

import httpx

from yarn_ops.errors import SettingsError
from yarn_ops.passwords import write_private
from yarn_ops.servers import LOOPBACK
from yarn_ops.stack.part import StackPart

WORKERS = 4

PASSED = "catch_errors gatekeeper cache listing_formats s3api tempauth slo dlo"
"""what a request passes on its way to the proxy, in this order"""
OURS = {"cache": "paste.filter_factory = yarn_ops.stack.swift_cache:filter_factory"}
FILTER_SETTINGS = {
    "s3api": "s3_acl = false\nlocation = us-east-1\n",
    "tempauth": "user_yarn_ops = {secret_key} .admin\n",
    "slo": "allow_async_delete = false\n",
}

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

[pipeline:main]
pipeline = {passed} proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
expose_info = false
""" + "".join(
    f"\n[filter:{name}]\n{OURS.get(name, f'use = egg:swift#{name}')}\n{FILTER_SETTINGS.get(name, '')}"
    for name in PASSED.split()
)


class Swift:
    """An S3 server with its data in `directory`, which only its owner enters."""

    access_key = "yarn:ops"
    region = "us-east-1"

    def __init__(self, directory: Path, *, port: int, secret_key: str) -> None:
        if importlib.util.find_spec("swift") is None:
            raise SettingsError("the S3 server (OpenStack Swift) is not installed; pip install -e '.[stack]'")
        self.directory = directory
        self.port = port
        self.secret_key = secret_key

    @property
    def endpoint_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def prepare(self) -> None:
        """Write the configuration; the salt of the data's paths once, since data would not be found again."""
        devices = self.directory / "devices"
        self._etc.mkdir(parents=True, exist_ok=True)
        (devices / "d1").mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        salted = self._etc / "swift.conf"
        if salted.exists():
            salted.chmod(0o600)
        else:
            prefix, suffix = secrets.token_hex(16), secrets.token_hex(16)
            salt = f"[swift-hash]\nswift_hash_path_prefix = {prefix}\nswift_hash_path_suffix = {suffix}\n"
            write_private(salted, f"{salt}[storage-policy:0]\nname = default\ndefault = yes\n")
        text = SERVER.format(
            port=self.port,
            workers=WORKERS,
            user=pwd.getpwuid(os.getuid()).pw_name,
            etc=self._etc,
            devices=devices,
            passed=PASSED,
            secret_key=self.secret_key,
        )
        write_private(self._etc / "proxy-server.conf", text)

    def part(self) -> StackPart:
        command: list[str | Path] = [sys.executable, "-P", "-m", "yarn_ops.stack.swift_server", self._etc]
        ours = str(Path(__file__).parents[2])
        environment = {"PATH": os.defpath, "HOME": str(self.directory), "PYTHONPATH": ours}
        return StackPart("s3", command, environment, self._answers)

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

    def _answers(self) -> bool:
        """Whether it is up: then it refuses a request without a password."""
        try:
            return httpx.get(f"{self.endpoint_url}/info", timeout=5, trust_env=False).status_code == 403
        except httpx.HTTPError:
            return False
