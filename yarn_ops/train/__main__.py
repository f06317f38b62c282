"""The trainer process: `python -m yarn_ops.train [JOB.json] [--parent PID]`, or several with `--processes N`.

On several machines torchrun starts them.

Without a job it imports what training needs and is then told of one by its standard input (`warm_trainer`).
Exit status 0: done, or stopped with a snapshot, or no job came; 2: a user's error, in the log and the last
event; else a bug.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from yarn_ops.errors import OverBudget, Stopped, TrainError, YarnOpsError
from yarn_ops.processes import importing, scratch_in, using
from yarn_ops.settings import started_by_torchrun
from yarn_ops.train import warm_trainer
from yarn_ops.train.job import LOG, Job, read_job
from yarn_ops.train.parallel.lead import lead

if TYPE_CHECKING:
    from yarn_ops.train.parallel.ranks import Ranks

WATCH_S = 0.5
"""between looks at the parent process"""
GRACE_S = 30.0
"""from the parent's end to this process's, if it has not stopped by itself"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m yarn_ops.train", description="Train one leg.")
    parser.add_argument("job", type=Path, nargs="?", help="a job file (JSON, see yarn_ops/train/job.py)")
    parser.add_argument("--parent", type=int, help="stop when this process, our parent, is gone")
    parser.add_argument("--processes", type=int, default=1, help="start so many, on this machine")
    parser.add_argument("--rank", type=int, default=0, help="which one of them this is")
    parser.add_argument("--of", type=int, default=1, help="how many they are")
    arguments = parser.parse_args()
    parent = os.getppid() if started_by_torchrun() else arguments.parent
    stop = stop_request(parent)  # before torch's import takes its seconds
    try:
        job = read_job(arguments.job) if arguments.job else awaited_job()
        if job is None:
            return 0
        if arguments.processes > 1:
            return lead(arguments.job, job.work_dir, arguments.processes, stop)
        scratch_in(job.work_dir)
        with using(job.work_dir):  # also when our parent, whose folder it is, is gone
            return train(job, stop, arguments.rank, arguments.of)
    except YarnOpsError as error:
        print(error, file=sys.stderr)
        return 2


def awaited_job() -> Job | None:
    """The job that the parent names on standard input (`warm_trainer`), after the calls that it asks for;
    output then goes to the job's log. None: the parent closed the line.

    Torch takes seconds to import and the device nothing: but for its name it is first used when there is a
    job.
    """
    with importing():
        from yarn_ops.models.suffix import import_flash_attention_4
        from yarn_ops.train import loop  # noqa: F401

        import_flash_attention_4()
    path = warm_trainer.awaited_job(sys.stdin.fileno())
    if path is None:
        return None
    job = read_job(path)
    with (job.work_dir / LOG).open("ab") as log:
        for output in (1, 2):
            os.dup2(log.fileno(), output)
    return job


def train(job: Job, stop: threading.Event, rank: int, size: int) -> int:
    """Run the job between its first and its last event, as one of `size` processes; the exit status."""
    from yarn_ops.models.device import freed_memory, resolve_device
    from yarn_ops.train.parallel.ranks import join

    device = resolve_device(job.device)
    with freed_memory(kept=device == "cpu"), join(device, job.work_dir, rank, size) as ranks:
        return _train(job, stop, ranks)


def _train(job: Job, stop: threading.Event, ranks: Ranks) -> int:
    with importing():
        from torch import OutOfMemoryError

        from yarn_ops.train.events import EventLog, NoEvents
        from yarn_ops.train.loop import run_job
        from yarn_ops.train.snapshot import newest_snapshot

    snapshot = newest_snapshot(job.snapshots, job.identity())
    through_step = snapshot.step if snapshot else 0
    if ranks.minimum([through_step, -through_step]) != [through_step, -through_step]:
        raise TrainError(f"{job.snapshots}: the processes see different snapshots; share this directory")
    events: EventLog | NoEvents = NoEvents()
    if ranks.is_main:
        events = EventLog(job.events, steps=job.leg.steps, through_step=through_step)
        events.emit("begin")
    try:
        run_job(job, events, stop, snapshot, ranks)
    except Stopped as stopped:
        events.emit("stopped", reason=str(stopped), over_budget=isinstance(stopped, OverBudget))
    except YarnOpsError as error:
        events.emit("failed", error=str(error))
        raise
    except OutOfMemoryError as error:
        windows = f"{job.train.batch_windows} x {job.leg.context_tokens} tokens"
        text = f"train: {windows} at once do not fit the GPU; lower train.batch_windows or the context"
        events.emit("failed", error=text)
        raise TrainError(text) from error
    return 0


def stop_request(parent: int | None) -> threading.Event:
    """An event that is set by SIGTERM, SIGINT and the end of `parent` (a process id; None: not watched).

    Call it first, from the main thread. A process still there `GRACE_S` after its parent's end is ended. The
    launcher asks the kernel for a death signal too, but that is Linux's alone and follows one thread.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if parent is not None:
        threading.Thread(target=_watch, args=(parent, stop), daemon=True).start()
    return stop


def _watch(parent: int, stop: threading.Event) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_S)
    stop.set()
    time.sleep(GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
