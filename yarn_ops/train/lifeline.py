"""When the trainer has to end: asked to by a signal, or because the process that started it is gone."""

from __future__ import annotations

import os
import signal
import threading
import time

WATCH_S = 0.5
GRACE_S = 30.0


def stop_request(parent: int | None) -> threading.Event:
    """An event that SIGTERM, SIGINT and the death of `parent` (a process id; None: nobody's) set.

    Call it first, from the main thread. A process still there `GRACE_S` after its parent's end is ended. The
    launcher asks the kernel for a death signal too, but that is Linux's alone and follows one thread.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if parent is not None:
        threading.Thread(target=_watch, args=(parent, stop), daemon=True).start()
    return stop


def _watch(parent: int, stop: threading.Event) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_S)
    stop.set()
    time.sleep(GRACE_S)
    os._exit(1)
