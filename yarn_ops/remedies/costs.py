"""The cost of a piece of work: seconds and peak memory."""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
Result = TypeVar("Result")
RESET_PEAK = "5"
"""proc(5), clear_refs: the peak of the resident size becomes the present size"""


def metered(device: torch.device, work: Callable[[], Result]) -> tuple[Result, float, int | None]:
    """What `work` returns, the seconds it took, and its peak of bytes above what was there before.

    On a GPU what torch allocated; elsewhere the process's resident size, which counts in whole pages and
    misses what was free in the heap. None where the system does not say.
    """
    on_gpu = device.type == "cuda"
    before: int | None
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        _settle()
        before = _resident("VmRSS")
    start = time.perf_counter()
    result = work()
    if on_gpu:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else _resident("VmHWM")
    return result, seconds, None if before is None or peak is None else max(0, peak - before)


def _settle() -> None:
    """Give freed memory back to the system and begin a new peak, where Linux and glibc allow it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with suppress(OSError):
        CLEAR.write_text(RESET_PEAK)


def _resident(field: str) -> int | None:
    with suppress(OSError):
        if found := re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text()):
            return int(found[1]) * 1024
    return None
