"""Jobs that are stopped, and jobs of several processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from yarn_ops.settings import child_environment

PROGRAM = Path(__file__).with_name("ranks_program.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node")
TOLERANCE = 1e-5


class StopAfter(threading.Event):
    """Set once it was asked `looks` times: a trainer of one micro-batch a step asks once a step."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._looks = looks

    def is_set(self) -> bool:
        self._looks -= 1
        return self._looks < 0


def together(processes: int, *command: str | Path) -> None:
    run = subprocess.run(
        [sys.executable, *TORCHRUN, str(processes), *map(str, command)],
        env=child_environment({"OMP_NUM_THREADS": "1"}),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stderr[-3000:]
