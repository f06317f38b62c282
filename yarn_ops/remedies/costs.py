"""What a piece of work took: time, memory, tokens."""

from __future__ import annotations

import ctypes
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""proc(5), clear_refs: the peak of the resident size becomes the present size"""


@dataclass(frozen=True)
class Cost:
    seconds: float
    peak_bytes: int | None
    """above what was there before: allocated by torch on a GPU; of the process's resident size elsewhere,
    which counts in whole pages and misses what was free in the heap; None where the system does not say"""
    tokens_read: int
    """tokens that went through the model"""


class Meter:
    """`with Meter(device) as meter: …`, then `meter.cost(tokens_read)`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> Meter:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before: int | None = torch.cuda.memory_allocated(self._device)
        else:
            _settle()
            self._before = _resident("VmRSS")
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._seconds = time.perf_counter() - self._start
        if self._device.type == "cuda":
            self._peak: int | None = torch.cuda.max_memory_allocated(self._device)
        else:
            self._peak = _resident("VmHWM")

    def cost(self, tokens_read: int) -> Cost:
        known = self._before is not None and self._peak is not None
        peak = max(0, self._peak - self._before) if known else None  # type: ignore[operator]
        return Cost(self._seconds, peak, tokens_read)


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
