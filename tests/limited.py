"""A function run in a child that may take two gigabytes more than it begins with, and half a minute."""

from __future__ import annotations

import multiprocessing
import re
import resource
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

GIB = 1 << 30
LIMIT_BYTES = 2 * GIB
LIMIT_S = 30.0

Outcome = tuple[str, str, float, int]
"""("returned" | the error's class | "killed", what it says, seconds, resident bytes that it took at most)"""


def limited(work: Callable[..., Any], *arguments: Any, patience: float = 4.0) -> Outcome:
    """How `work` ended. The processor's seconds count; the clock ends what waits, `patience` times later."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_child, args=(theirs, work, arguments))
    child.start()
    theirs.close()
    try:
        if ours.poll(LIMIT_S * patience):
            outcome: Outcome = ours.recv()
            return outcome
        return ("killed", "no end", LIMIT_S * patience, 0)
    except EOFError:
        child.join()
        return ("killed", f"exit status {child.exitcode}", 0.0, 0)
    finally:
        child.kill()
        child.join()


def _child(answers: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    begun = _status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (begun + LIMIT_BYTES, begun + LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + LIMIT_S) + 1,) * 2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before, own = time.process_time(), _status("VmRSS")
    try:
        told = ("returned", repr(work(*arguments)))
    except BaseException as error:
        told = (type(error).__name__, f"{error}")
        if not type(error).__module__.startswith("yarn_ops"):
            told = (type(error).__name__, traceback.format_exc())
    answers.send((*told, time.process_time() - before, _status("VmHWM") - own))


def _status(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]
