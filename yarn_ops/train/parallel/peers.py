"""The processes of one run watch each other: whoever is killed or stopped ends the run, by name and at once.

Each writes a beat, a second apart, into the run's working directory, which all of them share; a thread of
each reads the others'. A collective that waits for a lost peer would wait for minutes, and not say why.

ranks/0.json      host, process and its birth, beats so far, whether it has left in peace
ranks/0.failed    why it ended the run
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import psutil

from yarn_ops.atomic import atomic_write
from yarn_ops.processes import alive, birth

FOLDER = "ranks"
BEAT_S = 1.0
SILENT_S = 20.0
STALLED_S = 5.0
"""a watcher that was away for so long has nothing to say about others"""
LOST_STATUS = 3

Kind = Literal["error", "lost", "fault"]
"""error: a user can mend it; lost: a process was killed or stopped; fault: ours, the log has its traceback"""


class Peers:
    """One rank's view of the others."""

    def __init__(self, work_dir: Path, rank: int, size: int) -> None:
        self._folder, self._rank, self._size = work_dir / FOLDER, rank, size
        self._beats, self._leaving = 0, threading.Event()
        self._seen: dict[int, tuple[dict[str, Any], float]] = {}

    def clear(self) -> None:
        """Forget an earlier life of the run; one rank, before any of them beats."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)

    def beat(self) -> None:
        """I live."""
        self._beats += 1
        mine = {"host": platform.node(), "pid": os.getpid(), "birth": birth(os.getpid())}
        place = self._folder / f"{self._rank}.json"
        with suppress(OSError), atomic_write(place) as draft:  # a full disk is not a death
            draft.write_text(json.dumps({**mine, "beats": self._beats, "left": self._leaving.is_set()}))

    def watch(self) -> None:
        """From now on: beat, and end this process when another one is lost."""
        threading.Thread(target=self._watch, daemon=True).start()

    def leave(self) -> None:
        """My work is done: that I am gone means nothing."""
        self._leaving.set()
        self.beat()

    def note(self, kind: Kind, text: str) -> None:
        """Say why the run ends, for the launcher."""
        with suppress(OSError):
            (self._folder / f"{self._rank}.failed").write_text(json.dumps({"kind": kind, "text": text}))

    def lost(self) -> str | None:
        """Who is lost, in words; None while everybody lives."""
        now = time.monotonic()
        for rank in range(self._size):
            if rank == self._rank or (found := self._read(rank)) is None or found["left"]:
                continue
            before, since = self._seen.get(rank, (None, now))
            if found != before:
                self._seen[rank] = found, now
            name = f"process {found['pid']}, rank {rank} of {self._size}"
            if not _runs(found):
                return None if self._explained(rank) else f"{name}, was killed"
            if found == before and now - since > SILENT_S:
                _kill(found)
                return f"{name}, gave no sign of life for {SILENT_S:.0f} s and was ended"
        return None

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._leaving.wait(BEAT_S):
            self.beat()
            if time.monotonic() - last > STALLED_S:
                self._seen.clear()
            last = time.monotonic()
            if lost := self.lost():
                self.note("lost", lost)
                os._exit(LOST_STATUS)

    def _read(self, rank: int) -> dict[str, Any] | None:
        try:
            return dict(json.loads((self._folder / f"{rank}.json").read_bytes()))
        except (OSError, ValueError):
            return None

    def _explained(self, rank: int) -> bool:
        return (self._folder / f"{rank}.failed").exists()


def cause_of_end(work_dir: Path) -> tuple[Kind, str] | None:
    """Why the ranks ended the run: what a user can mend before what was lost before our own faults."""
    notes = []
    for path in sorted((work_dir / FOLDER).glob("*.failed")):
        with suppress(OSError, ValueError):
            notes.append(json.loads(path.read_bytes()))
    order = ("error", "lost", "fault")
    notes.sort(key=lambda note: order.index(note["kind"]))
    return (notes[0]["kind"], notes[0]["text"]) if notes else None


def _runs(found: dict[str, Any]) -> bool:
    """Whether the process lives, as far as can be seen from here."""
    if found["host"] != platform.node():
        return True
    try:
        return alive(psutil.Process(found["pid"])) and birth(found["pid"]) == found["birth"]
    except psutil.NoSuchProcess:
        return False


def _kill(found: dict[str, Any]) -> None:
    if found["host"] == platform.node():
        with suppress(ProcessLookupError, PermissionError):
            os.kill(found["pid"], signal.SIGKILL)
