"""How fast a model comes out of the S3 server, and goes in: ours, MLflow's, and what the server can do.

    python infra/benchmarks/pull.py --gib 2 --rounds 3

Starts the stack's own Swift on free ports of loopback, stores a directory of safetensors shards, and brings
the same objects down in turns, each time in a process of its own: `pull_tree` (to a new place, with an empty
cache; every byte hashed and on the disk at the end), `mlflow artifacts download`, and bare ranged GETs of the
same parts by as many connections as ours, read and thrown away. Seconds are of the transfer alone, imports
not counted; medians of the rounds; a ratio is the median of the rounds' ratios of speed. Everything lies in
--folder, which needs five times the size, and is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from queue import SimpleQueue
from urllib.parse import urlsplit

import psutil

from yarn_ops.servers import free_port
from yarn_ops.stack.part import running
from yarn_ops.stack.swift import Swift
from yarn_ops.store import Store, StoreOptions, open_store
from yarn_ops.store.files import PART_BYTES
from yarn_ops.store.manifest import read_manifest
from yarn_ops.store.pull import PARTS_AT_ONCE, pull_tree
from yarn_ops.store.trees import put_tree

MIB = 1 << 20
BUCKET = "models"
SHARDS = 4


@contextmanager
def swift_server(folder: Path) -> Iterator[Swift]:
    server = Swift(folder, port=free_port(), secret_key=secrets.token_hex(16))
    server.prepare()
    with running([server.part()], folder):
        server.create_bucket(BUCKET)
        yield server


def make_model(folder: Path, size_bytes: int) -> Path:
    """SHARDS files of one tensor of random bytes, and a config."""
    folder.mkdir()
    length = size_bytes // SHARDS
    for number in range(SHARDS):
        tensor = {"dtype": "U8", "shape": [length], "data_offsets": [0, length]}
        header = json.dumps({f"layers.{number}": tensor}).encode()
        with (folder / f"model-{number + 1:05}-of-{SHARDS:05}.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            for start in range(0, length, 64 * MIB):
                file.write(os.urandom(min(64 * MIB, length - start)))
    (folder / "config.json").write_text("{}")
    return folder


@contextmanager
def clock() -> Iterator[None]:
    """Print the seconds of the block, and this process's processor seconds."""
    processor, began = time.process_time(), time.perf_counter()
    yield
    print(f"took {time.perf_counter() - began} {time.process_time() - processor}")


def ours(store: Store, uri: str, to: Path) -> None:
    with clock():
        pull_tree(store, uri, to, cache=to.parent / "cache")


def mlflow(store: Store, uri: str, to: Path) -> None:
    """What the command `mlflow artifacts download` calls."""
    from mlflow.artifacts import download_artifacts
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(uri)  # what it imports late is not transfer
    with clock():
        download_artifacts(artifact_uri=uri, dst_path=str(to))


def bare(store: Store, uri: str, to: Path) -> None:
    """Ranged GETs of the same parts by presigned URLs: no hash, no disk, no client's ways."""
    prefix = store.key_of(uri)
    jobs: SimpleQueue[tuple[str, str] | None] = SimpleQueue()
    for name, entry in read_manifest(store, prefix).files.items():
        named = store._named(f"{prefix}/{name}")  # type: ignore[attr-defined]
        url = urlsplit(store._client.generate_presigned_url("get_object", Params=named))  # type: ignore[attr-defined]
        for start in range(0, entry.size_bytes, PART_BYTES):
            stop = min(start + PART_BYTES, entry.size_bytes)
            jobs.put((f"{url.path}?{url.query}", f"bytes={start}-{stop - 1}"))
    for _ in range(PARTS_AT_ONCE):
        jobs.put(None)

    def work(_: int) -> int:
        connection, buffer, received = HTTPConnection(url.netloc), bytearray(MIB), 0
        while job := jobs.get():
            connection.request("GET", job[0], headers={"Range": job[1]})
            answer = connection.getresponse()
            if answer.status != 206:
                raise RuntimeError(f"{answer.status}: {answer.read(500)!r}")
            while count := answer.readinto(buffer):
                received += count
        return received

    with clock(), ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
        received = sum(pool.map(work, range(PARTS_AT_ONCE)))
    assert received == read_manifest(store, prefix).size_bytes


