"""A process that waits for the next run, with Prefect, our flows and (in its trainer) torch imported.

`yarn-ops up` keeps one (`python -m flows.engine --wait ADDRESS`). The process that a worker starts for a run
hands its arguments, environment, folder and output over a Unix socket, passes signals on, and ends as the
other ends; where nobody waits, or in other surroundings, it does the run itself. A process that has taken a
run never takes a second. When the worker's process dies, the one that does its run is killed too.

Nothing is imported here that takes time.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

ADDRESS = "standby.sock"
"""in the state directory"""
ANSWER_S = 5.0
OUTPUTS = (1, 2)
OF_ONE_RUN = "PREFECT__"
"""begins the names of variables that Prefect gives one run"""
OF_A_PROCESS = {"PWD", "OLDPWD", "SHLVL", "_"}


def hand_over(address: Path, arguments: list[str]) -> int | None:
    """Have the process that waits at `address` do this one's run, and wait until it is gone.

    Its exit status; None where none took the run. A process that was killed has this one killed.
    """
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(ANSWER_S)
        asked = {"arguments": arguments, "environment": dict(os.environ), "folder": str(Path.cwd())}
        try:
            line.connect(str(address))
            socket.send_fds(line, [b"\n"], OUTPUTS)
            line.sendall(json.dumps(asked).encode() + b"\n")
            replies = line.makefile()
            process = int(replies.readline())
        except (OSError, ValueError):
            return None

        def pass_on(number: int, frame: FrameType | None) -> None:
            with suppress(ProcessLookupError):
                os.kill(process, number)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, pass_on)
        line.settimeout(None)
        status = replies.read()  # the line closes when the process is gone
    if not status:
        os.kill(os.getpid(), signal.SIGKILL)
    return int(status)


def wait(address: Path, environment: Mapping[str, str]) -> socket.socket:
    """Wait at `address` for a run, and have its arguments, environment, folder and output from then on.

    environment: what a run's has to be, variables of that one run aside: imported modules have read it. What
    comes back is the line to who handed the run over: `end` tells it the exit status.
    """
    own = _surroundings(environment)
    with socket.socket(socket.AF_UNIX) as listener:
        address.unlink(missing_ok=True)
        listener.bind(str(address))
        address.chmod(0o600)
        listener.listen()
        while (taken := _take(listener.accept()[0], own)) is None:
            pass
        address.unlink(missing_ok=True)
    line, asked = taken
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    sys.argv[1:] = asked["arguments"]
    line.sendall(b"%d\n" % os.getpid())
    threading.Thread(target=_end_with, args=(line,), daemon=True).start()
    return line


def end(line: socket.socket, status: int) -> None:
    """Tell who handed the run over how it ended."""
    with suppress(OSError):
        line.sendall(b"%d" % status)


def _take(line: socket.socket, own: Mapping[str, str]) -> tuple[socket.socket, dict[str, Any]] | None:
    """The line and what is asked for on it, with our output where the asker's goes; None: not for us."""
    outputs: list[int] = []
    line.settimeout(ANSWER_S)
    try:
        _, outputs, _, _ = socket.recv_fds(line, 1, len(OUTPUTS))
        asked = json.loads(line.makefile().readline())
        theirs = _surroundings(asked["environment"])
        others = sorted({name for name, _ in own.items() ^ theirs.items()})
        if others:
            print(f"a run with other values of {', '.join(others)} is not for me", flush=True)
        else:
            for ours, given in zip(OUTPUTS, outputs, strict=True):
                os.dup2(given, ours)
            line.settimeout(None)
            return line, asked
    except (OSError, ValueError):
        pass
    finally:
        for output in outputs:
            os.close(output)
    line.close()
    return None


def _surroundings(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that all runs of a service have alike."""
    return {
        name: value
        for name, value in environment.items()
        if name not in OF_A_PROCESS and not name.startswith(OF_ONE_RUN)
    }


def _end_with(line: socket.socket) -> None:
    """Be killed as soon as the other end is gone."""
    with suppress(OSError):
        line.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)
