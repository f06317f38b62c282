"""Documents prepared on a Dask cluster of two nodes on this machine, with an S3 server (Swift) between them.

    pip install -e '.[cluster,stack]'
    python infra/benchmarks/cluster.py nodes --mib 64             # one node, two nodes, one process
    python infra/benchmarks/cluster.py kills --mib 64 --trials 10 # one of two nodes killed at a random moment
    python infra/benchmarks/cluster.py layouts --mib 2048 --files 200000
    python infra/benchmarks/cluster.py cleaning --documents 2000 4000 8000

A node (tests/seams/dask_cluster.py) is one worker process of one thread, with its own state directory. Who
asks is a process of its own as well; its seconds begin when the cluster is asked and end when the shards are
in the store. Peaks are VmHWM. Text is made of the words of the standard library's source, by seed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.append(str(Path(__file__).parents[2] / "tests" / "seams"))
from cluster_corpus import document, edited, put_layouts, put_lines, store_of
from dask_cluster import DaskCluster, with_cluster

from yarn_ops.servers import free_port
from yarn_ops.settings import Settings, as_environment
from yarn_ops.stack.part import RunningPart
from yarn_ops.stack.swift import Swift
from yarn_ops.store import Store, store_options

BASE = Path(__file__).parents[1] / "models" / "base512"
CLEANING = {"near_duplicate_similarity": 0.8, "shared_words": 50}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["nodes", "kills", "layouts", "cleaning", "drive"])
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--files", type=int, default=6400)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--documents", type=int, nargs="+", default=[2000, 4000, 8000])
    parser.add_argument("--sources", help=argparse.SUPPRESS)
    parser.add_argument("--here", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--clean", action="store_true", help="near duplicates and shared passages, too")
    arguments = parser.parse_args()
    if arguments.part == "drive":
        print(json.dumps(drive(arguments.sources, arguments.here, arguments.clean)))
        return
    if arguments.part == "cleaning":
        cleaning(arguments.documents)
        return
    with place() as settings:
        {"nodes": nodes, "kills": kills, "layouts": layouts}[arguments.part](settings, arguments)


# ---- what is measured


def nodes(settings: Settings, arguments: argparse.Namespace) -> None:
    """One node against two, in turns; and one process, for the digest."""
    sources = put_lines(settings, arguments.mib)
    with DaskCluster(settings, 2) as cluster:
        ask(settings, "warm", put_lines(settings, 2, "warm"), arguments)
        for turn in range(2):
            two = ask(settings, f"two-{turn}", sources, arguments)
            cluster.stop(1)
            one = ask(settings, f"one-{turn}", sources, arguments)
            cluster.start(1)
            cluster.wait()
            ratio = one["seconds"] / two["seconds"]
            print(f"two nodes {two['seconds']:.1f} s, one {one['seconds']:.1f} s: {ratio:.2f}×", flush=True)
            print(
                f"digest {two['digest'][:16]} and {one['digest'][:16]}, {two['tokens']:,} tokens", flush=True
            )
    here = ask(settings, "here", sources, arguments, "--here", "1")
    print(f"one process, one thread: {here['seconds']:.1f} s, digest {here['digest'][:16]}")


def kills(settings: Settings, arguments: argparse.Namespace) -> None:
    """One of two nodes is killed at a random moment of the time that they take undisturbed."""
    sources = put_lines(settings, arguments.mib)
    chance = random.Random(9)
    with DaskCluster(settings, 2) as cluster:
        ask(settings, "warm", put_lines(settings, 2, "warm"), arguments)
        whole = ask(settings, "whole", sources, arguments)
        print(f"undisturbed: {whole['seconds']:.1f} s, {whole['units']} units, digest {whole['digest'][:16]}")
        for trial in range(arguments.trials):
            mine = at(settings, f"kill-{trial}")
            store = store_of(mine)
            moment = chance.uniform(0, whole["seconds"])
            process = begin(mine, sources, arguments)
            assert process.stdout is not None
            process.stdout.readline()  # it begins to ask
            time.sleep(moment)
            before = finished(store)
            cluster.stop(trial % 2)
            row = end(process)
            after = finished(store)
            same = row["digest"] == whole["digest"]
            again = sum(after[key] != finish for key, finish in before.items())
            print(
                f"{trial + 1}: killed after {moment:.0f} s, {len(before)} of {len(after)} units; all in "
                f"{row['seconds']:.0f} s, {'same' if same else 'OTHER'} digest, {again} units made again",
                flush=True,
            )
            cluster.start(trial % 2)
            cluster.wait()


def layouts(settings: Settings, arguments: argparse.Namespace) -> None:
    """The same text as one file, as many, as Parquet."""
    sources = put_layouts(settings, arguments.mib, arguments.files)
    for name, pattern in sources.items():
        swift = sum(cpu_of(process) for process in servers())
        with DaskCluster(settings, 2) as cluster:
            ask(settings, f"warm-{name}", put_lines(settings, 2, "warm"), arguments)
            began = [cpu_of(process) for process in cluster.processes()]
            row = ask(settings, name, pattern, arguments)
            spent = [cpu_of(process) for process in cluster.processes()]
            peaks = [peak_of(process.pid) for process in cluster.processes()]
        work = sum(spent) - sum(began)
        served = sum(cpu_of(process) for process in servers()) - swift
        print(
            f"{name:8} {row['seconds']:7.1f} s; workers {work:6.1f} CPU s, S3 server {served:6.1f}, asking "
            f"{row['cpu_s']:5.1f}; peak MiB: workers {', '.join(f'{peak / 2**20:.0f}' for peak in peaks)}, "
            f"asking {row['peak_bytes'] / 2**20:.0f}; {row['units']} units, {row['tokens']:,} tokens",
            flush=True,
        )


def cleaning(counts: list[int]) -> None:
    """Planted near duplicates and passages among unlike documents: found, and falsely found; seconds."""
    from yarn_ops.data.contamination import measured_hashes, passages, shares_passage
    from yarn_ops.data.near_duplicates import first_near_duplicates, signature
    from yarn_ops.data.words import words

    print("documents   MB   near: recall  false     s   passages: recall  false     s   describing MB/s")
    for count in counts:
        chance = np.random.default_rng(count)
        texts = [document(chance, int(chance.integers(200, 2000))) for _ in range(count)]
        pairs = range(0, count // 5, 2)
        for number in pairs:  # one word in 50 replaced: about 0.8 of the runs of five stay
            texts[number + 1] = edited(texts[number], chance, 1 / 50)
        measured = [document(chance, 1000) for _ in range(count // 10)]
        planted = range(count // 5, 2 * count // 5)
        for number in planted:
            passage = measured[number % len(measured)].split()[300:350]
            middle = texts[number].split()
            texts[number] = " ".join([*middle[:100], *passage, *middle[100:]])
        size = sum(map(len, texts)) / 1e6
        began = time.process_time()
        hashes = [words(text) for text in texts]
        signatures = np.stack([signature(found) for found in hashes])
        kept = [passages(found, 50) for found in hashes]
        described = time.process_time() - began
        began = time.process_time()
        first = first_near_duplicates(signatures, 0.7)
        near_s = time.process_time() - began
        found = {number for number in range(count) if first[number] != number}
        wanted = {number + 1 for number in pairs}
        began = time.process_time()
        told = measured_hashes([passages(words(text), 50) for text in measured])
        hits = {number for number in range(count) if shares_passage(kept[number], told)}
        meet_s = time.process_time() - began
        print(
            f"{count:9,}{size:5.0f}   {len(found & wanted) / len(wanted):12.4f}"
            f"{len(found - wanted) / (count - len(wanted)):7.4f}{near_s:6.2f}"
            f"   {len(hits & set(planted)) / len(planted):16.4f}"
            f"{len(hits - set(planted)) / (count - len(planted)):7.4f}{meet_s:6.2f}{size / described:18.1f}",
            flush=True,
        )


# ---- who asks


def drive(sources: str, here: int, clean: bool) -> dict[str, Any]:
    """Prepare in this process, or on the cluster, by the settings; what it took."""
    from yarn_ops.cluster import ClusterUnits
    from yarn_ops.data.corpus import survey
    from yarn_ops.data.shards import LocalUnits, Units, prepare
    from yarn_ops.digests import digest_tree, tree_digest
    from yarn_ops.recipe import Data
    from yarn_ops.records import BaseModel, Local
    from yarn_ops.settings import read_settings
    from yarn_ops.store import files_for

    settings = read_settings()
    files = files_for(store_options(settings))
    data = Data(sources=(sources,), **(CLEANING if clean else {}))
    base = BaseModel(
        source="shipped:base512", architecture="LlamaForCausalLM", model_type="llama", parameters=5_049_600,
        vocab_size=8192, context_tokens=512, head_dim=64, rope_theta=1e4,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        corpus = Local(survey(data, files, out / "corpus"), out / "corpus")
        kept = out / "units"
        units: Units = LocalUnits(kept, files, here) if here else ClusterUnits(settings, kept)
        told: list[str] = []
        print("begins", flush=True)
        began, used = time.perf_counter(), time.process_time()
        record = prepare(
            data, corpus, Local(base, BASE), out / "shards",
            units=units, report=lambda _done, _all, text: told.append(text),
        )  # fmt: skip
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - used
        digest = record.tree.digest if record.tree else tree_digest(digest_tree(out / "shards"))
    return {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "digest": digest,
        "tokens": record.train_tokens + record.held_out_tokens,
        "units": len(told),
        "peak_bytes": peak_of(os.getpid()),
        "dropped": record.dropped.model_dump(),
    }


def begin(
    settings: Settings, sources: str, arguments: argparse.Namespace, *more: str
) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "drive", "--sources", sources, *more]
    command += ["--clean"] if arguments.clean else []
    environment = {**os.environ, **as_environment(settings)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> dict[str, Any]:
    told, _ = process.communicate()
    row: dict[str, Any] = json.loads(told.splitlines()[-1])
    return row


def ask(
    settings: Settings, name: str, sources: str, arguments: argparse.Namespace, *more: str
) -> dict[str, Any]:
    """Prepare from nothing, into a store of that name."""
    return end(begin(at(settings, name), sources, arguments, *more))


# ---- where


@contextmanager
def place() -> Iterator[Settings]:
    """A Swift with one bucket, and the settings of who asks; nothing of it stays."""
    with tempfile.TemporaryDirectory(prefix="cluster-") as folder:
        server = Swift(Path(folder, "swift"), port=free_port(), secret_key="benchmark")
        server.prepare()
        running = RunningPart.start(server.part(), server.directory)
        try:
            running.wait()
            server.create_bucket("bucket")
            yield with_cluster(Settings(
                state_dir=Path(folder, "asking"), store_url="s3://bucket/store",
                s3_endpoint_url=server.endpoint_url, s3_access_key=server.access_key,
                s3_secret_key=server.secret_key, s3_region=server.region,
            ))  # fmt: skip
        finally:
            running.stop()


def at(settings: Settings, name: str) -> Settings:
    """With a store of its own."""
    return settings.model_copy(update={"store_url": f"s3://bucket/{name}"})


def finished(store: Store) -> dict[str, Any]:
    """Each finished unit, and when it was."""
    return {
        info.key: info.modified
        for info in store.list("units/")
        if info.key.endswith("/manifest.json") and "tokenizer" not in info.key
    }


def servers() -> list[psutil.Process]:
    """The S3 server's processes."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "swift" in " ".join(child.cmdline())]


def cpu_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def peak_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]


# ---- texts


if __name__ == "__main__":
    main()
