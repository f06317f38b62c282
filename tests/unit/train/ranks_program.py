"""One of several processes that torchrun started: its steps, shared in some ways, and those it takes alone.

ranks_program.py JOBS OUT     JOBS: {name: job}; for each, OUT/name-RANK.json: how far it is from one process
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import torch
from torch import Tensor, nn

from yarn_ops.train import batches
from yarn_ops.train.events import NoEvents
from yarn_ops.train.job import Job
from yarn_ops.train.layout_search import choose_layout
from yarn_ops.train.loop import Loop
from yarn_ops.train.parallel.ranks import Ranks, join
from yarn_ops.train.windows import window_sampler

Curve = tuple[list[float], list[list[Tensor]]]


class Steps(Loop):
    """A loop that writes nothing."""

    def _save_snapshot(self) -> None: ...


def steps_of(job: Job, ranks: Ranks) -> Curve:
    """Losses and gradients, before they are clipped, of every step."""
    gradients: list[list[Tensor]] = []
    clip = nn.utils.clip_grads_with_norm_

    def recorded(updated, *arguments):
        shards = loop._optimizer._shards
        names = loop._parameters if shards else [None] * len(updated)
        found = [
            shards.whole(name, one.grad) if shards else one.grad.clone()
            for name, one in zip(names, updated, strict=True)
        ]
        gradients.append(found)
        clip(updated, *arguments)

    nn.utils.clip_grads_with_norm_ = recorded
    try:
        choose_layout(job, ranks)
        torch.manual_seed(job.train.seed)
        loop = Steps(job, NoEvents(), threading.Event(), ranks)
        loop.run()
    finally:
        nn.utils.clip_grads_with_norm_ = clip
    return [point["loss"] for point in loop._curve], gradients


def apart(found: Curve, expected: Curve) -> dict[str, float]:
    """Largest relative errors of a loss, and of a parameter's gradient in the norm."""
    losses = [abs(one / other - 1) for one, other in zip(found[0], expected[0], strict=True)]
    gradients = [
        float((one - other).norm() / other.norm())
        for step, reference in zip(found[1], expected[1], strict=True)
        for one, other in zip(step, reference, strict=True)
        if other.norm() > 0
    ]
    return {
        "first_loss": expected[0][0],
        "loss": max(losses),
        "gradient": max(gradients),
        "compared": len(gradients),
    }


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    batches.WindowProcess = window_sampler  # the same windows, without a start of a process for each loop
    jobs, out = json.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])
    references: dict[str, Curve] = {}
    with join("cpu", out) as ranks:
        for name, fields in jobs.items():
            job = Job.model_validate(fields)
            alone = job.model_copy(update={"train": job.train.model_copy(update=FREE)})
            same = alone.model_dump_json()
            if same not in references:
                references[same] = steps_of(alone, Ranks())
            together = steps_of(job, ranks)
            found = apart(together, references[same]) | {"layout": ranks.layout.describe()}
            (out / f"{name}-{ranks.rank}.json").write_text(json.dumps(found))


FREE = {"context_parallel": None, "shard_base": "auto"}


if __name__ == "__main__":  # the process that makes windows imports this file too
    main()
