"""Child processes that end with us: a session of their own, output in a file, and a signal when we die."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
STOP_S = 30.0  # Prefect grants a cancelled flow as long


def start(command: Sequence[str], *, log: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start `command` in a new session, its output appended to `log`; SIGTERM reaches it when we die (Linux).

    Output goes to a file, never a pipe: a child that holds its parent's pipe hides the parent's death.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,
            preexec_fn=_death_signal(),
        )


def stop(process: subprocess.Popen[bytes], timeout_s: float = STOP_S) -> int:
    """SIGTERM to the process's whole group, SIGKILL after `timeout_s`; its exit status."""
    _signal_group(process.pid, signal.SIGTERM)
    try:
        status = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        status = -signal.SIGKILL
    _signal_group(process.pid, signal.SIGKILL)  # whatever it left behind in its group
    process.wait()
    return status


def last_lines(log: Path, count: int = 3) -> str:
    """The last lines of a log, in one."""
    try:
        lines = log.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    filled = [line.strip() for line in lines if line.strip()]
    return " | ".join(filled[-count:])


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def _death_signal() -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)  # before the fork: nothing is loaded in the child
    return lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
