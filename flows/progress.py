"""Progress of a stage: a bar in a terminal, a progress artifact in Prefect."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

Report = Callable[[int, int, str], None]
"""(done, total, note): how far a stage is, in its own units"""

ARTIFACT_EVERY_S = 2.0


class Progress:
    """Where stages report to. Bars are drawn only in a terminal."""

    def __init__(self) -> None:
        self._bars: RichProgress | None = None
        if sys.stderr.isatty():
            self._bars = RichProgress(
                TextColumn("{task.fields[name]:<10}"),
                BarColumn(bar_width=32),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._bars.start()

    @contextmanager
    def of(self, stage: str) -> Iterator[Report]:
        """Reports of one stage, to all sinks."""
        artifact = _Artifact(stage)
        bar = None if self._bars is None else self._bars.add_task("", name=stage, note="", total=None)

        def report(done: int, total: int, note: str) -> None:
            artifact.update(done, total, note)
            if self._bars is not None and bar is not None:
                self._bars.update(bar, completed=done, total=total or None, note=note)

        yield report
        artifact.finish()
        if self._bars is not None and bar is not None:
            self._bars.update(bar, completed=1, total=1)

    def finished(self, stage: str, how: str, seconds: float) -> None:
        """One line a stage where no bars are drawn: in logs, under cron."""
        if self._bars is None:
            sys.stderr.write(f"{stage:<10} {how:<6} {seconds:6.1f} s\n")

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()


class _Artifact:
    """One stage's progress artifact, written at most every two seconds."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._id: UUID | None = None
        self._last = 0.0
        self._done = 0.0

    def update(self, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if total <= 0 or now - self._last < ARTIFACT_EVERY_S:
            return
        self._last = now
        self._done = min(100.0, 100.0 * done / total)
        if self._id is None:
            key = "progress-" + re.sub(r"[^a-z0-9]+", "-", self._stage.lower())
            self._id = create_progress_artifact(self._done, key=key, description=note)
        else:
            update_progress_artifact(self._id, self._done, description=note)

    def finish(self) -> None:
        if self._id is not None and self._done < 100:
            update_progress_artifact(self._id, 100.0)
