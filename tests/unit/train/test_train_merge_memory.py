"""A merge takes the memory of a part of the model, not of the model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from merge_memory import LAYER_PARAMETERS

MIB = 1 << 20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")
def test_memory_is_below_a_third_more_than_a_shard_and_a_layer(tmp_path: Path) -> None:
    script = Path(__file__).with_name("merge_memory.py")
    command = [sys.executable, script, tmp_path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    model_bytes, largest_bytes, grew_bytes = map(int, done.stdout.split())
    assert model_bytes > 2.9 * largest_bytes
    assert grew_bytes < 1.3 * largest_bytes + 2 * LAYER_PARAMETERS, f"{grew_bytes / MIB:.0f} MiB"
