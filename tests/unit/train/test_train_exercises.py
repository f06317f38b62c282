"""Training on windows with exercises: to the bit after a kill; the loss of answers is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from jobs import StopAfter

from yarn_ops.digests import digest_tree
from yarn_ops.errors import DataError, Stopped, TrainError
from yarn_ops.train.events import EventLog
from yarn_ops.train.job import Job
from yarn_ops.train.loop import run_job
from yarn_ops.train.windows import WindowProcess, window_sampler

Trained = Callable[[Job], Job]


def test_a_stopped_run_goes_on_to_the_same_adapter(job_of: Callable[..., Job], trained: Trained) -> None:
    whole, left = trained(job_of("whole", steps=4)), job_of("left", steps=4)
    left.work_dir.mkdir(parents=True)
    with pytest.raises(Stopped, match="after step 2 of 4"):
        run_job(left, EventLog(left.events, steps=4, through_step=0), StopAfter(2), None)
    assert digest_tree(trained(left).out_dir) == digest_tree(whole.out_dir)


def test_the_loss_of_answers_is_told(job_of: Callable[..., Job], trained: Trained) -> None:
    with_exercises, without = (trained(job_of(f"share-{share}", share, steps=1)) for share in (1.0, 0.0))
    (step,) = events(with_exercises)
    assert step["answer_loss"] > 0
    assert "answer_loss" not in events(without)[0]


def events(job: Job) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in job.events.read_text("utf-8").splitlines()]
    return [line for line in lines if line["event"] == "step"]


def test_another_process_makes_the_windows(job_of: Callable[..., Job]) -> None:
    """The same ones; its errors are the sampler's own, and its end is one line."""
    job = job_of("windows", 1.0)
    process = WindowProcess(job)
    made, expected = process.window(3), window_sampler(job).window(3)
    assert (made.ids == expected.ids).all() and made.answers is not None
    assert (made.answers == expected.answers).all() and made.document_ids == expected.document_ids
    too_long = job.model_copy(update={"leg": job.leg.model_copy(update={"context_tokens": 10**7})})
    with pytest.raises(DataError, match="window"):
        WindowProcess(too_long).window(0)
    process._process.kill()
    with pytest.raises(TrainError, match="the process that makes windows was ended"):
        process.window(4)


def test_it_ends_with_the_trainer(job_of: Callable[..., Job]) -> None:
    process = WindowProcess(job_of("windows", 1.0))
    process.window(0)
    process._connection.close()
    process._process.join(20)
    assert process._process.exitcode == 0