def upload(store: Store, uri: str, to: Path) -> None:
    with clock():
        put_tree(store, to)


def mlflow_upload(store: Store, uri: str, to: Path) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(uri)
    with clock():
        repository.log_artifacts(str(to))


ARMS: dict[str, Callable[[Store, str, Path], None]] = {
    "pull, ours": ours,
    "pull, mlflow artifacts download": mlflow,
    "pull, bare ranged GETs": bare,
    "upload, ours": upload,
    "upload, mlflow log-artifacts": mlflow_upload,
}


def one(arm: str, url: str, uri: str, to: Path) -> None:
    """In a process of its own."""
    keys = (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    store = open_store(url, StoreOptions(os.environ["MLFLOW_S3_ENDPOINT_URL"], *keys))
    store.size("nothing")  # the client is made
    ARMS[arm](store, uri, to)


def timed(arm: str, swift: Swift, url: str, uri: str, to: Path) -> tuple[float, float]:
    environment = {
        **os.environ,
        "MLFLOW_S3_ENDPOINT_URL": swift.endpoint_url,
        "AWS_ACCESS_KEY_ID": swift.access_key,
        "AWS_SECRET_ACCESS_KEY": swift.secret_key,
        "AWS_DEFAULT_REGION": swift.region,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    line = [sys.executable, __file__, "--arm", arm, url, uri, str(to)]
    done = subprocess.run(line, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    (line_of_clock,) = (line for line in done.stdout.splitlines() if line.startswith("took "))
    seconds, processor = line_of_clock.split()[1:]
    return float(seconds), float(processor)


def measure(gib: float, rounds: int, folder: Path) -> None:
    model = make_model(folder / "model", int(gib * (1 << 30)))
    size_mib = sum(path.stat().st_size for path in model.iterdir()) / MIB
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    processor: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with swift_server(folder / "swift") as swift:
        options = StoreOptions(swift.endpoint_url, swift.access_key, swift.secret_key)
        url = f"s3://{BUCKET}/ours"

        def note(arm: str, uri: str, to: Path) -> None:
            taken, cpu = timed(arm, swift, url, uri, to)
            seconds[arm].append(taken)
            processor[arm].append(cpu)
            print(f"{arm}: {taken:.2f} s, load {psutil.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)

        note("upload, mlflow log-artifacts", f"s3://{BUCKET}/mlflow", model)
        note("upload, ours", url, model)
        tree = put_tree(open_store(url, options), model)  # there already: says where
        for number in range(rounds):
            for arm in ("pull, ours", "pull, mlflow artifacts download", "pull, bare ranged GETs"):
                to = folder / f"pulled-{number}"
                to.mkdir()
                note(arm, tree.uri, to / "model" if arm == "pull, ours" else to)
                shutil.rmtree(to)
    report(size_mib, rounds, seconds, processor)


def report(
    size_mib: float, rounds: int, seconds: dict[str, list[float]], processor: dict[str, list[float]]
) -> None:
    print(f"{size_mib:,.0f} MiB in {SHARDS} shards, medians of {rounds} rounds; {os.cpu_count()} cores\n")
    print("| what | s | from, to | MiB/s | client's processor s |\n|---|---|---|---|---|")
    for arm, taken in seconds.items():
        print(
            f"| {arm} | {statistics.median(taken):.1f} | {min(taken):.1f}, {max(taken):.1f} "
            f"| {size_mib / statistics.median(taken):.0f} | {statistics.median(processor[arm]):.1f} |"
        )
    print()
    for other in (
        "pull, mlflow artifacts download",
        "pull, bare ranged GETs",
        "upload, mlflow log-artifacts",
    ):
        mine = seconds[f"{other.split(',')[0]}, ours"]
        ratios = [theirs / own for theirs, own in zip(seconds[other], mine, strict=True)]
        print(f"ours to {other}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="on a disk with extended attributes")
    parser.add_argument("--arm", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm:
        arm, url, uri, to = arguments.arm
        one(arm, url, uri, Path(to))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        measure(arguments.gib, arguments.rounds, Path(folder))


if __name__ == "__main__":
    main()
