"""Machines, servers and settings that are not as usual: each works, or is told in one line."""

from __future__ import annotations

import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from refusals import told_of
from stores import swift_options
from swift_cluster import SwiftCluster

from yarn_ops import services
from yarn_ops.errors import RecipeError
from yarn_ops.recipe import load_recipe
from yarn_ops.release import Tracking, open_tracking
from yarn_ops.settings import Settings, child_environment, read_settings
from yarn_ops.store import files_for, open_store

pytestmark = pytest.mark.usefixtures("own_environment")
DEAD = "http://127.0.0.1:9"
PAGE = b"<!doctype html><title>Welcome</title>"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy")


@contextmanager
def answering(body: bytes, status: int = 200, **headers: str) -> Iterator[str]:
    """The address of a server that has one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body if self.command != "HEAD" else b"")

        do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


# Proxies


@pytest.mark.parametrize("variable", PROXIES)
def test_the_loopback_interface_is_reached_without_a_proxy(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, DEAD)
    monkeypatch.setenv("NO_PROXY", "example.org")
    with answering(b'"3.8.8"') as address:
        monkeypatch.setenv("YARN_OPS_PREFECT_API_URL", f"{address}/api")
        services.try_prefect(read_settings())
    for name in ("NO_PROXY", "no_proxy"):
        assert child_environment({})[name] == "example.org,127.0.0.1,localhost,::1"


# Prefect


PREFECTS: dict[str, tuple[bytes, int, str, str | None]] = {
    "the API": (b'"3.8.8"', 200, "/api", None),
    "a slash at the end": (b'"3.8.8"', 200, "/api/", None),
    "without /api": (PAGE, 200, "", "is no Prefect API (status 200); a Prefect server's ends in /api"),
    "another server": (PAGE, 200, "/api", "is no Prefect API"),
    "another API": (b'{"version": 3}', 200, "/api", "is no Prefect API"),
    "nothing there": (b"", 404, "/api", "is no Prefect API"),
    "a broken one": (b"", 500, "/api", "is no Prefect API"),
    "no password": (b"", 401, "/api", "YARN_OPS_PREFECT_AUTH: "),
    "an older Prefect": (b'"2.20.1"', 200, "/api", "is a Prefect 2.20.1, and this is Prefect 3."),
    "a newer Prefect": (b'"4.0.0rc1"', 200, "/api", "is a Prefect 4.0.0rc1, and this is Prefect 3."),
}


@pytest.mark.parametrize("case", PREFECTS)
def test_what_answers_for_prefect(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    body, status, path, says = PREFECTS[case]
    with answering(body, status) as address:
        monkeypatch.setenv("YARN_OPS_PREFECT_API_URL", f"{address}{path}")
        told = told_of(lambda: services.try_prefect(read_settings()))
    assert told is None if says is None else says in str(told)


# Settings


SETTINGS: dict[str, tuple[str, str]] = {
    "s3_endpoint_url": ("127.0.0.1:9000", "YARN_OPS_S3_ENDPOINT_URL: write http://host:port"),
    "prefect_api_url": ("127.0.0.1:4200/api", "YARN_OPS_PREFECT_API_URL: write http://host:port"),
    "prefect_api_url ": ("ws://127.0.0.1:4200/api", "YARN_OPS_PREFECT_API_URL: write http://host:port"),
    "state_dir": ("/tmp/a%2Fb", "YARN_OPS_STATE_DIR: holds %, ?, #, a control character"),
    "state_dir ": ("/tmp/a?b", "YARN_OPS_STATE_DIR: holds %"),
    "state_dir  ": ("/tmp/a#b", "YARN_OPS_STATE_DIR: holds %"),
    "state_dir   ": ("/tmp/a\nb", "YARN_OPS_STATE_DIR: holds %"),
    "state_dir    ": (os.fsdecode(b"/tmp/a\xffb"), "a control character or undecodable bytes"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_libraries_would_mistake_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    value, says = SETTINGS[name]
    monkeypatch.setenv(f"YARN_OPS_{name.strip().upper()}", value)
    assert says in str(told_of(read_settings))


@pytest.mark.parametrize("name", ["a%2Fb", os.fsdecode(b"\xff")])
def test_a_home_that_libraries_would_mistake_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.delenv("YARN_OPS_STATE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / name))
    assert "YARN_OPS_STATE_DIR: holds " in str(told_of(read_settings))
    monkeypatch.setenv("YARN_OPS_STATE_DIR", "state")
    monkeypatch.chdir(tmp_path / name)
    assert "YARN_OPS_STATE_DIR: holds " in str(told_of(read_settings))


@pytest.mark.parametrize("name", ["a;b&c=d ü中", "it's \"a[b]+~:@\\"])
def test_the_state_lies_in_a_directory_of_any_other_name(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    settings = Settings(state_dir=tmp_path / name)
    services.open_run_registry(settings).close()
    services.try_store(settings)
    tracking = services.try_mlflow(settings)
    run = tracking.start_run("e", "n", {})
    (tmp_path / "x.png").write_bytes(b"x")
    tracking.log_picture(run, tmp_path / "x.png")
    assert {place.name for place in (tmp_path / name).iterdir()} == {"mlflow.db", "registry.db", "store"}
    assert len(list((tmp_path / name / "store").rglob("pictures/x.png"))) == 1
    assert {place.name for place in tmp_path.iterdir()} == {name, "x.png"}


# MLflow


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (PAGE, 200),
        (b"[]", 200),
        (b"", 404),
        (b'{"error_code": 3}', 400),
        (b"", 401),
        (b'{"status": "ok"}', 200),
        (b"null", 200),
        (b"", 204),
        (b"\xff\xfe", 200),
    ],
)
def test_what_answers_for_mlflow(monkeypatch: pytest.MonkeyPatch, body: bytes, status: int) -> None:
    with answering(body, status) as address:
        monkeypatch.setenv("YARN_OPS_MLFLOW_URI", address)
        told = told_of(lambda: services.try_mlflow(read_settings()).ensure_experiment("yarn-ops"))
    assert f"MLflow at {address}: " in str(told)


# Servers that answer in no way that anybody expects


ODD = {
    "nothing": b"",
    "another protocol": b"SSH-2.0-OpenSSH_9\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x16",
    "half an answer": b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
    "not packed as it says": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc",
    "on to itself": b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n",
    "on to nobody": b"HTTP/1.1 301 Moved\r\nlocation: %s/\r\ncontent-length: 0\r\n\r\n" % DEAD.encode(),
}


class _Odd(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(1 << 16)
        self.request.sendall(self.server.says)  # type: ignore[attr-defined]


@contextmanager
def saying(says: bytes) -> Iterator[str]:
    """The address of a server that says this to whoever connects, and hangs up."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Odd) as server:
        server.says = says  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("case", ODD)
