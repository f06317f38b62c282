"""Which layout a run takes: the fastest that fits, among those that its recipe allows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from yarn_ops.errors import TrainError
from yarn_ops.models.device import resolve_device, resolve_dtype, torch_dtype
from yarn_ops.models.files import read_config
from yarn_ops.models.loading import lay_out
from yarn_ops.recipe import Train
from yarn_ops.train.backbone import capacity
from yarn_ops.train.job import Job
from yarn_ops.train.lora import make_trainable
from yarn_ops.train.parallel.layout import Layout, StepShape
from yarn_ops.train.parallel.ranks import Ranks
from yarn_ops.train.plan import ModelShape, Rates, StepPlan, plan_step

LINK_BYTES = 200e9
"""that a process sends in a second; an all-reduce of 1 GiB on two H100 has 329 GB/s of bus bandwidth"""


def choose_layout(job: Job, ranks: Ranks) -> None:
    """Choose the layout of a job, the same in every rank, before anything is loaded."""
    if ranks.size == 1:
        return
    device = resolve_device(job.device)
    dtype = resolve_dtype(job.train.precision, device)
    model = lay_out(job.patched_dir)
    make_trainable(model, job.train)
    element_bytes = torch_dtype(dtype).itemsize
    frozen_bytes = element_bytes if job.train.method == "lora" else 4
    shape = ModelShape.of(model, element_bytes=element_bytes, weight_bytes=frozen_bytes)
    window, float8 = job.leg.context_tokens, job.train.precision == "fp8"
    memory, host, *rates = ranks.minimum(
        capacity(shape, device, torch_dtype(dtype), job.train.batch_windows * window, window, float8)
    )
    found = predict(
        ranks.size,
        StepShape.of(job.train, window, read_config(job.patched_dir)),
        job.train,
        shape,
        Rates(*rates),
        memory_bytes=memory,
        host_bytes=host,
    )
    ranks.use_layout(found.layout)


class Prediction(NamedTuple):
    """The layout that a run takes, and an optimizer step in it."""

    step_s: float
    layout: Layout
    plan: StepPlan
    """of one process's micro-batch"""


def predict(
    processes: int,
    step: StepShape,
    train: Train,
    shape: ModelShape,
    rates: Rates,
    *,
    memory_bytes: float,
    host_bytes: float,
) -> Prediction:
    """The fastest that fits, of those that the recipe allows; TrainError, with what to turn, if none does."""
    refusal: TrainError | None = None
    found: list[Prediction] = []
    for layout in _allowed(processes, step, train, shape):
        windows = step.micro_batch(layout.data)
        positions = windows * step.tokens // layout.context
        shared = shape.shared(layout.context, processes if layout.sharded else 1)
        try:
            plan = plan_step(
                shared, positions, step.tokens, rates, memory_bytes=memory_bytes, host_bytes=host_bytes
            )
        except TrainError as error:
            refusal = error
            continue
        micro_batches = -(-step.windows // (layout.data * windows))
        step_s = micro_batches * (plan.step_s + _talk_s(shape, layout, positions))
        found.append(Prediction(step_s, layout, plan))
    if found:
        return min(found, key=lambda each: each.step_s)
    raise refusal or _impossible(processes, step, train)


def _allowed(processes: int, step: StepShape, train: Train, shape: ModelShape) -> Iterable[Layout]:
    if processes == 1:  # whatever the recipe would have several do
        yield Layout()
        return
    sharding = {"auto": (False, True), "yes": (True,), "no": (False,)}[train.shard_base]
    if shape.full or train.precision == "fp8" or not step.ours:
        sharding = () if train.shard_base == "yes" else (False,)
    for data, context in step.shares(processes):
        if train.context_parallel in (None, context):
            for sharded in sharding:
                yield Layout(data, context, sharded)


def _impossible(processes: int, step: StepShape, train: Train) -> TrainError:
    contexts = sorted({context for _, context in step.shares(processes)})
    if contexts and train.context_parallel in (None, *contexts):
        return TrainError(
            "train.shard_base: layers are sharded among several processes, frozen, of Llama's shape and in "
            "bf16 or fp32; set it to auto"
        )
    return TrainError(
        f"train.context_parallel: {processes} processes share {step.windows} windows of {step.tokens:,} "
        f"tokens and {step.kv_heads} key-value heads "
        + (f"with {' or '.join(map(str, contexts))} a window" if contexts else "in no way")
        + f", not {train.context_parallel}; leave it empty, or change "
        "train.gradient_accumulation_steps or YARN_OPS_PROCESSES"
    )


def _talk_s(shape: ModelShape, layout: Layout, positions: int) -> float:
    """What the processes say to each other in a micro-batch, as if nothing of it were hidden."""
    context, processes = layout.context, layout.processes
    turned = 6 * (shape.attention_width + shape.kv_width) * positions * shape.element_bytes
    bytes_sent = shape.layers * turned * (context - 1) / context
    if layout.sharded:
        bytes_sent += 2 * shape.layer_bytes * (processes - 1) / processes
    bytes_sent += 2 * 4 * shape.trained * (processes - 1) / processes
    return bytes_sent / LINK_BYTES
