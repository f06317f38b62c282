"""One server process of the stack: how it is started, and when it is ready."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from yarn_ops import processes
from yarn_ops.errors import SettingsError

READY_S = 180.0  # databases are made at a first start; other programs may keep the machine busy
POLL_S = 0.05
LARGEST_LOG_BYTES = 16 * 2**20


@dataclass(frozen=True)
class StackPart:
    """What to run, with its whole environment. `end_by` is the signal on which it ends well."""

    name: str
    command: Sequence[str | Path]
    environment: Mapping[str, str]
    ready: Callable[[], bool]
    user: str | None = None
    folder: Path | None = None
    end_by: signal.Signals = signal.SIGTERM


@dataclass
class RunningPart:
    """A part that was started. Start it from a thread that lives as long as it may."""

    part: StackPart
    process: subprocess.Popen[bytes]
    log: Path
    started_at: float

    @classmethod
    def start(cls, part: StackPart, logs: Path) -> RunningPart:
        log = logs / f"{part.name}.log"
        if log.exists() and log.stat().st_size > LARGEST_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        process = processes.start(
            part.command,
            log=log,
            env=part.environment,
            user=part.user,
            folder=part.folder,
            end_by=part.end_by,
        )
        return cls(part, process, log, time.monotonic())

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def wait(self) -> None:
        """Until it is ready; SettingsError, with the end of its log, when it ends or takes too long."""
        deadline = time.monotonic() + READY_S
        while not self.part.ready():
            timed_out = time.monotonic() > deadline
            if self.ended or timed_out:
                how = "is not ready in time" if timed_out else f"ended with status {self.process.returncode}"
                last = processes.last_lines(self.log)
                raise SettingsError(f"{self.part.name} {how}; the end of {self.log}: {last}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        processes.stop(self.process, end_by=self.part.end_by)
