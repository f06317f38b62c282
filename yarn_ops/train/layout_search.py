"""The layout of a run: the fastest that fits, of those that its recipe allows.

Several processes share windows, tokens and frozen layers; one process streams frozen layers from host memory,
where that makes a step fit or leaves room to keep so much more that it is faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch

from yarn_ops.errors import TrainError
from yarn_ops.models.device import resolve_device, resolve_dtype, torch_dtype, unsupported
from yarn_ops.models.files import read_config
from yarn_ops.models.loading import lay_out
from yarn_ops.recipe import Train
from yarn_ops.train.backbone import capacity
from yarn_ops.train.job import Job
from yarn_ops.train.lora import make_trainable
from yarn_ops.train.model_shape import ModelShape
from yarn_ops.train.parallel.layout import Layout, StepShape
from yarn_ops.train.parallel.ranks import Ranks
from yarn_ops.train.plan import LADDER, Rates, StepPlan, plan_step

LINK_BYTES = 200e9
"""bytes that a process sends in a second; an all-reduce of 1 GiB on two H100 has 329 GB/s of bus bandwidth"""
STREAM_SHARES = 8
"""as many numbers of streamed layers are tried"""
STREAM_GAIN = 0.98
"""of a step's seconds without streaming that one with it may take to be chosen"""


def choose_layout(job: Job, ranks: Ranks) -> None:
    """Set the layout of a job in `ranks`, the same in every process, before a model is loaded.

    TrainError where none fits. Of one process on a CPU nothing is asked.
    """
    device = resolve_device(job.device)
    if ranks.size == 1 and device == "cpu":
        return
    dtype = torch_dtype(resolve_dtype(job.train.precision, device))
    model = lay_out(job.patched_dir)
    make_trainable(model, job.train)
    shape = training_shape(model, job.train, device)
    config, window, float8 = (
        read_config(job.patched_dir),
        job.leg.context_tokens,
        job.train.precision == "fp8",
    )
    memory, host, *rates = ranks.minimum(
        capacity(shape, device, dtype, job.train.batch_windows * window, window, float8, ranks.size)
    )
    found = predict(
        ranks.size,
        step_shape(model, job.train, window, config),
        job.train,
        shape,
        Rates(*rates),
        memory_bytes=memory,
        host_bytes=host,
    )
    require_readable(found.layout, config, dtype)
    ranks.use_layout(found.layout)


def require_readable(layout: Layout, config: Mapping[str, Any], dtype: torch.dtype) -> None:
    """TrainError where the layout streams from files whose weights are not of the dtype that is computed in:
    loading would convert them all, in host memory that is not there."""
    held = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    if layout.mapped and held != str(dtype).removeprefix("torch."):
        raise TrainError(
            f"training: the base fits neither the GPU nor the host, and its files hold {held}, not "
            f"{str(dtype).removeprefix('torch.')}; use a host with more memory, or convert the files"
        )


def training_shape(model: Any, train: Train, device: Literal["cpu", "cuda"]) -> ModelShape:
    """The sizes of a transformers model that `make_trainable` has prepared (it may lie on the meta device),
    in the dtypes that it computes and keeps frozen weights in on that device."""
    element_bytes = torch_dtype(resolve_dtype(train.precision, device)).itemsize
    weight_bytes = element_bytes if train.method == "lora" else torch_dtype("fp32").itemsize
    shape = ModelShape.of(model, element_bytes=element_bytes, weight_bytes=weight_bytes)
    return replace(shape, nf4=train.precision == "nf4")


def step_shape(model: Any, train: Train, window: int, config: Mapping[str, Any]) -> StepShape:
    """The sizes of a step of windows of so many tokens; `ours` asks the whole config, not the architecture
    alone. TrainError where frozen weights are to be held in few bits and the layers are not ours."""
    step, reason = StepShape.of(train, window, config), unsupported(model, window)
    require_ours(train, reason)
    return replace(step, ours=step.ours and reason is None)


def require_ours(train: Train, reason: str | None) -> None:
    """TrainError where the recipe asks for what only our own layers do; `reason`: why they do not serve."""
    if train.quantised and reason is not None:
        raise TrainError(f"train.precision: {train.precision} is for our own layers, and {reason}; use bf16")


class Prediction(NamedTuple):
    """The layout of a run, and what an optimizer step in it takes."""

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
    """The fastest layout for so many processes that fits, of those that the recipe allows.

    `rates`: of each device; `memory_bytes` and `host_bytes`: of each process. TrainError that names the key
    to change where none fits.
    """
    refusal: TrainError | None = None
    found: list[Prediction] = []
    for layout in _allowed(processes, step, train, shape):
        windows = min(step.batch_windows, step.windows // layout.data)  # of a micro-batch
        positions = windows * step.tokens // layout.context
        if layout.mapped and found:
            break  # files are for hosts that cannot hold what is streamed
        try:
            plan = plan_step(
                shape.laid_out(layout),
                positions,
                step.tokens,
                rates,
                memory_bytes=memory_bytes,
                host_bytes=host_bytes,
            )
        except TrainError as error:
            refusal = error
            continue
        micro_batches = -(-step.windows // (layout.data * windows))
        step_s = micro_batches * (plan.step_s + communication_s(shape, layout, positions))
        found.append(Prediction(step_s, layout, plan))
        if processes == 1 and set(plan.policies) == {LADDER[-1]}:
            break
    if found:
        return min(found, key=lambda each: each.step_s / (STREAM_GAIN if each.layout.streamed else 1))
    raise refusal or _impossible(processes, step, train)


def _allowed(processes: int, step: StepShape, train: Train, shape: ModelShape) -> Iterable[Layout]:
    if processes == 1:  # what the recipe says of several does not apply
        yield Layout()
        if step.ours and not shape.full and not train.quantised:
            shares = range(1, STREAM_SHARES + 1)
            counts = sorted({-(-shape.layers * share // STREAM_SHARES) for share in shares})
            for mapped in (False, True):
                yield from (Layout(streamed=count, mapped=mapped) for count in counts)
        return
    sharding = {"auto": (False, True), "yes": (True,), "no": (False,)}[train.shard_base]
    if shape.full or train.quantised or not step.ours:
        sharding = () if train.shard_base == "yes" else (False,)
    for data, context in step.shares(processes):
        if train.context_parallel in (None, context):
            for sharded in sharding:
                yield Layout(data, context, sharded, optimizer_sharded=shape.full)


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
        + (f"with {' or '.join(map(str, contexts))} a window, " if contexts else "in no way")
        + (f"not {train.context_parallel}; leave it empty, or change " if contexts else "; change ")
        + "train.gradient_accumulation_steps or YARN_OPS_PROCESSES"
    )


def communication_s(shape: ModelShape, layout: Layout, positions: int) -> float:
    """Seconds of communication in a micro-batch, as if none of it overlapped with computation."""
    context, processes = layout.context, layout.processes
    exchanged = 6 * (shape.attention_width + shape.kv_width) * positions * shape.element_bytes
    bytes_sent = shape.layers * exchanged * (context - 1) / context
    if layout.sharded:
        bytes_sent += 2 * shape.layer_bytes * (processes - 1) / processes
    # Gradients out and back in float32; or their parts out, and weights back in the dtype of activations.
    back_bytes = shape.element_bytes if layout.optimizer_sharded else 4
    bytes_sent += (4 + back_bytes) * shape.trained * (processes - 1) / processes
    return bytes_sent / LINK_BYTES
