"""A disk that becomes full in the midst of a stage: one line, nothing half-written, a later run goes on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service import AT_STEP, CELL_S, RECIPE, STAGE_NAMES, Outcome, wait
from workplace import Extension, Workplace

SIZE = "600m"
FULL = re.compile("no space left|disk is full|disk full|disk I/O error", re.IGNORECASE)
PARTIAL = re.compile(r"\.partial|\.part$|\.new$|/\.incoming/.")
"""names of files and directories that are being written"""


def fill_up(stage: str, environment: dict[str, str]) -> Outcome:
    """Fill the disk that holds all of a run in the midst of that stage; then free it and run again."""
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="full-"))
    try:
        with small_disk(folder / "state"):
            workplace = Workplace(folder, environment, RECIPE.read_text("utf-8"))
            try:
                fault, line = _filled(workplace, stage)
            finally:
                for process in workplace.processes():
                    process.kill()
                workplace.close()
        return Outcome(time.monotonic() - began, attempts=2, fault=fault, note=line)
    except TimeoutError as late:
        return Outcome(time.monotonic() - began, fault=str(late))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _filled(workplace: Workplace, stage: str) -> tuple[str, str]:
    """(what is wrong with how it ended, the line that it ended with)."""
    extension = workplace.start()
    with held_in(workplace, extension, stage):
        filler = fill(workplace.state)
    status = extension.wait()
    lines = extension.output.splitlines()
    told = [line for line in lines if line.startswith("yarn-ops: ")]
    line = told[-1].removeprefix("yarn-ops: ") if told else ""
    if status != 2 or len(told) != 1 or "Traceback" in extension.output:
        return f"status {status}: {' / '.join(lines[-3:])[:300]}", line
    if not FULL.search(line):
        return f"does not say that the disk is full: {line}", line
    if not workplace.nobody_is_left():
        return "a process is left", line
    finished = {one.key for one in workplace.stages() if one.status == "completed"}
    half = [str(path) for path in workplace.state.rglob("*") if PARTIAL.search(str(path))]
    if half:
        return f"left {half[:3]}", line
    filler.unlink()
    again = workplace.start()
    if again.wait() != 0:
        return f"the next run: {again.output.splitlines()[-1][:300]}", line
    return workplace.fault(finished), line


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of its own there; only root may."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all the room there is."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 20))
                file.flush()
        except OSError:
            pass
    with filler.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 10))
        except OSError:
            return filler


@contextmanager
def held_in(workplace: Workplace, extension: Extension, stage: str) -> Iterator[None]:
    """Within the block, the extension and what it has started stand still in the midst of that stage."""
    wait(lambda: at_work(workplace, extension, stage), CELL_S, f"did not reach {stage}")
    held = workplace.processes()
    for process in held:
        os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in held:
            os.kill(process.pid, signal.SIGCONT)


def at_work(workplace: Workplace, extension: Extension, stage: str) -> bool:
    if extension.process.poll() is not None:
        raise TimeoutError(f"ended before {stage}: {extension.output[-300:]}")
    stages = [one for one in workplace.stages() if one.stage == STAGE_NAMES[stage]]
    if stage == "evaluate":
        stages = stages[1:]
    if not any(one.status == "running" for one in stages):
        return False
    return stage != "train" or max(workplace.steps(), default=0) >= AT_STEP
