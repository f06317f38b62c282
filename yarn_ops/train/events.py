"""The trainer's events: a file of JSON lines, each flushed as it happens, that is read while it grows.

{"event": begin | phase | start | plan | step | checkpoint | done | stopped | failed, "step": n, "steps": n,
...}; a phase has the name of what begins, of what comes before the first step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yarn_ops.atomic import atomic_write

Event = dict[str, Any]


class EventLog:
    """The writing end. Opening it replaces the file by one that keeps the events up to `through_step`, the
    step from which training resumes; a reader recognises the new attempt by the new file's inode."""

    def __init__(self, path: Path, *, steps: int, through_step: int) -> None:
        kept = [
            event
            for event in read_events(path)
            if event["event"] in ("step", "checkpoint") and event["step"] <= through_step
        ]
        self._steps, self._step = steps, through_step
        with atomic_write(path) as draft:
            self._file = draft.open("w", encoding="utf-8", buffering=1)
            for event in kept:
                self._write(event)

    def emit(self, event: str, *, step: int | None = None, **facts: Any) -> None:
        """Write an event of `step`; None: the step of the event before."""
        self._step = self._step if step is None else step
        self._write({"event": event, "step": self._step, "steps": self._steps, **facts, "time": time.time()})

    def _write(self, event: Event) -> None:
        self._file.write(json.dumps(event) + "\n")


class NoEvents:
    """The writing end of a rank other than the main one: it writes nothing."""

    def emit(self, event: str, *, step: int | None = None, **facts: Any) -> None:
        """Do nothing."""


class EventTail:
    """The reading end: the events of the file that replaces the one that is there now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = self._inode()
        self._offset = 0

    def read(self) -> Iterator[Event]:
        """The events since the last call. An incomplete last line is left for the next call."""
        if self._inode() in (None, self._before):
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield json.loads(line)

    def _inode(self) -> int | None:
        try:
            return self._path.stat().st_ino
        except FileNotFoundError:
            return None


def read_events(path: Path) -> list[Event]:
    """All events of a log, none where there is no file. An incomplete last line is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
