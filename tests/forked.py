"""Trainers forked from one process that has imported what a trainer imports: the imports are paid once.

    with forked_trainers():
        ...  # what this process starts by yarn_ops.train

`python -m yarn_ops.train` first imports, for which a slow processor takes ten seconds. Here a trainer is a
fork of a process that has done no more than import. All else is the same: arguments, environment, folder,
output, a session of its own, the signal at our end, and it is our child. One that asks for other surroundings
(PYTHONPATH, or what libraries read on import) is started as ever.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MODULE = "yarn_ops.train"
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
READ_LATER = ("YARN_OPS_", "PREFECT_", "MLFLOW_", "PYTEST_", "TMPDIR", "PWD")
"""begins the names of variables that no import reads"""
ADOPTED_S = 10.0


@contextmanager
def forked_trainers() -> Iterator[None]:
    """Within the block this process forks its trainers."""
    from yarn_ops.train import launch, warm_trainer

    start = launch.start

    def fork_or_start(command: Sequence[Any], **how: Any) -> Any:
        forked = _fork(command, **how)
        return start(command, **how) if forked is None else forked

    launch.start = warm_trainer.start = fork_or_start
    try:
        yield
    finally:
        launch.start = warm_trainer.start = start


class Fork:
    """As much of a `subprocess.Popen` as there is to a child that somebody else has forked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._waited(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self._waited(0 if deadline is None else os.WNOHANG)) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(MODULE, timeout or 0)
            time.sleep(0.01)
        return status

    def _waited(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


_forker: tuple[socket.socket, dict[str, str]] | None = None
"""the line to the process that forks, and its surroundings"""
_one_at_a_time = threading.Lock()


def _fork(
    command: Sequence[Any],
    *,
    log: Path,
    env: Mapping[str, str],
    end_by: signal.Signals = signal.SIGTERM,
    stdin: int = subprocess.DEVNULL,
    **others: Any,
) -> Fork | None:
    """As `processes.start`; None where that has to do it."""
    global _forker
    surroundings = {name: value for name, value in env.items() if not name.startswith(READ_LATER)}
    if command[1:3] != ["-m", MODULE] or others:
        return None
    if _forker is None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            subprocess.Popen([sys.executable, __file__], env=dict(env), stdin=theirs)
        _forker = ours, surroundings
    line, its_surroundings = _forker
    if surroundings != its_surroundings:
        return None
    log.parent.mkdir(parents=True, exist_ok=True)
    asked = {"arguments": command[3:], "environment": dict(env), "folder": str(Path.cwd()), "end_by": end_by}
    with log.open("ab") as output, Path(os.devnull).open("rb") as nothing:
        input_file = nothing.fileno() if stdin == subprocess.DEVNULL else stdin
        with _one_at_a_time:
            _adopts(True)  # what the process that forks leaves behind is our child
            try:
                socket.send_fds(line, [json.dumps(asked).encode()], [input_file, output.fileno()])
                return Fork(int(line.recv(20)))
            finally:
                _adopts(False)


def _adopts(yes: bool) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)


# The side of the process that forks


def serve() -> None:
    """Fork for whoever asks on standard input; a fork returns from here, to be a trainer."""
    parent = os.getppid()
    _import_all()
    line = socket.socket(fileno=os.dup(0))
    while True:
        message, files, _, _ = socket.recv_fds(line, 1 << 20, 2)
        if not message:
            os._exit(0)
        between = os.fork()
        if between == 0:
            if os.fork() == 0:
                break
            os._exit(0)
        os.waitpid(between, 0)
        for file in files:
            os.close(file)
    asked, (taken, output) = json.loads(message), files
    deadline = time.monotonic() + ADOPTED_S
    while os.getppid() != parent:
        if time.monotonic() > deadline:
            os._exit(1)
        time.sleep(0.001)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, asked["end_by"], 0, 0, 0)
    os.setsid()
    with line:
        for file, number in ((taken, 0), (output, 1), (output, 2)):
            os.dup2(file, number)
        line.send(b"%d" % os.getpid())
    os.closerange(3, 64)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    sys.argv[1:] = asked["arguments"]


def _import_all() -> None:
    from yarn_ops.processes import importing

    with importing():
        import peft  # noqa: F401
        import transformers.models.auto.modeling_auto
        import transformers.models.llama.modeling_llama  # noqa: F401

        import yarn_ops.train.loop
        import yarn_ops.train.parallel.lead
        import yarn_ops.train.warm_trainer  # noqa: F401


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
    serve()
    runpy.run_module(MODULE, run_name="__main__", alter_sys=True)
