"""Several trainer processes of one machine, started and ended as one.

torchrun, which several machines need, opens ports on every interface that ask nobody, and unpickles what is
written there. Here the processes meet in a file of their working directory and talk on the loopback
interface.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from yarn_ops.settings import child_environment

MEETING = "meeting"
POLL_S = 0.1
GRACE_S = 30.0


def lead(job_file: Path, work_dir: Path, processes: int, stop: threading.Event) -> int:
    """Run `processes` trainers of one job until all have ended: 0, or the status of the first that failed.

    When one has failed, or `stop` is set, the others are asked to stop; those still there `GRACE_S` after a
    failure are ended.
    """
    (work_dir / MEETING).unlink(missing_ok=True)
    environment = child_environment(_loopback())
    environment.setdefault("OMP_NUM_THREADS", "1")  # as torchrun has it: together they use all cores
    command = [sys.executable, "-m", "yarn_ops.train", str(job_file), "--parent", str(os.getpid())]
    ranks = [
        subprocess.Popen([*command, "--rank", str(rank), "--of", str(processes)], env=environment)
        for rank in range(processes)
    ]
    failed, asked_at = 0, None
    while running := [rank for rank in ranks if rank.poll() is None]:
        failed = failed or next((rank.returncode for rank in ranks if rank.returncode), 0)
        if (failed or stop.is_set()) and asked_at is None:
            asked_at = time.monotonic()
            for rank in running:
                rank.terminate()
        if failed and asked_at is not None and time.monotonic() - asked_at > GRACE_S:
            for rank in running:
                rank.kill()
        time.sleep(POLL_S)
    failed = failed or next((rank.returncode for rank in ranks if rank.returncode), 0)
    return max(failed, 1) if failed else 0  # 1: it was killed


def _loopback() -> dict[str, str]:
    """What keeps gloo's and NCCL's sockets on the loopback interface."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.family == socket.AF_INET and one.address == "127.0.0.1" for one in addresses):
            return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}
    return {}
