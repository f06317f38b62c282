"""One of several processes that torchrun started: its steps, shared in some ways, and those it takes alone.

ranks_program.py JOBS OUT

JOBS    {name: job}; for each, OUT/name-RANK.json: how far it is from one process. A job whose name begins
        with "left" is stopped on its way and gone on with, by all processes and by one
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path

import torch
from jobs import StopAfter
from safetensors.torch import load_file
from torch import Tensor, nn

from yarn_ops.digests import digest_tree
from yarn_ops.errors import Stopped
from yarn_ops.train import loop as training
from yarn_ops.train.events import NoEvents
from yarn_ops.train.job import Job
from yarn_ops.train.layout_search import choose_layout
from yarn_ops.train.loop import Loop, run_job
from yarn_ops.train.lora import TENSORS, read_losses
from yarn_ops.train.moments import FILE
from yarn_ops.train.optimizer import Optimizer
from yarn_ops.train.parallel.layout import Layout
from yarn_ops.train.parallel.ranks import Ranks, join
from yarn_ops.train.snapshot import newest_snapshot
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


def gone_on_with(job: Job, ranks: Ranks) -> dict[str, object] | None:
    """Of a job and the same one left on its way: whether they made the same files, and how far these are from
    those that one process makes of the snapshot. The main rank's answer."""

    def run(name: str, stop: threading.Event, ranks: Ranks) -> Job:
        here = job.model_copy(update={"out_dir": job.out_dir / name, "work_dir": job.work_dir / name})
        run_job(here, NoEvents(), stop, newest_snapshot(here.snapshots, here.identity()), ranks)
        return here

    whole = run("whole", threading.Event(), ranks)
    try:
        run("left", StopAfter(3 * job.train.gradient_accumulation_steps // ranks.size), ranks)
        raise AssertionError("it was not left")
    except Stopped:
        ranks.any(False)  # the snapshot is there
    if ranks.is_main:
        shutil.copytree(job.work_dir / "left", job.work_dir / "alone")
    left = run("left", threading.Event(), ranks)
    if not ranks.is_main:
        return None
    alone = run("alone", threading.Event(), Ranks())
    losses = [read_losses(each.out_dir) for each in (left, alone)]
    weights, optimizers = (
        [load_file(each.out_dir / file) for each in (left, alone)] for file in (TENSORS, FILE)
    )
    return {
        "same_files": digest_tree(left.out_dir) == digest_tree(whole.out_dir),
        "losses": max(abs(one / other - 1) for one, other in zip(*losses, strict=True)),
        "weights": max(farthest(weights[0], weights[1])),
        "moments": max(farthest(optimizers[0], optimizers[1])),
        "dtypes": sorted({str(tensor.dtype) for tensor in weights[0].values()}),
        "tensors": len(weights[0]),
    }


def farthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[float]:
    """Of every tensor, its relative error in the norm."""
    assert found.keys() == expected.keys()
    return [
        float((found[name] - tensor).norm() / tensor.norm())
        for name, tensor in expected.items()
        if tensor.is_floating_point()
    ]


class Experts(nn.Module):
    """Each token goes to one of three experts, none to a fourth. No number of processes divides the sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 5)
        self.experts = nn.ModuleList(nn.Linear(5, 3) for _ in range(4))

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed

    def forward(self, token: Tensor) -> Tensor:
        return self.experts[int(token) % 3](self.embed(token)).square().sum()


def experts_trained(ranks: Ranks) -> dict[str, Tensor]:
    """The weights of `Experts` after two steps of four tokens, shared by ranks whose tokens go to different
    ones."""
    ranks.layout = Layout(ranks.size, optimizer_sharded=ranks.size > 1)
    model = Experts()
    optimizer = Optimizer(model, 0.1, torch.float32, ranks)
    for tokens in torch.tensor([[0, 1, 3, 4], [2, 0, 5, 6]]):
        for token in tokens.chunk(ranks.size)[ranks.rank]:
            model(token).backward()
            optimizer.accumulated()
        optimizer.update(0.1, 1.0)
    held = {name: value.detach().clone() for name, value in model.named_parameters()}
    assert all(torch.equal(value, held[name]) for name, value in optimizer.weights().items())
    return held


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    training.open_windows = window_sampler  # the same windows, without a start of a process for each loop
    jobs, out = json.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])
    references: dict[str, Curve] = {}
    with join("cpu", out) as ranks:
        off = farthest(experts_trained(ranks), experts_trained(Ranks()))
        (out / f"experts-{ranks.rank}.json").write_text(json.dumps(off))
        for name, fields in jobs.items():
            job = Job.model_validate(fields)
            if name.startswith("left"):
                if answer := gone_on_with(job, ranks):
                    (out / f"{name}.json").write_text(json.dumps(answer))
                continue
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
