"""A process that has torch, transformers and PEFT before anybody needs them. Nothing here loads torch.

What a run computes before it trains is called there, and then it becomes the trainer: the imports take
longer than all of that, and only once.
"""

from __future__ import annotations

import os
import pkgutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from yarn_ops.processes import start, stop
from yarn_ops.settings import child_environment

ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
"""of GPU memory: layers that keep different things fragment it, by a quarter on one H100"""


class WarmTrainer:
    """A trainer that imports what training needs while its job is being prepared. Take it once, or close it.

    Start it in the thread that takes it, see `processes.start`.
    """

    def __init__(self, log: Path) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "yarn_ops.train", "--parent", str(os.getpid())]
            self._process: subprocess.Popen[bytes] | None = start(
                command, log=log, env=child_environment(ALLOCATOR), stdin=theirs.fileno()
            )
        self._line = Connection(ours.detach())

    def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        """`call_by_name` there; here, if it has ended."""
        if self._process is not None:
            try:
                self._line.send((name, arguments, named))
                failed, value = self._line.recv()
            except (EOFError, OSError):
                self.close()
            else:
                if failed:
                    raise value
                return value
        return call_by_name(name, *arguments, **named)

    def take(self, job_file: Path) -> subprocess.Popen[bytes] | None:
        """It, told of its job; None when it is taken, closed or has ended."""
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
    """The other end, at the file descriptor `line`: do what is asked until a job's file is named; None:
    nobody will name one."""
    with Connection(os.dup(line)) as parent, suppress(EOFError, OSError):
        while not isinstance(asked := parent.recv(), Path):
            parent.send(_outcome(*asked))
        return asked
    return None


def call_by_name(name: str, *arguments: Any, **named: Any) -> Any:
    """Such as `yarn_ops.models.patch:patch`, which only then is imported."""
    return pkgutil.resolve_name(name)(*arguments, **named)


def _outcome(name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[bool, Any]:
    """Whether it failed, and its error or its result."""
    try:
        return False, call_by_name(name, *arguments, **named)
    except Exception as error:
        return True, error
