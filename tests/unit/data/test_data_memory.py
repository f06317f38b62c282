"""Preparing a large corpus takes no more memory than preparing a small one."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from yarn_ops.shipped import MODELS

MIB = 1 << 20
GROWTH_BYTES = 48 * MIB

# Prints the peak resident bytes of a process that prepares argv[1] into argv[2].
SCRIPT = """
import re, sys
from pathlib import Path
from yarn_ops.data.corpus import survey
from yarn_ops.data.files import LocalFiles
from yarn_ops.data.shards import LocalUnits, prepare
from yarn_ops.recipe import Data
from yarn_ops.records import BaseModel, Local

source, out, base = map(Path, sys.argv[1:])
data = Data(sources=(str(source),))
record = BaseModel(source="", architecture="", model_type="", parameters=1, vocab_size=8192,
                   context_tokens=512, head_dim=64, rope_theta=1e4)
corpus = Local(survey(data, LocalFiles(), out / "corpus"), out / "corpus")
prepare(data, corpus, Local(record, base), out / "shards",
        units=LocalUnits(out / "units", LocalFiles(), 2), report=lambda *_: None)
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
"""


def write_corpus(path: Path, size_bytes: int) -> Path:
    """Different documents of 200 to 80,000 characters, in one zstd frame."""
    with path.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as compressed:
        lines = io.TextIOWrapper(compressed, "utf-8", write_through=True)
        written = number = 0
        while written < size_bytes:
            number += 1
            text = f"Document {number}. " + f"line {number % 97} of the text,\n" * (8 + number * 7919 % 3500)
            written += lines.write(json.dumps({"text": text}) + "\n")
    return path


def peak_bytes(source: Path, out: Path) -> int:
    base = MODELS / "base512"
    command = [sys.executable, "-c", SCRIPT, source, out, base]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("size_bytes", [24 * MIB, pytest.param(200 * MIB, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, size_bytes: int) -> None:
    small = peak_bytes(write_corpus(tmp_path / "small.jsonl.zst", 3 * MIB), tmp_path / "small")
    large = peak_bytes(write_corpus(tmp_path / "large.jsonl.zst", size_bytes), tmp_path / "large")
    assert large - small < GROWTH_BYTES, f"{small / MIB:.0f} MiB grew to {large / MIB:.0f} MiB"