def test_an_odd_server_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, case: str, tmp_path: Path
) -> None:
    with saying(ODD[case]) as address:
        monkeypatch.setenv("YARN_OPS_PREFECT_API_URL", f"{address}/api")
        monkeypatch.setenv("YARN_OPS_MLFLOW_URI", address)
        settings = read_settings()
        assert f"{address}/api" in str(told_of(lambda: services.try_prefect(settings)))
        assert f"MLflow at {address}: " in str(told_of(lambda: services.try_mlflow(settings)))
        if case in ("half an answer", "not packed as it says"):
            return  # boto3 asks for seven seconds
        store = Settings(
            state_dir=tmp_path, store_url="s3://bucket/x", s3_endpoint_url=address, s3_access_key="key",
            s3_secret_key="secret",
        )  # fmt: skip
        assert f"{address} " in str(told_of(lambda: services.try_store(store)))


# S3


def test_other_keys_in_the_environment_are_not_ours(
    swift: SwiftCluster, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither for our client nor for MLflow's, which takes its keys from the environment alone."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of another account")
    monkeypatch.setenv("AWS_SECURITY_TOKEN", "of another account")
    monkeypatch.setenv("AWS_PROFILE", "not there")
    settings = Settings(
        state_dir=tmp_path, store_url=f"s3://{bucket}", s3_endpoint_url=swift.endpoint_url,
        s3_access_key=swift.access_key, s3_secret_key=swift.secret_key, s3_region=swift.region,
    )  # fmt: skip
    services.try_store(settings)
    open_tracking(settings).try_artifacts("yarn-ops")
    assert not {"AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_PROFILE"} & os.environ.keys()
    assert list(open_store(settings.store, swift_options(swift)).list("")) == []
    missing = Tracking(settings.mlflow, f"s3://{bucket}-gone")
    told = str(told_of(lambda: missing.try_artifacts("yarn-ops")))
    assert "NoSuchBucket" in told and "MLflow at sqlite:///" in told


def test_a_session_token_of_ours_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YARN_OPS_S3_ACCESS_KEY", "key")
    monkeypatch.setenv("YARN_OPS_S3_SECRET_KEY", "secret")
    monkeypatch.setenv("YARN_OPS_S3_SESSION_TOKEN", "hunter2")
    settings = read_settings()
    open_tracking(settings)
    assert os.environ["AWS_SESSION_TOKEN"] == "hunter2"
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize("body", [b"", pytest.param(PAGE, marks=pytest.mark.slow)])
def test_what_answers_for_s3(tmp_path: Path, body: bytes) -> None:
    with answering(body, 200) as address:
        settings = Settings(
            state_dir=tmp_path, store_url="s3://bucket/x", s3_endpoint_url=address,
            s3_access_key="key", s3_secret_key="secret",
        )  # fmt: skip
        assert "s3://bucket/x" in str(told_of(lambda: services.try_store(settings)))


@pytest.mark.parametrize(
    "key", ["a//b.txt", "tab\there.txt", "line\nend.txt", "back\\slash.txt", "./dot.txt"]
)
def test_documents_of_any_key_are_read(swift: SwiftCluster, bucket: str, key: str) -> None:
    client = boto3.client(
        "s3", endpoint_url=swift.endpoint_url, aws_access_key_id=swift.access_key,
        aws_secret_access_key=swift.secret_key, region_name=swift.region,
    )  # fmt: skip
    client.put_object(Bucket=bucket, Key=f"in/{key}", Body=b"text")
    files = files_for(swift_options(swift))
    (source,) = files.expand(f"s3://{bucket}/in/**")
    assert files.read(source.uri) == b"text"
    with files.open(source.uri) as file:
        assert file.read() == b"text"


# Recipes, terminals


RECIPE = '\ufeff[base]\nmodel = "m"\n[rope]\nfactor = 2\n[data]\nsources = ["d"]\n'
RECIPE += '[publish]\nname = "n"\ntags = {of = "Grüße → 中"}\n'


def test_a_recipe_with_a_mark_on_a_terminal_without_its_letters(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE, "utf-8")
    for encoding in ("latin-1", "ascii", "cp1252"):
        done = subprocess.run(
            [sys.executable, "-m", "yarn_ops.cli", "recipe", "show", str(tmp_path / "r.toml")],
            env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        shown = "Gr??e ? ?" if encoding == "ascii" else "Grüße ? ?"
        assert shown.encode(encoding) in done.stdout


def test_a_working_directory_that_is_gone_is_told(tmp_path: Path) -> None:
    program = f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && exec {sys.executable} -m yarn_ops.cli doctor"
    (tmp_path / "gone").mkdir()
    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and not done.stdout
    assert (
        done.stderr == "yarn-ops: working directory: No such file or directory; change to one that is there\n"
    )


@pytest.mark.parametrize("alias", ["latest", "LATEST", "Latest", "v2", "V2"])
def test_an_alias_that_mlflow_keeps_for_itself_is_refused_with_the_recipe(tmp_path: Path, alias: str) -> None:
    (tmp_path / "r.toml").write_text(f"[rope]\nfactor = 2\n[publish]\nalias = '{alias}'\n")
    with pytest.raises(RecipeError, match="is reserved by MLflow"):
        load_recipe(tmp_path / "r.toml")
