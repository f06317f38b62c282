"""When the trainer has to end: asked to by a signal, or because the process that started it is gone."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1  # linux/prctl.h
WATCH_S = 0.5
GRACE_S = 30.0


def stop_request(parent: int | None) -> threading.Event:
    """An event that SIGTERM, SIGINT and the death of `parent` (a process id; None: nobody's) set.

    Call it first, from the main thread. A process that has not ended `GRACE_S` after its parent did is ended.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if parent is not None:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        # The kernel's signal follows the thread that started us, and misses a parent that was gone before
        # the call above: the watchdog covers both.
        threading.Thread(target=_watch, args=(parent, stop), daemon=True).start()
    return stop


def _watch(parent: int, stop: threading.Event) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_S)
    stop.set()
    time.sleep(GRACE_S)
    os._exit(1)
