"""Heartbeats between the processes of one run: when one is killed or hangs, the others end and name it.

Each process writes a heartbeat every second into the run's working directory, which all of them share, and a
thread of it reads the others'. Without them a collective would wait for a lost process until its timeout, for
minutes, and not say why.

ranks/0.json      host, process id, its start time, number of heartbeats, whether it has finished
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
"""a process that itself was suspended for so long forgets what it saw of the others, and looks anew"""
ENDING_S = 2.0
"""within which a process that was killed is gone, once its sockets are closed"""
LOST_STATUS = 3

Kind = Literal["error", "lost", "fault"]
"""error: of the user; lost: a process was killed or hangs; fault: a bug, whose traceback is in the log"""


class Peers:
    """One rank's heartbeats, and its view of the others'."""

    def __init__(self, work_dir: Path, rank: int, size: int) -> None:
        self._folder, self._rank, self._size = work_dir / FOLDER, rank, size
        self._beats, self._leaving = 0, threading.Event()
        self._seen: dict[int, tuple[dict[str, Any], float]] = {}

    def clear(self) -> None:
        """Remove the files of an earlier attempt. One rank calls it, before any heartbeat."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)

    def beat(self) -> None:
        """Write a heartbeat."""
        self._beats += 1
        mine = {"host": platform.node(), "pid": os.getpid(), "birth": birth(os.getpid())}
        place = self._folder / f"{self._rank}.json"
        with suppress(OSError), atomic_write(place) as draft:  # a full disk is not a death
            draft.write_text(json.dumps({**mine, "beats": self._beats, "left": self._leaving.is_set()}))

    def watch(self) -> None:
        """Start the thread that writes heartbeats and ends this process when another is lost."""
        threading.Thread(target=self._watch, daemon=True).start()

    def leave(self) -> None:
        """This rank has finished: the others will not take its end for a loss."""
        self._leaving.set()
        self.beat()

    def note(self, kind: Kind, text: str) -> None:
        """Write down why the run ends, for the launcher (`cause_of_end`)."""
        with suppress(OSError):
            (self._folder / f"{self._rank}.failed").write_text(json.dumps({"kind": kind, "text": text}))

    def lost(self) -> str | None:
        """Which process is lost and how, in words; None while all are there. One that hangs is killed."""
        now = time.monotonic()
        for rank in range(self._size):
            if rank == self._rank or (found := self._read(rank)) is None or found["left"]:
                continue
            before, since = self._seen.get(rank, (None, now))
            if found != before:
                self._seen[rank] = found, now
            name = f"process {found['pid']}, rank {rank} of {self._size}"
            if not _runs(found):
                explained = (self._folder / f"{rank}.failed").exists()
                return None if explained else f"{name}, was killed"
            if found == before and now - since > SILENT_S:
                _kill(found)
                return f"{name}, gave no sign of life for {SILENT_S:.0f} s and was ended"
        return None

    def lost_in_collective(self) -> str | None:
        """As `lost`, after a collective has failed: who was killed may still be ending."""
        ends = time.monotonic() + ENDING_S
        while (lost := self.lost()) is None and time.monotonic() < ends:
            time.sleep(ENDING_S / 20)
        return lost

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


def cause_of_end(work_dir: Path) -> tuple[Kind, str] | None:
    """Why the ranks ended the run: users' errors come before lost processes, these before bugs; None: no
    note."""
    notes = []
    for path in sorted((work_dir / FOLDER).glob("*.failed")):
        with suppress(OSError, ValueError):
            notes.append(json.loads(path.read_bytes()))
    order = ("error", "lost", "fault")
    notes.sort(key=lambda note: order.index(note["kind"]))
    return (notes[0]["kind"], notes[0]["text"]) if notes else None


def _runs(found: dict[str, Any]) -> bool:
    """Whether the process is alive; True for one on another host, which cannot be seen from here."""
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
