"""A trainer whose memory is less than its plan said."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from yarn_ops.digests import digest_tree
from yarn_ops.errors import TrainError
from yarn_ops.train.batches import Batch
from yarn_ops.train.events import read_events
from yarn_ops.train.job import Job
from yarn_ops.train.loss import CausalLoss, Loss

MakeJob = Callable[..., Job]
Trained = Callable[[Job], Job]


@pytest.fixture
def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    """Let the n-th micro-batches of the trainer run out of memory."""
    whole = CausalLoss.__call__

    def fail_at(numbers: set[int]) -> None:
        calls: Iterator[int] = iter(range(1, 1000))

        def short(self: CausalLoss, batch: Batch) -> Loss:
            if next(calls) in numbers:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
            return whole(self, batch)

        monkeypatch.setattr(CausalLoss, "__call__", short)

    return fail_at


def test_a_step_that_runs_out_is_begun_again_with_less_kept_and_learns_the_same(
    make_job: MakeJob, trained: Trained, short_of_memory: Callable[[set[int]], None]
) -> None:
    reference = trained(make_job("reference", gradient_accumulation_steps=2))
    short_of_memory({4})  # the second micro-batch of step 2
    job = trained(make_job("short", gradient_accumulation_steps=2))
    assert digest_tree(job.out_dir) == digest_tree(reference.out_dir)
    plans = [event["kept"] for event in read_events(job.events) if event["event"] == "plan"]
    assert plans == ["everything × 2", "attention × 2"]


def test_when_there_is_no_less_it_says_what_to_lower(
    make_job: MakeJob, trained: Trained, short_of_memory: Callable[[set[int]], None]
) -> None:
    short_of_memory(set(range(1, 9)))
    with pytest.raises(TrainError, match=r"step 1 does not fit the GPU's memory.*lower rope\.factor"):
        trained(make_job())
