"""A trainer process that imports torch, transformers and PEFT before its job is known.

The stages before training call their functions in it, and then it becomes the trainer. So a run pays for
these imports, which take longer than a small model's stages, once. Nothing here loads torch.
"""

from __future__ import annotations

import os
import pkgutil
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from yarn_ops.processes import start, stop
from yarn_ops.settings import child_environment

ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
"""of GPU memory: layers of different policies fragment it otherwise, by a quarter on one H100"""


class WarmTrainer:
    """The parent's end of one such process. `take` it once, or `close` it.

    Start it in the thread that takes it, see `processes.start`.
    """

    def __init__(self, log: Path, environment: Mapping[str, str]) -> None:
        """environment: variables for it beside this process's own."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "yarn_ops.train", "--parent", str(os.getpid())]
            self._process: subprocess.Popen[bytes] | None = start(
                command, log=log, env=child_environment({**ALLOCATOR, **environment}), stdin=theirs.fileno()
            )
        self._line = Connection(ours.detach())

    def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        """`call_by_name` in the process, or here where it has ended. Its exceptions are raised here."""
        if self._process is not None:
            try:
                self._line.send((True, name, arguments, named))
                failed, value = self._line.recv()
            except (EOFError, OSError):
                self.close()
            else:
                if failed:
                    raise value
                return value
        return call_by_name(name, *arguments, **named)

    def prepare(self, name: str, *arguments: Any) -> None:
        """Have the process make such a call too while nothing else is asked of it, whose outcome nobody
        needs."""
        if self._process is not None:
            with suppress(OSError):
                self._line.send((False, name, arguments, {}))

    def take(self, job_file: Path) -> subprocess.Popen[bytes] | None:
        """The process, which now runs this job; None when it was taken or closed, or has ended."""
        process, self._process = self._process, None
        if process is None:
            return None
        with self._line:
            try:
                self._line.send(job_file)
            except OSError:
                process.wait()
                return None
        return process

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            self._line.close()
            stop(process, end_by=signal.SIGKILL)  # it has nothing to keep


def awaited_job(line: int) -> Path | None:
    """The child's end, on file descriptor `line`: make the calls that are asked for until a job's file is
    named; its path, or None when the parent has closed the line."""
    prepared: deque[tuple[Any, ...]] = deque()
    with Connection(os.dup(line)) as parent, suppress(EOFError, OSError):
        while True:
            while prepared and not parent.poll():
                failed, error = _outcome(*prepared.popleft())
                if failed:
                    print(f"nothing prepared: {error!r}", file=sys.stderr)
            asked = parent.recv()
            if isinstance(asked, Path):
                return asked
            is_answered, *call = asked
            if is_answered:
                parent.send(_outcome(*call))
            else:
                prepared.append(tuple(call))
    return None


def call_by_name(name: str, *arguments: Any, **named: Any) -> Any:
    """Import and call a function named as in `yarn_ops.models.patch:patch`."""
    return pkgutil.resolve_name(name)(*arguments, **named)


def _outcome(name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[bool, Any]:
    """(whether the call raised, its exception or its result)."""
    try:
        return False, call_by_name(name, *arguments, **named)
    except Exception as error:
        return True, error
