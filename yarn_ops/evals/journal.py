"""What was measured already, cell by cell: a killed evaluation goes on with the next cell.

A journal that several processes have in common also says who measures which cell, so that they share them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Protocol

from pydantic import TypeAdapter, ValidationError

from yarn_ops.digests import canonical_json
from yarn_ops.scores import CellKey, Score

SCORES = TypeAdapter(tuple[Score, ...])
Keep = Callable[[tuple[Score, ...]], None]
"""Keeps a cell's scores, all or none. LeaseLost: another process has taken it over, nothing was kept."""


class Journal(Protocol):
    """Where cells are kept."""

    def known(self, key: CellKey) -> tuple[Score, ...] | None:
        """The cell's scores; None while it is not measured."""
        ...

    def claimed(self, key: CellKey) -> AbstractContextManager[Keep | None]:
        """Within the block nobody else measures the cell: what keeps its scores. None: another is at it."""
        ...


class JsonLines:
    """A file, one cell a line; a line that was cut off by a kill counts as not measured. For one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, tuple[Score, ...]] = {}
        if path.is_file():
            for line in path.read_text("utf-8").splitlines():
                try:
                    row = json.loads(line)
                    self._known[canonical_json(row["key"])] = SCORES.validate_python(row["scores"])
                except (ValueError, KeyError, TypeError, ValidationError):
                    continue

    def known(self, key: CellKey) -> tuple[Score, ...] | None:
        return self._known.get(canonical_json(asdict(key)))

    @contextmanager
    def claimed(self, key: CellKey) -> Iterator[Keep | None]:
        yield partial(self.keep, key)

    def keep(self, key: CellKey, scores: tuple[Score, ...]) -> None:
        """A second time changes nothing."""
        if self.known(key) is not None:
            return
        self._known[canonical_json(asdict(key))] = scores
        self.path.parent.mkdir(parents=True, exist_ok=True)
        row = {"key": asdict(key), "scores": SCORES.dump_python(scores, mode="json")}
        with self.path.open("a", encoding="utf-8") as file:
            if file.tell() and not self.path.read_bytes().endswith(b"\n"):
                file.write("\n")
            file.write(json.dumps(row) + "\n")
