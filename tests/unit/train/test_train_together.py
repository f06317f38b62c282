"""Several trainer processes: resumed by any number of them, killed, hung, asked to stop; their ports."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from listeners import ports_of

from yarn_ops.cli.security import listening
from yarn_ops.errors import Stopped, TrainerKilled, TrainError
from yarn_ops.train.events import read_events
from yarn_ops.train.job import Job
from yarn_ops.train.launch import PID, run_trainer
from yarn_ops.train.parallel.peers import SILENT_S

MakeJob = Callable[..., Job]
Trained = Callable[[Job], Job]
Event = dict[str, Any]
ENDS_S = 60.0


@pytest.fixture
def make(four_heads: Path, make_job: MakeJob) -> MakeJob:
    def make(name: str, **changes: Any) -> Job:
        places = {"base_dir": four_heads / "base", "patched_dir": four_heads / "patched"}
        return make_job(name, data={"prefer_long": 0.0, "document_mask": True}, **places, **changes)

    return make


def losses(job: Job) -> list[float]:
    return [event["loss"] for event in read_events(job.events) if event["event"] == "step"]


def ranks_of(job: Job) -> list[psutil.Process]:
    agent = psutil.Process(json.loads((job.work_dir / PID).read_bytes())["pid"])
    return sorted(agent.children(), key=lambda process: process.pid)


def at_step(step: int, act: Callable[[], None]) -> Callable[[Event], None]:
    def on_event(event: Event) -> None:
        if event["event"] == "step" and event["step"] == step:
            act()

    return on_event


def never() -> bool:
    return False


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_any_number_of_processes_goes_on_where_another_stopped(
    make: MakeJob, trained: Trained, method: str
) -> None:
    common: dict[str, Any] = {
        "method": method,
        "steps": 40,
        "batch_windows": 2,
        "gradient_accumulation_steps": 2,
        "checkpoint_every": 100,
    }
    reference = trained(make("reference", **common))
    job = make("changing", **common)
    for processes, until in ((1, 6), (2, 14), (4, 22)):
        asked: list[bool] = []
        with pytest.raises(Stopped):
            run_trainer(
                job.model_copy(update={"processes": processes}),
                on_event=at_step(until, lambda asked=asked: asked.append(True)),
                should_stop=lambda asked=asked: bool(asked),
            )
        assert until <= len(losses(job)) < 40
    run_trainer(job, on_event=lambda _: None, should_stop=never)
    assert losses(job) == pytest.approx(losses(reference), rel=1e-5)


def lose(signal_number: signal.Signals, job: Job) -> tuple[str, float]:
    """What the run says, and how long it takes, when the signal reaches its last rank in mid-training."""
    sent: list[float] = []
    victims: list[psutil.Process] = []

    def send() -> None:
        victims.extend(ranks_of(job))
        os.kill(victims[-1].pid, signal_number)
        sent.append(time.monotonic())

    with pytest.raises(TrainerKilled) as failure:
        run_trainer(job, on_event=at_step(3, send), should_stop=never)
    took_s = time.monotonic() - sent[0]
    assert not any(victim.is_running() for victim in victims)
    assert str(victims[-1].pid) in str(failure.value)
    return str(failure.value), took_s


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_by_name_and_the_next_one_goes_on(make: MakeJob, trained: Trained) -> None:
    common: dict[str, Any] = {"steps": 60, "gradient_accumulation_steps": 2, "checkpoint_every": 2}
    reference = trained(make("reference", **common))
    job = make("killed", processes=2, **common)
    said, took_s = lose(signal.SIGKILL, job)
    assert "was killed; run it again to go on from the last checkpoint" in said
    assert took_s < ENDS_S
    run_trainer(job, on_event=lambda _: None, should_stop=never)
    assert losses(job) == pytest.approx(losses(reference), rel=1e-5)


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_run_by_name(make: MakeJob) -> None:
    job = make("hung", processes=2, steps=100_000, gradient_accumulation_steps=2, checkpoint_every=2)
    said, took_s = lose(signal.SIGSTOP, job)
    assert f"gave no sign of life for {SILENT_S:.0f} s and was ended" in said
    assert took_s < ENDS_S
    assert list(job.snapshots.glob("step-*"))


def test_they_listen_on_the_loopback_interface_alone(make: MakeJob) -> None:
    """No port that another machine reaches: who reaches torchrun's has code run by it."""
    job = make("heard", processes=2, steps=2, checkpoint_every=100)
    heard: set[str] = set()

    def listen() -> None:
        agent = psutil.Process(json.loads((job.work_dir / PID).read_bytes())["pid"])
        processes = [agent, *agent.children(recursive=True)]
        assert len(processes) == 3
        assert ports_of([agent.pid]) == set()
        heard.update(address for _, address, _ in listening(processes))

    run_trainer(job, on_event=at_step(1, listen), should_stop=never)
    assert heard == {"127.0.0.1"}


@pytest.mark.slow
def test_what_the_recipe_forces_and_cannot_have_is_one_line(make: MakeJob) -> None:
    with pytest.raises(TrainError, match=r"^train.context_parallel: 2 processes share 2 windows"):
        run_trainer(
            make("forced", processes=2, gradient_accumulation_steps=2, context_parallel=4),
            on_event=lambda _: None,
            should_stop=never,
        )
