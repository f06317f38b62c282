"""Another user of this machine, by ports and files, against the stack's S3 server and databases."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from postgres import PostgresCluster
from psycopg import sql
from swift_cluster import SwiftCluster

from yarn_ops.stack.plan import StackPaths, ensure_plan

BUCKET, KEY, CONTENT = "releases", "model/config.json", b'{"secret": "of the model"}'
MODEL = f"/{BUCKET}/{KEY}"

ATTACK = """
import http.client, itertools, json, socket, sys
port, cases = json.load(sys.stdin)
for method, path, headers in cases:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, b"x" if method in ("PUT", "POST") else None, headers)
        answer = connection.getresponse()
        print(json.dumps([method, path, answer.status, answer.read().decode("latin-1")]))
    except (OSError, http.client.HTTPException) as refusal:
        print(json.dumps([method, path, 0, str(refusal)]))
    connection.close()
"""
METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE", "COPY", "OPTIONS", "REPLICATE", "SSYNC", "UPDATE", "TRACE")
PLACES = (
    "/", "/info", "/healthcheck", "/recon/version", "/recon/mem", "/recon/diskusage",
    "/endpoints/v2/AUTH_yarn",
    "/v1/AUTH_yarn", f"/v1/AUTH_yarn/{BUCKET}", f"/v1/AUTH_yarn{MODEL}", "/v1/.expiring_objects", "/v1.0",
    "/auth/v1.0", f"/{BUCKET}", f"/{BUCKET}?list-type=2", f"/{BUCKET}?uploads", f"/{BUCKET}?acl", MODEL,
    f"{MODEL}?acl",
    "/?Action=ListBuckets", "/v1/AUTH_yarn?bulk-delete", f"/v1/AUTH_yarn{MODEL}?multipart-manifest=get",
    "/v1/AUTH_yarn?format=json", f"/v1//AUTH_yarn{MODEL}", f"/v1/AUTH_yarn/../AUTH_yarn{MODEL}",
)  # fmt: skip
INNER = ("/d1/0/AUTH_yarn", f"/d1/0/AUTH_yarn/{BUCKET}", f"/d1/0/AUTH_yarn{MODEL}", "/d1/0", "/d1/0/a83-ffe")
BACKEND = {
    "X-Timestamp": "9999999999.00000",
    "X-Backend-Storage-Policy-Index": "0",
    "X-Backend-Replication": "true",
    "X-Backend-Allow-Reserved-Names": "true",
    "X-Backend-Etag-Is-At": "x",
    "X-Size": "0",
    "X-Etag": "x",
    "X-Content-Type": "text/plain",
}
CLAIMS: tuple[dict[str, str], ...] = (
    {},
    BACKEND,
    {"X-Auth-Token": "AUTH_tk00000000000000000000000000000000"},
    {"X-Storage-User": "yarn:ops", "X-Storage-Pass": "ops", "X-Auth-User": "yarn:ops", "X-Auth-Key": ""},
    {"Authorization": "AWS yarn:ops:c2lnbmF0dXJl", "Date": "Sun, 29 Nov 2026 12:00:00 GMT"},
    {"Authorization": "Basic eWFybjpvcHM6b3Bz", "X-Forwarded-For": "127.0.0.1"},
    {"X-Container-Sync-Key": "", "X-Timestamp": "1.0"},
    {"X-Container-Sync-Auth": "us clus nonce sig"},
    {"Origin": "http://evil.example", "Access-Control-Request-Method": "PUT", "Host": "evil.example"},
)


def as_stranger(command: list[str], told: str = "") -> subprocess.CompletedProcess[str]:
    """As the user nobody where we may change to it; else as ourselves, whom ports cannot tell from others."""
    other = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
    return subprocess.run(
        [*other, *command], input=told, capture_output=True, text=True, cwd="/", check=False
    )


@pytest.fixture(scope="module")
def swift() -> Iterator[SwiftCluster]:
    """In a folder that everybody may enter: what is closed, the server has closed."""
    folder = Path(tempfile.mkdtemp(prefix="strangers-"))
    folder.chmod(0o755)
    try:
        with SwiftCluster(folder / "s3") as cluster:
            cluster.create_bucket(BUCKET)
            cluster.client().put_object(Bucket=BUCKET, Key=KEY, Body=CONTENT)
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def server_processes(swift: SwiftCluster) -> list[psutil.Process]:
    etc = str(swift.directory / "etc")
    return [one for one in psutil.process_iter(["cmdline"]) if etc in (one.info["cmdline"] or ())]


def test_one_port_listens_and_nothing_else_can_be_opened(swift: SwiftCluster) -> None:
    found = server_processes(swift)
    assert len(found) > 1
    swift.client().get_object(Bucket=BUCKET, Key=KEY)["Body"].read()  # the inner servers are at work
    sockets = [one for process in found for one in process.net_connections("all")]
    listening = {one.laddr for one in sockets if one.status == psutil.CONN_LISTEN}
    assert listening == {("127.0.0.1", swift.port)}
    assert {one.laddr for one in sockets if one.status == psutil.CONN_NONE and one.laddr} == set()


def test_a_stranger_neither_reads_nor_changes_anything_by_the_port(swift: SwiftCluster) -> None:
    client = swift.client()
    before = [client.list_buckets()["Buckets"], client.list_objects_v2(Bucket=BUCKET)["Contents"]]
    cases = [
        (method, path, claim if path not in INNER else {**claim, **BACKEND})
        for method in METHODS for path in (*PLACES, *INNER) for claim in CLAIMS
    ]  # fmt: skip
    done = as_stranger([sys.executable, "-I", "-c", ATTACK], json.dumps([swift.port, cases]))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(cases), done.stderr
    told = [one for one in answers if one[2] and one[2] < 400]
    # What a browser asks before it asks: which methods there are, and no more.
    assert {(method, text) for method, _, _, text in told} <= {("OPTIONS", "")}
    leaks = (CONTENT.decode(), "<Name>", "etag", '"swift"', '"version"', swift.secret_key)
    assert [one for one in answers if any(leak.lower() in one[3].lower() for leak in leaks)] == []
    assert [client.list_buckets()["Buckets"], client.list_objects_v2(Bucket=BUCKET)["Contents"]] == before
    assert client.get_object(Bucket=BUCKET, Key=KEY)["Body"].read() == CONTENT


@pytest.mark.parametrize(
    "raw",
    [
        f"GET {MODEL}\r\n\r\n",
        f"GET http://127.0.0.1:1{MODEL} HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n",
        "CONNECT 127.0.0.1:3 HTTP/1.1\r\nHost: x\r\n\r\n"
        f"GET /d1/0/AUTH_yarn{MODEL} HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        f"GET {MODEL} HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["without a version", "to another address", "a tunnel", "two lengths"],
)
def test_no_wording_of_a_request_reaches_past_the_password(swift: SwiftCluster, raw: str) -> None:
    with socket.create_connection(("127.0.0.1", swift.port), timeout=10) as connection:
        connection.sendall(raw.encode())
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b" 200 " not in answer
    assert CONTENT not in answer


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_stranger_reads_no_file_and_takes_no_port(swift: SwiftCluster) -> None:
    assert as_stranger(["ls", str(swift.directory)]).returncode != 0
    for file in ("etc/proxy-server.conf", "etc/swift.conf", "devices/d1/objects"):
        assert as_stranger(["cat", str(swift.directory / file)]).stdout == ""
    pid = str(server_processes(swift)[0].pid)
    assert "Permission denied" in as_stranger(["ls", f"/proc/{pid}/fd"]).stderr
    share = "import socket, sys; socket.create_server(('127.0.0.1', int(sys.argv[1])), reuse_port=True)"
    taken = as_stranger([sys.executable, "-I", "-c", share, str(swift.port)])
    assert "Address already in use" in taken.stderr


def test_files_with_secrets_are_closed(swift: SwiftCluster) -> None:
    modes = [
        stat.S_IMODE((swift.directory / name).stat().st_mode)
        for name in ("etc/proxy-server.conf", "etc/swift.conf")
    ]
    assert modes == [0o600, 0o600]
    assert stat.S_IMODE(swift.directory.stat().st_mode) == 0o700
    assert swift.secret_key not in " ".join(word for one in server_processes(swift) for word in one.cmdline())


def salt_of(cluster: SwiftCluster) -> str:
    cluster.prepare()
    return (cluster.directory / "etc" / "swift.conf").read_text()


def test_each_server_has_a_salt_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    one, other = SwiftCluster(tmp_path / "one"), SwiftCluster(tmp_path / "other")
    assert len({salt_of(one), salt_of(other), salt_of(one)}) == 2


def test_data_of_a_server_with_the_old_salt_stay_readable(tmp_path: Path) -> None:
    """Until 2026-11-29 it was the same for all, in a file that others could read."""
    old = "[swift-hash]\nswift_hash_path_prefix = yarn\nswift_hash_path_suffix = ops\n"
    salted = tmp_path / "etc" / "swift.conf"
    salted.parent.mkdir()
    salted.write_text(f"{old}[storage-policy:0]\nname = default\ndefault = yes\n")
    salted.chmod(0o644)
    assert salt_of(SwiftCluster(tmp_path)).startswith(old)
    assert stat.S_IMODE(salted.stat().st_mode) == 0o600


def test_a_stack_of_four_servers_keeps_its_address(tmp_path: Path) -> None:
    paths = StackPaths(tmp_path)
    plan = ensure_plan(paths).model_dump(mode="json")
    plan["ports"] |= {"s3-proxy": plan["ports"].pop("s3"), "s3-account": 1, "s3-container": 2, "s3-object": 3}
    paths.plan.write_text(json.dumps(plan))
    again = ensure_plan(paths)
    assert again.ports["s3"] == plan["ports"]["s3-proxy"]
    assert not {1, 2, 3} & set(again.ports.values())


# Databases

USERS = ("registry", "prefect", "mlflow")
SECRET = "hunter2-of-{}"


@pytest.fixture(scope="module")
def databases(postgres: PostgresCluster) -> PostgresCluster:
    for user in USERS:
        postgres.ensure_database(user, SECRET.format(user))
    return postgres


def opens(postgres: PostgresCluster, database: str, user: str, password: str, **more: Any) -> str:
    """Why the server refuses; "" when it does not."""
    try:
        psycopg.connect(postgres.url(database, user, password), connect_timeout=10, **more).close()
    except psycopg.OperationalError as refusal:
        return str(refusal)
    return ""


@pytest.mark.parametrize("user", USERS)
def test_each_user_opens_its_own_database_and_no_other(databases: PostgresCluster, user: str) -> None:
    password = SECRET.format(user)
    assert opens(databases, user, user, password) == ""
    for other in {*USERS, "postgres", "template0", "template1", "no-such"} - {user}:
        assert "no pg_hba.conf entry" in opens(databases, other, user, password)
    assert "no pg_hba.conf entry" in opens(databases, user, user, password, replication="true")
    assert "password authentication failed" in opens(databases, user, user, "hunter2")


@pytest.mark.parametrize("database", ["postgres", "template1", *USERS])
def test_what_the_host_file_lets_through_the_database_refuses(
    databases: PostgresCluster, database: str
) -> None:
    """Both would have to be wrong."""
    with psycopg.connect(databases.url()) as connection:
        for user in {*USERS} - {database}:
            for right in ("CONNECT", "TEMP", "CREATE"):
                asked = connection.execute(
                    "SELECT has_database_privilege(%s, %s, %s)", [user, database, right]
                )
                assert asked.fetchone() == (False,), (user, right)


def test_a_cluster_from_before_is_put_right_at_its_next_start(databases: PostgresCluster) -> None:
    hosts = databases.directory / "data" / "pg_hba.conf"
    hosts.write_text("host all all 0.0.0.0/0 trust\n")
    with psycopg.connect(databases.url(), autocommit=True) as connection:
        for name in ("postgres", "template1", "mlflow"):
            connection.execute(sql.SQL("GRANT ALL ON DATABASE {} TO PUBLIC").format(sql.Identifier(name)))
        connection.execute("ALTER ROLE mlflow CREATEDB REPLICATION")
        databases.prepare()
        connection.execute("SELECT pg_reload_conf()")
    databases.ensure_database("mlflow", SECRET.format("mlflow"))
    for name in ("mlflow", "postgres", "template1"):
        test_what_the_host_file_lets_through_the_database_refuses(databases, name)
    test_each_user_opens_its_own_database_and_no_other(databases, "mlflow")
    assert stat.S_IMODE(hosts.stat().st_mode) == 0o600
    with psycopg.connect(databases.url()) as connection:
        rights = "SELECT rolcreatedb OR rolreplication FROM pg_roles WHERE rolname = 'mlflow'"
        assert connection.execute(rights).fetchone() == (False,)
