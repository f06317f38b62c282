"""Run a trainer process: start it, forward its events, end it with its parent. Nothing here loads torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from yarn_ops.errors import OverBudget, Stopped, TrainerKilled, TrainError
from yarn_ops.models.files import read_config
from yarn_ops.processes import birth, last_lines, raise_missed, start, stop
from yarn_ops.recipe import RAISE_BUDGET
from yarn_ops.records import Adapter
from yarn_ops.settings import child_environment
from yarn_ops.train.events import Event, EventTail
from yarn_ops.train.job import LOG, Job
from yarn_ops.train.parallel.layout import StepShape, usable_processes
from yarn_ops.train.parallel.peers import FOLDER, cause_of_end
from yarn_ops.train.precision import trainer_environment
from yarn_ops.train.warm_trainer import ALLOCATOR, WarmTrainer

PID = "trainer.pid"
SEVERAL = "--processes"
POLL_S = 0.2
STOP_S = 30.0
ADAPTER_FACTS = (
    "method", "steps", "window_tokens", "tokens_seen",
    "trainable_parameters", "first_loss", "final_loss", "seconds",
)  # fmt: skip


def run_trainer(
    job: Job,
    *,
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
    warm_trainer: WarmTrainer | None = None,
) -> Adapter:
    """Train one leg in a process of its own; the adapter's record. Its files lie in `job.out_dir`.

    `warm_trainer`: the process to use, where this job needs no variables of its own. `on_event` hears every
    step of the leg, also those before a resume. TrainError: the trainer failed, with its own words or the
    last lines of its log. Stopped: it was asked to stop. OverBudget: its next step would have ended after the
    job's deadline. After both the job can go on from there. Whatever is raised, here or in `on_event`, the
    process and its group are gone before it gets out.
    """
    environment = trainer_environment(job.train.precision, job.device)
    job.work_dir.mkdir(parents=True, exist_ok=True)
    end_orphan(job.work_dir / PID)
    tail = EventTail(job.events)
    trainer = _start(job, environment, warm_trainer)
    try:
        last = _follow(trainer, tail, on_event, should_stop, job.deadline)
    finally:
        stop(trainer, STOP_S)
    return _outcome(last, trainer.returncode, job)


def end_orphan(record: Path) -> None:
    """End the trainer that a crashed parent left running; `record`: the file with its process id and start
    time."""
    try:
        written = json.loads(record.read_bytes())
        orphan = psutil.Process(written["pid"])
        if birth(orphan.pid) != written["started"]:
            return
        orphan.terminate()
        try:
            orphan.wait(STOP_S)
        except psutil.TimeoutExpired:
            orphan.kill()
            orphan.wait(STOP_S)
    except (FileNotFoundError, ValueError, KeyError, psutil.NoSuchProcess):
        return


def _start(
    job: Job, environment: Mapping[str, str], warm_trainer: WarmTrainer | None
) -> subprocess.Popen[bytes]:
    job_file = job.work_dir / "job.json"
    job_file.write_text(job.model_dump_json(indent=2), encoding="utf-8")
    shutil.rmtree(job.work_dir / FOLDER, ignore_errors=True)
    command, process = _command(job, job_file), None
    if warm_trainer is not None and not environment and SEVERAL not in command:
        process = warm_trainer.take(job_file)
    elif warm_trainer is not None:
        warm_trainer.close()  # it may hold a GPU's context
    if process is None:
        process = start(command, log=job.work_dir / LOG, env=child_environment({**ALLOCATOR, **environment}))
    record = {"pid": process.pid, "started": birth(process.pid)}
    (job.work_dir / PID).write_text(json.dumps(record), encoding="utf-8")
    return process


def _command(job: Job, job_file: Path) -> list[str]:
    processes = 1
    if job.processes > 1:
        step = StepShape.of(job.train, job.leg.context_tokens, read_config(job.patched_dir))
        processes = usable_processes(job.processes, step)
    several = [SEVERAL, str(processes)] if processes > 1 else []
    return [sys.executable, "-m", "yarn_ops.train", str(job_file), "--parent", str(os.getpid()), *several]


def _follow(
    trainer: subprocess.Popen[bytes],
    tail: EventTail,
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
    deadline: float | None,
) -> Event | None:
    """Forward events until the process has ended; the last event. `should_stop`: the process is stopped
    first. OverBudget where the deadline comes before its first step."""
    last: Event | None = None
    while True:
        ended = trainer.poll() is not None  # before reading, so that nothing written before the end is missed
        for last in tail.read():
            on_event(last)
        if ended:
            return last
        raise_missed()
        begins = last is None or last["event"] in ("begin", "phase", "start", "plan")
        if begins and deadline is not None and time.monotonic() > deadline:
            stop(trainer, 0.0)  # there is nothing to keep
            raise OverBudget(f"training: stopped before its first step here; {RAISE_BUDGET}")
        if should_stop():
            stop(trainer, STOP_S)
        else:
            time.sleep(POLL_S)


def _outcome(last: Event | None, status: int, job: Job) -> Adapter:
    match last:
        case {"event": "done", **facts}:
            return Adapter(**{name: facts[name] for name in ADAPTER_FACTS})
        case {"event": "stopped", "reason": reason, **facts}:
            raise (OverBudget if facts.get("over_budget") else Stopped)(reason)
        case {"event": "failed", "error": error}:
            raise TrainError(error)
    log = job.work_dir / LOG
    match cause_of_end(job.work_dir):
        case "error", text:
            raise TrainError(text)
        case "lost", text:
            raise TrainerKilled(f"training: {text}; run it again to go on from the last checkpoint")
    failure = TrainerKilled if status < 0 else TrainError
    raise failure(f"{log}: the trainer ended with status {status}: {last_lines(log)}; run it again to go on")
