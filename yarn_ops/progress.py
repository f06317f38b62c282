"""Progress: the callback that reports it, and bars in a terminal, one a stage."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment

from yarn_ops.shown import printable

OnProgress = Callable[[int, int, str], None]
"""(done, total, note): called with how far a stage is, in its own units"""


class PlainConsole(Console):
    """A console on which nothing that strangers named (fields, tags, architectures) commands the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


class ProgressBars:
    """ProgressBars on standard error while the block runs."""

    def __init__(self) -> None:
        self.shown = sys.stderr.isatty()
        self._progress = Progress(
            TextColumn("{task.fields[name]:<11}"),
            BarColumn(bar_width=32),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=PlainConsole(stderr=True),
            disable=not self.shown,
        )

    def __enter__(self) -> ProgressBars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """One line above the bars, or in the log that stands for them."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def of(self, name: str) -> OnProgress:
        """A new bar; what is reported moves it."""
        bar = self._progress.add_task("", name=name, note="", total=None)

        def report(done: int, total: int, note: str) -> None:
            self._progress.update(bar, completed=done, total=total or None, note=note)

        return report
