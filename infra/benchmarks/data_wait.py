"""How long a training step waits for its data: one window drawn and made a batch, on the CPU.

    python infra/benchmarks/data_wait.py --tokens 200000000

Makes a token file of random documents (2,000 to 400,000 tokens, uint16), then draws windows of two lengths
as the trainer does (`WindowSampler.window`, `make_batch`): warm (the file in the page cache) and cold (put
out of it before each window). Milliseconds of wall-clock and of processor time: median and worst.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from yarn_ops.data.layout import ShardReader, ShardWriter, TokenWriter
from yarn_ops.data.windows import WindowSampler
from yarn_ops.train.batches import make_batch

LENGTHS = (32_768, 131_072)
VOCABULARY = 50_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=200_000_000)
    parser.add_argument("--windows", type=int, default=30)
    parser.add_argument("--folder", type=Path, help="where the shards lie meanwhile")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="data-wait-", dir=arguments.folder) as place:
        documents = make(Path(place), arguments.tokens)
        print(f"{arguments.tokens:,} tokens in {documents:,} documents, load {os.getloadavg()[0]:.1f}")
        for length in LENGTHS:
            for prefer_long in (0.0, 1.0):
                for cold in (False, True):
                    wall, processor = draw(Path(place), length, prefer_long, arguments.windows, cold)
                    print(
                        f"{length:>8,} tokens, prefer_long {prefer_long:g}, {'cold' if cold else 'warm'}: "
                        f"{statistics.median(wall):.2f} ms (worst {max(wall):.2f}), "
                        f"processor {statistics.median(processor):.2f} ms (worst {max(processor):.2f})"
                    )


def make(folder: Path, tokens: int) -> int:
    random, documents = np.random.default_rng(0), 0
    dtype = np.dtype("<u2")
    with ShardWriter(folder, dtype) as writer, TokenWriter(folder / "tokens-00000.bin", dtype) as file:
        while tokens > 0:
            length = min(tokens, int(np.exp(random.uniform(np.log(2_000), np.log(400_000)))))
            extent = file.append(random.integers(0, VOCABULARY, length, dtype=np.uint16))
            side = "held_out" if documents == 0 else "train"
            writer.index(side, f"folder/document-{documents}.txt", extent)
            tokens, documents = tokens - length, documents + 1
    writer.finish([file.tokens], {})
    os.sync()
    return documents


def draw(
    folder: Path, length: int, prefer_long: float, windows: int, cold: bool
) -> tuple[list[float], list[float]]:
    """Milliseconds of each window, wall-clock and of the processor."""
    wall, processor = [], []
    sampler = WindowSampler(
        ShardReader(folder, "train"), window_tokens=length, seed=0, prefer_long=prefer_long
    )
    for number in range(-1, windows):  # the first is not counted
        if cold:
            forget(folder)
            sampler = WindowSampler(  # what is mapped stays in the page cache
                ShardReader(folder, "train"), window_tokens=length, seed=0, prefer_long=prefer_long
            )
        began, began_processor = time.perf_counter(), time.process_time()
        make_batch([sampler.window(max(number, 0))], device="cpu", document_mask=True)
        if number >= 0:
            wall.append(1e3 * (time.perf_counter() - began))
            processor.append(1e3 * (time.process_time() - began_processor))
    return wall, processor


def forget(folder: Path) -> None:
    for file in folder.glob("tokens-*.bin"):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


main()
