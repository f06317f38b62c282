"""Tokenising documents: ours beside `datasets.map` with the same tokenizer, in turns, a process each.

    pip install datasets                                # it is no dependency of ours
    python infra/benchmarks/tokenise.py FOLDER --pattern '**/*.py' --rounds 3

FOLDER holds text files, a document each. Both read them, tokenise on two cores and write what a trainer
reads: ours shards, with equal texts dropped and every file fingerprinted (`survey` and `prepare`);
`datasets` an Arrow table (`load_dataset("text", sample_by="document")`, then `map(batched=True,
num_proc=2)`). Seconds are of that work, imports not counted; CPU seconds include children. Memory is the
most that the process and its children held together, for all documents and for half of them: what grows
with the corpus shows in the difference.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

BASE = Path(__file__).parents[1] / "models" / "base512"
WAYS = ("ours", "datasets")
CORES = 2
SAMPLE_S = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pattern", default="**/*.txt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        work = ours if arguments.way == "ours" else with_datasets
        print(json.dumps(work(arguments.folder, arguments.out)))
        return
    with tempfile.TemporaryDirectory(prefix="tokenise-") as place:
        everything, half = Path(place, "all"), Path(place, "half")
        size = lay_out(arguments.folder, arguments.pattern, everything, half)
        documents = len(list(everything.iterdir()))
        print(f"{size / 1e6:.1f} MB in {documents:,} documents, load {os.getloadavg()[0]:.1f}")
        rows = [{way: timed(way, everything) for way in WAYS} for _ in range(arguments.rounds)]
        halves = {way: timed(way, half) for way in WAYS}
    print(f"{'':10}{'seconds':>10}{'CPU s':>10}{'tokens':>14}{'MiB, all':>10}{'MiB, half':>10}")
    for way in WAYS:
        middle = {key: statistics.median(row[way][key] for row in rows) for key in rows[0][way]}
        print(
            f"{way:10}{middle['seconds']:10.2f}{middle['cpu_s']:10.2f}{middle['tokens']:14,.0f}"
            f"{middle['peak_mib']:10.0f}{halves[way]['peak_mib']:10.0f}"
        )
    for key in ("seconds", "cpu_s"):
        ratios = [row["datasets"][key] / row["ours"][key] for row in rows]
        print(
            f"{key}: datasets / ours {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def lay_out(folder: Path, pattern: str, everything: Path, half: Path) -> int:
    """Links to the distinct documents, all and every second one; their bytes."""
    everything.mkdir()
    half.mkdir()
    size = 0
    for number, source in enumerate(sorted(path for path in folder.glob(pattern) if path.is_file())):
        try:
            if not source.read_text("utf-8").strip():
                continue
        except (OSError, UnicodeDecodeError):
            continue
        size += source.stat().st_size
        for place in (everything, half)[: 2 - number % 2]:
            (place / f"{number:06}.txt").symlink_to(source.resolve())
    return size


def timed(way: str, folder: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="tokenised-") as out:
        command = [sys.executable, __file__, str(folder), "--way", way, "--out", out]
        environment = os.environ | {"HF_DATASETS_CACHE": f"{out}/cache", "HF_DATASETS_OFFLINE": "1"}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, held(process.pid))
            time.sleep(SAMPLE_S)
        assert process.stdout is not None
        row: dict[str, float] = json.loads(process.stdout.read().splitlines()[-1])
    return {**row, "peak_mib": peak / 2**20}


def held(pid: int) -> int:
    """Bytes that the process and its children hold, shared pages counted once."""
    total = 0
    try:
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            total += each.memory_full_info().pss
    except psutil.Error:
        pass
    return total


def ours(folder: Path, out: Path) -> dict[str, Any]:
    from yarn_ops.data.corpus import survey
    from yarn_ops.data.files import LocalFiles
    from yarn_ops.data.shards import LocalUnits, prepare
    from yarn_ops.recipe import Data
    from yarn_ops.records import BaseModel, Local

    data = Data(sources=(f"{folder}/*.txt",), follow_links=True)
    base = BaseModel(
        source="shipped:base512", architecture="LlamaForCausalLM", model_type="llama", parameters=5_049_600,
        vocab_size=8192, context_tokens=512, head_dim=64, rope_theta=1e4,
    )  # fmt: skip
    began = clock()
    corpus = Local(survey(data, LocalFiles(), out / "corpus"), out / "corpus")
    found = prepare(
        data, corpus, Local(base, BASE), out / "shards",
        units=LocalUnits(out / "units", LocalFiles(), CORES), report=lambda *_: None,
    )  # fmt: skip
    return since(began) | {"tokens": found.train_tokens + found.held_out_tokens}


def with_datasets(folder: Path, out: Path) -> dict[str, Any]:
    from datasets import load_dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    eos = tokenizer.eos_token_id

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[*ids, eos] for ids in tokenizer(batch["text"])["input_ids"]]}

    began = clock()
    texts = load_dataset(
        "text",
        data_files=[str(path) for path in sorted(folder.iterdir())],
        sample_by="document",
        split="train",
    )
    tokens = texts.map(encode, batched=True, num_proc=CORES, remove_columns=["text"])
    tokens.save_to_disk(out / "tokens")
    row = since(began)
    lengths = sum(len(ids) for batch in tokens.iter(1000) for ids in batch["input_ids"])
    shutil.rmtree(out / "tokens")
    return row | {"tokens": lengths}


def clock() -> tuple[float, float]:
    uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return time.perf_counter(), sum(use.ru_utime + use.ru_stime for use in uses)


def since(began: tuple[float, float]) -> dict[str, float]:
    seconds, cpu_s = (now - then for now, then in zip(clock(), began, strict=True))
    return {"seconds": seconds, "cpu_s": cpu_s}


main()
