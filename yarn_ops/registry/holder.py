"""Who holds a lease, as a text by which another process of the same machine can see whether it still runs."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PROCESS_NAMESPACE = Path("/proc/self/ns/pid")


def this_process() -> str:
    """`pid@numbering`, e.g. 812@node-3/5c0f1d6e/4026531836."""
    return f"{os.getpid()}@{_numbering()}"


def has_ended(holder: str) -> bool:
    """Whether it was a process of this machine that runs no more. Of other machines nothing is known: False.

    A later process of the same number passes for the holder: then its lease runs out in its own time.
    """
    return _runs(holder) is False


def runs_here(holder: str) -> bool:
    """Whether it is a process of this machine, and runs."""
    return _runs(holder) is True


def _runs(holder: str) -> bool | None:
    pid, _, numbering = holder.partition("@")
    if numbering != _numbering() or not pid.isdecimal():
        return None
    try:
        return bool(psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _numbering() -> str:
    """Where a process number names one process: a machine since its start, on Linux a container on it."""
    if not BOOT_ID.exists():
        return platform.node()
    return f"{platform.node()}/{BOOT_ID.read_text()[:8]}/{PROCESS_NAMESPACE.stat().st_ino}"
