"""A real S3 server without Docker: OpenStack Swift, one process a service, everything on loopback.

    with SwiftCluster(directory) as swift:
        swift.create_bucket("bucket")
        boto3.client("s3", endpoint_url=swift.endpoint_url, ...)

The directory's filesystem must carry extended attributes (Swift keeps its metadata there).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
STORAGE = ("account", "container", "object")
SERVERS = (*STORAGE, "proxy")
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
PR_SET_PDEATHSIG = 1

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

PROXY_PIPELINE = """
[pipeline:main]
pipeline = catch_errors gatekeeper listing_formats bulk s3api tempauth slo dlo symlink proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:gatekeeper]
use = egg:swift#gatekeeper

[filter:listing_formats]
use = egg:swift#listing_formats

[filter:bulk]
use = egg:swift#bulk

[filter:s3api]
use = egg:swift#s3api
s3_acl = false
location = us-east-1

[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret_key} .admin

[filter:slo]
use = egg:swift#slo

[filter:dlo]
use = egg:swift#dlo

[filter:symlink]
use = egg:swift#symlink
"""


class SwiftCluster:
    """Account, container, object and proxy server of one Swift; its data outlive `stop()`."""

    access_key = "test:tester"
    region = "us-east-1"

    def __init__(self, directory: Path, secret_key: str | None = None) -> None:
        self.directory = directory
        self.secret_key = secret_key or secrets.token_hex(16)
        self.ports = dict(zip(SERVERS, _free_ports(len(SERVERS)), strict=True))
        self._servers: list[subprocess.Popen[bytes]] = []

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['proxy']}"

    def start(self) -> None:
        """Write the configuration, start the servers, return when the proxy answers `GET /info`."""
        self._configure()
        try:
            for kind in SERVERS:
                self._servers.append(self._spawn(kind))
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every server and its workers."""
        for server in self._servers:
            _signal_group(server, signal.SIGTERM)
        for server in self._servers:
            try:
                server.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                pass
            finally:
                _signal_group(server, signal.SIGKILL)
                server.wait()
        self._servers.clear()

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
        self.client().create_bucket(Bucket=name)

    def __enter__(self) -> SwiftCluster:
        self.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()

    def _configure(self) -> None:
        etc, devices = self.directory / "etc", self.directory / "devices"
        etc.mkdir(parents=True, exist_ok=True)
        (devices / "d1").mkdir(parents=True, exist_ok=True)
        salt = "[swift-hash]\nswift_hash_path_prefix = yarn\nswift_hash_path_suffix = ops\n"
        policy = "[storage-policy:0]\nname = default\ndefault = yes\n"
        (etc / "swift.conf").write_text(salt + policy)
        for kind in SERVERS:
            pipeline = PROXY_PIPELINE if kind == "proxy" else STORAGE_PIPELINE
            text = (SERVER + pipeline).format(
                port=self.ports[kind],
                workers=2 if kind in ("proxy", "object") else 0,
                user=pwd.getpwuid(os.getuid()).pw_name,
                etc=etc,
                devices=devices,
                kind=kind,
                secret_key=self.secret_key,
            )
            path = etc / f"{kind}-server.conf"
            path.touch(mode=0o600)
            path.write_text(text)
        for kind in STORAGE:
            self._build_ring(etc / f"{kind}.builder", self.ports[kind])

    def _build_ring(self, builder: Path, port: int) -> None:
        builder.unlink(missing_ok=True)
        create = ("create", "6", "1", "1")
        add = ("add", f"r1z1-127.0.0.1:{port}/d1", "1")
        for arguments in (create, add, ("rebalance",)):
            command = [BIN / "swift-ring-builder", builder, *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            # 1 is a warning: one device cannot be balanced any better.
            if done.returncode > 1:
                raise RuntimeError(f"swift-ring-builder {' '.join(arguments)}: {done.stdout}{done.stderr}")

    def _spawn(self, kind: str) -> subprocess.Popen[bytes]:
        etc = self.directory / "etc"
        with (self.directory / f"{kind}.log").open("ab") as log:
            return subprocess.Popen(
                [BIN / f"swift-{kind}-server", etc / f"{kind}-server.conf", "--verbose"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ["PATH"], "HOME": str(self.directory)},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self._answers():
            dead = [server.args for server in self._servers if server.poll() is not None]
            if dead or time.monotonic() > deadline:
                logs = {kind: (self.directory / f"{kind}.log").read_text()[-1000:] for kind in SERVERS}
                raise RuntimeError(f"Swift did not start; ended: {dead}; logs: {logs}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        """The proxy knows its features and every storage server listens."""
        try:
            with urllib.request.urlopen(f"{self.endpoint_url}/info", timeout=5):
                pass
            for kind in STORAGE:
                socket.create_connection(("127.0.0.1", self.ports[kind]), timeout=5).close()
        except (urllib.error.URLError, OSError):
            return False
        return True


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on; held together until all are found, so that they differ."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [listener.getsockname()[1] for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _signal_group(server: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, number)
