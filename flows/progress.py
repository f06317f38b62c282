"""Progress of a stage: a bar in a terminal, a progress artifact in Prefect."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from yarn_ops.processes import raise_missed
from yarn_ops.progress import OnProgress, ProgressBars
from yarn_ops.shown import duration

ARTIFACT_EVERY_S = 2.0


class Progress:
    """Where the stages of a run report to."""

    def __init__(self, bars: ProgressBars, in_prefect: bool, on_report: Callable[[], None]) -> None:
        """in_prefect: whether Prefect knows of the run. on_report: called first; it may stop what reports."""
        self._bars, self._in_prefect, self._on_report = bars, in_prefect, on_report
        self._untold: list[str] = []

    @contextmanager
    def of(self, stage: str) -> Iterator[OnProgress]:
        """Reports of one stage, to all sinks."""
        artifact, bar = _Artifact(stage), self._bars.of(stage)

        def report(done: int, total: int, note: str) -> None:
            if threading.current_thread() is threading.main_thread():
                raise_missed()
            self._on_report()
            if self._in_prefect:
                artifact.update(done, total, note)
            bar(done, total, note)

        yield report
        artifact.finish()
        bar(1, 1, "")

    def finished(self, stage: str, of: str, how: str, seconds: float) -> None:
        """One line a stage where no bars are drawn: in logs, under cron. of: what tells it from others.

        Of a run that Prefect does not know of at its end: it may turn out to be none (`told`).
        """
        if not self._bars.shown:
            self._untold.append(f"{stage:<11} {how:<6} {seconds:6.1f} s  {of}".rstrip())
        if self._in_prefect:
            self.told()

    def told(self) -> None:
        """Say what was not said yet."""
        for line in self._untold:
            self._bars.say(line)
        self._untold.clear()

    def say(self, line: str) -> None:
        """To who sits before a terminal, or reads the worker's log."""
        self._bars.say(line)

    def waiting(self, stage: str, holder: str) -> None:
        """Say that the stage waits, because another process computes it."""
        self._bars.say(f"{stage:<11} waits for process {holder}, which is at it")


class _Artifact:
    """One stage's progress artifact, written at most every two seconds, from whichever thread reports."""

    def __init__(self, stage: str) -> None:
        self._key = "progress-" + re.sub(r"[^a-z0-9]+", "-", stage.lower())
        self._task_run = copy_context()  # threads of a stage know nothing of its task run
        self._lock = threading.Lock()
        self._id: UUID | None = None
        self._last = 0.0
        self._done = 0.0
        self._first: tuple[float, int] | None = None
        """when the first report came, and what was done by then"""

    def update(self, done: int, total: int, note: str) -> None:
        with self._lock:
            now = time.monotonic()
            if total <= 0 or now - self._last < ARTIFACT_EVERY_S:
                return
            self._last, self._done = now, min(100.0, 100.0 * done / total)
            self._task_run.run(self._write, note + self._left(now, done, total))

    def _left(self, now: float, done: int, total: int) -> str:
        """; 40 s left: by what it took since the first report."""
        if self._first is None or done <= self._first[1]:
            self._first = self._first or (now, done)
            return ""
        seconds = (now - self._first[0]) / (done - self._first[1]) * (total - done)
        return f"; {duration(seconds)} left"

    def finish(self) -> None:
        if self._id is not None and self._done < 100:
            self._done = 100.0
            self._write("finished")

    def _write(self, note: str) -> None:
        if self._id is None:
            self._id = create_progress_artifact(self._done, key=self._key, description=note)
        else:
            update_progress_artifact(self._id, self._done, description=note)
