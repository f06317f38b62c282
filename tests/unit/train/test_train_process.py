"""The trainer as a process: killed, stopped, orphaned, failed; and gone on with, bit for bit."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from yarn_ops.digests import digest_tree
from yarn_ops.errors import OverBudget, Stopped, TrainError
from yarn_ops.processes import birth
from yarn_ops.train.events import EventLog, read_events
from yarn_ops.train.job import LOG, Job
from yarn_ops.train.launch import PID, end_orphan, run_trainer
from yarn_ops.train.loop import run_job
from yarn_ops.train.warm_trainer import WarmTrainer

MakeJob = Callable[..., Job]
Trained = Callable[[Job], Job]
WAIT_S = 60


def losses(job: Job) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in read_events(job.events) if event["event"] == "step"]


def quiet(_: dict[str, Any]) -> None: ...


def never() -> bool:
    return False


def trainer_of(job: Job) -> psutil.Process:
    return psutil.Process(json.loads((job.work_dir / PID).read_bytes())["pid"])


def at_step(step: int, act: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == step:
            act()

    return on_event


@pytest.mark.usefixtures("forked")
def test_a_killed_run_goes_on_bit_for_bit(make_job: MakeJob, trained: Trained) -> None:
    # long enough that the signal, sent within two polls of the launcher, finds the trainer at work
    changes: dict[str, Any] = {"steps": 120, "gradient_accumulation_steps": 2, "checkpoint_every": 15}
    reference = trained(make_job("reference", **changes))
    job = make_job("killed", **changes)
    step = random.Random(1).randrange(16, 60)
    with pytest.raises(TrainError, match="ended with status -9"):
        run_trainer(job, on_event=at_step(step, lambda: trainer_of(job).kill()), should_stop=never)
    heard: list[dict[str, Any]] = []
    adapter = run_trainer(job, on_event=heard.append, should_stop=never)
    assert losses(job) == losses(reference)
    assert [event["step"] for event in heard if event["event"] == "step"] == list(range(1, 121))
    assert digest_tree(job.out_dir) == digest_tree(reference.out_dir)
    assert adapter.final_loss == json.loads((reference.out_dir / "adapter.json").read_bytes())["final_loss"]


def test_a_damaged_newest_snapshot_costs_only_its_steps(make_job: MakeJob, trained: Trained) -> None:
    reference, job = trained(make_job("reference")), trained(make_job("damaged"))
    newest = sorted(job.snapshots.glob("step-*"))[-1]
    (newest / "state.safetensors").write_bytes(b"")
    trained(job)
    assert losses(job) == losses(reference)
    assert digest_tree(job.out_dir) == digest_tree(reference.out_dir)


@pytest.mark.usefixtures("forked")
def test_asked_to_stop_it_leaves_a_snapshot_and_goes_on(make_job: MakeJob, trained: Trained) -> None:
    reference = trained(make_job("reference", steps=200, checkpoint_every=150))
    job = make_job("stopped", steps=200, checkpoint_every=150)
    asked: list[bool] = []
    with pytest.raises(Stopped, match=r"stopped after step \d+ of 200"):
        run_trainer(job, on_event=at_step(2, lambda: asked.append(True)), should_stop=lambda: bool(asked))
    *_, checkpoint, stopped = read_events(job.events)
    assert (checkpoint["event"], stopped["event"]) == ("checkpoint", "stopped")
    assert 2 <= stopped["step"] < 200
    trained(job)
    assert losses(job) == losses(reference)


@pytest.mark.usefixtures("forked")
def test_asked_to_stop_amid_exercises_it_leaves_a_snapshot(job_of: MakeJob) -> None:
    """All processes of the trainer are asked; the one that makes windows does not end before it."""
    job = job_of("stopped", share=1.0, steps=200, checkpoint_every=150)
    asked: list[bool] = []
    with pytest.raises(Stopped, match=r"stopped after step \d+ of 200"):
        run_trainer(job, on_event=at_step(2, lambda: asked.append(True)), should_stop=lambda: bool(asked))
    assert [event["event"] for event in read_events(job.events)[-2:]] == ["checkpoint", "stopped"]


@pytest.mark.usefixtures("forked")
def test_it_stops_before_its_deadline_and_goes_on(make_job: MakeJob, trained: Trained) -> None:
    changes: dict[str, Any] = {"steps": 200, "checkpoint_every": 150}
    reference, job = trained(make_job("reference", **changes)), make_job("stopped", **changes)
    deadline, deadline_at = time.monotonic() + 0.5, time.time() + 0.5
    job.work_dir.mkdir(parents=True)
    limited = job.model_copy(update={"deadline": deadline})
    with pytest.raises(OverBudget, match=r"after step \d+ of 200; the next would pass its budget"):
        run_job(limited, EventLog(job.events, steps=200, through_step=0), threading.Event(), None)
    *_, last = (event for event in read_events(job.events) if event["event"] == "step")
    assert 1 <= last["step"] < 200 and last["time"] < deadline_at
    trained(job)
    assert losses(job) == losses(reference)
    with pytest.raises(OverBudget, match="before its first step here"):
        never_begun = make_job("late", steps=200).model_copy(update={"deadline": time.monotonic()})
        run_trainer(never_begun, on_event=print, should_stop=never)


def waiting() -> list[psutil.Process]:
    """Trainers without a job that we have started."""
    children = psutil.Process().children()
    commands = ((child, child.cmdline()) for child in children if child.status() != psutil.STATUS_ZOMBIE)
    return [process for process, command in commands if command[2:4] == ["yarn_ops.train", "--parent"]]


def test_one_started_ahead_of_its_job_does_the_same(
    make_job: MakeJob, trained: Trained, tmp_path: Path
) -> None:
    reference, job = trained(make_job("reference")), make_job("ahead")
    warm_trainer = WarmTrainer(tmp_path / "warm_trainer.log", {})
    (process,) = waiting()
    run_trainer(job, on_event=quiet, should_stop=never, warm_trainer=warm_trainer)
    assert json.loads((job.work_dir / PID).read_bytes())["pid"] == process.pid
    assert digest_tree(job.out_dir) == digest_tree(reference.out_dir)
    phases = [event["name"] for event in read_events(job.events) if event["event"] == "phase"]
    assert phases == ["layout", "model", "windows", "proof", "first step"]
    assert (job.work_dir / LOG).exists() and (tmp_path / "warm_trainer.log").read_text() == ""
    assert warm_trainer.take(tmp_path / "another.json") is None
    warm_trainer.close()


def test_one_that_gets_no_job_is_gone(tmp_path: Path) -> None:
    unused = WarmTrainer(tmp_path / "warm_trainer.log", {})
    (process,) = waiting()
    unused.close()
    assert not process.is_running() and unused.take(tmp_path / "job.json") is None


@pytest.mark.usefixtures("forked")
def test_what_needs_torch_is_done_in_it(tmp_path: Path) -> None:
    warm_trainer = WarmTrainer(tmp_path / "warm_trainer.log", {})
    process = psutil.Process(warm_trainer.call("os:getpid"))
    assert process.ppid() == os.getpid()
    with pytest.raises(TrainError, match="no path of a job"):
        warm_trainer.call("yarn_ops.train.job:read_job", tmp_path / "no path of a job")
    assert warm_trainer.call("operator:add", 1, 2) == 3, "an error ends nothing"
    prepared = tmp_path / "prepared"
    warm_trainer.prepare("operator:truediv", 1, 0)
    warm_trainer.prepare("pathlib:Path.touch", prepared)
    while not prepared.exists():
        time.sleep(0.01)
    assert warm_trainer.call("operator:add", 1, 2) == 3, "nothing but what was asked for is answered"
    assert "nothing prepared: ZeroDivisionError" in (tmp_path / "warm_trainer.log").read_text()
    process.kill()
    assert warm_trainer.call("os:getpid") == os.getpid(), "it has ended: here, then"
    assert warm_trainer.take(tmp_path / "job.json") is None


@pytest.mark.usefixtures("forked")
def test_a_fork_is_as_a_start_is(tmp_path: Path) -> None:
    warm_trainer = WarmTrainer(tmp_path / "warm_trainer.log", {"YARN_OPS_DEVICE": "cpu"})
    process = psutil.Process(warm_trainer.call("os:getpid"))
    assert Path(process.cmdline()[-1]).name == "forked.py"
    assert warm_trainer.call("os:getppid") == os.getpid()
    assert warm_trainer.call("os:getsid", 0) == process.pid
    assert warm_trainer.call("os:getcwd") == str(Path.cwd())
    assert warm_trainer.call("os:getenv", "YARN_OPS_DEVICE") == "cpu"
    warm_trainer.close()
    assert not process.is_running()
    other = WarmTrainer(tmp_path / "warm_trainer.log", {"PYTHONPATH": str(tmp_path)})
    assert [one.cmdline()[2] for one in waiting()] == ["yarn_ops.train"], "surroundings that imports read"
    other.close()


@pytest.mark.usefixtures("forked")
def test_what_it_cannot_send_is_done_here(tmp_path: Path) -> None:
    warm_trainer = WarmTrainer(tmp_path / "warm_trainer.log", {})
    process = psutil.Process(warm_trainer.call("os:getpid"))
    assert warm_trainer.call("threading:Lock").acquire()
    assert not process.is_running() and "cannot pickle" in (tmp_path / "warm_trainer.log").read_text()


@pytest.mark.usefixtures("forked")
def test_an_error_in_the_listener_ends_the_trainer(make_job: MakeJob) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    job = make_job(steps=100_000)
    with pytest.raises(KeyboardInterrupt):
        run_trainer(job, on_event=at_step(1, interrupt), should_stop=never)
    assert not psutil.pid_exists(json.loads((job.work_dir / PID).read_bytes())["pid"])
    assert read_events(job.events)[-1]["event"] == "stopped"


LAUNCH = """
import sys
from pathlib import Path
from yarn_ops.train.job import read_job
from yarn_ops.train.launch import run_trainer
run_trainer(
    read_job(Path(sys.argv[1])),
    on_event=lambda event: print(event["event"], flush=True),
    should_stop=lambda: False,
)
"""


def test_a_killed_parent_leaves_no_trainer(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(steps=100_000)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    parent = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(tmp_path / "job.json")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    for line in parent.stdout:
        if line == "step\n":
            break
    trainer = trainer_of(job)
    parent.kill()
    parent.wait()
    trainer.wait(WAIT_S)
    assert [event["event"] for event in read_events(job.events)[-2:]] == ["checkpoint", "stopped"]


WAIT_FOR_NOTHING = """
import sys, time
from pathlib import Path
from yarn_ops.train.warm_trainer import WarmTrainer
warm_trainer = WarmTrainer(Path(sys.argv[1]), {})
print("started", flush=True)
time.sleep(600)
"""


def test_a_killed_parent_leaves_none_that_waits(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", WAIT_FOR_NOTHING, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None and parent.stdout.readline() == "started\n"
    (trainer,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    trainer.wait(WAIT_S)


def test_the_watchdog_alone_notices_a_parent_that_is_gone() -> None:
    nobody = 1 if os.getppid() != 1 else 2
    waits = f"from yarn_ops.train.__main__ import stop_request; stop_request({nobody}).wait()"
    assert subprocess.run([sys.executable, "-c", waits], timeout=WAIT_S).returncode == 0


def test_an_orphan_is_ended_and_another_process_of_its_number_is_not(tmp_path: Path) -> None:
    sleeper = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True
    )
    started = birth(sleeper.pid)
    (tmp_path / PID).write_text(json.dumps({"pid": sleeper.pid, "started": started - 1}))
    end_orphan(tmp_path / PID)
    assert psutil.Process(sleeper.pid).is_running()
    (tmp_path / PID).write_text(json.dumps({"pid": sleeper.pid, "started": started}))
    end_orphan(tmp_path / PID)
    assert not psutil.pid_exists(sleeper.pid)
    end_orphan(tmp_path / PID)


@pytest.mark.usefixtures("forked")
def test_a_user_s_error_is_one_line_without_a_traceback(make_job: MakeJob) -> None:
    job = make_job(targets=["nothing"])
    with pytest.raises(TrainError, match=r"^train.targets: no linear layer is named 'nothing'"):
        run_trainer(job, on_event=quiet, should_stop=never)
    assert read_events(job.events)[-1]["event"] == "failed"
    assert "Traceback" not in (job.work_dir / "trainer.log").read_text()


@pytest.mark.usefixtures("forked")
def test_a_fault_of_ours_keeps_its_traceback_in_the_log(make_job: MakeJob) -> None:
    job = make_job()
    job.events.mkdir(parents=True)
    with pytest.raises(
        TrainError, match=r"trainer.log: the trainer ended with status 1: .*IsADirectoryError"
    ):
        run_trainer(job, on_event=quiet, should_stop=never)
    assert "Traceback" in (job.work_dir / "trainer.log").read_text()


def test_an_unwritable_output_is_one_line(make_job: MakeJob, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match="the adapter cannot be written"):
        trained(make_job(steps=1, out_dir=tmp_path / "file" / "adapter"))


def test_weights_that_are_no_numbers_are_told_before_training(
    tiny: Path, make_job: MakeJob, trained: Trained, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_bytes((tiny / "base/config.json").read_bytes())
    tensors = load_file(tiny / "base/model.safetensors")
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainError, match="not finite before training; its weights are damaged"):
        trained(make_job(base_dir=base))


def test_a_loss_that_is_not_finite_names_step_and_documents(make_job: MakeJob, trained: Trained) -> None:
    with pytest.raises(TrainError, match=r"of step \d is not finite; its documents are document-\d+"):
        trained(make_job(alpha=1e38, warmup_steps=0))
