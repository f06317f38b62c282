"""The training loop of one leg: learning rate, optimizer steps, snapshots and resume, the adapter
directory."""

from __future__ import annotations

import math
import statistics
import threading
import time
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from yarn_ops.atomic import atomic_write
from yarn_ops.errors import OverBudget, Stopped, TrainError
from yarn_ops.models.device import Dtype, resolve_device, resolve_dtype, torch_dtype, unsupported
from yarn_ops.models.files import read_config
from yarn_ops.models.loading import load_proven
from yarn_ops.recipe import RAISE_BUDGET, Train
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.train.backbone import Backbone
from yarn_ops.train.batches import Batch, BatchReader
from yarn_ops.train.decoder import AbsentLayers
from yarn_ops.train.events import EventLog, NoEvents
from yarn_ops.train.job import Job
from yarn_ops.train.layout_search import choose_layout, require_ours
from yarn_ops.train.lora import load_trained, make_trainable, save_adapter, trained_parameters
from yarn_ops.train.loss import CausalLoss
from yarn_ops.train.moments import load_moments, save_moments
from yarn_ops.train.nf4 import Nf4Layers
from yarn_ops.train.optimizer import Optimizer
from yarn_ops.train.parallel.ranks import Ranks
from yarn_ops.train.parallel.sharding import ShardedLayers
from yarn_ops.train.probe import usage
from yarn_ops.train.snapshot import Snapshot, save_snapshot
from yarn_ops.train.streaming import StreamedLayers, streamed_places
from yarn_ops.train.windows import Windows, open_windows

FINAL_LOSS_STEPS = 5
NAMED_DOCUMENTS = 8
"""of those that an error names: a window may hold hundreds"""


def learning_rate(step: int, *, steps: int, peak: float, train: Train) -> float:
    """The learning rate of optimizer step 0 ≤ step < steps: linear warm-up to `peak` at the last warm-up
    step, then a cosine down to `final_learning_rate` · peak at the last step."""
    if step < train.warmup_steps:
        return peak * (step + 1) / train.warmup_steps
    progress = (step + 1 - train.warmup_steps) / (steps - train.warmup_steps)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return peak * (train.final_learning_rate + (1 - train.final_learning_rate) * cosine)


def run_job(
    job: Job,
    events: EventLog | NoEvents,
    stop: threading.Event,
    resume_from: Snapshot | None,
    ranks: Ranks | None = None,
) -> None:
    """Train a leg and write its adapter directory, in this process and the others of `ranks`.

    Once `stop` is set: Stopped, after a snapshot. TrainError: the step does not fit, a loss or gradient is
    not finite, the adapter cannot be written.
    """
    ranks = ranks or Ranks()
    torch.set_num_threads(max(1, job.threads // ranks.size))
    torch.use_deterministic_algorithms(resolve_device(job.device) == "cpu")
    windows = open_windows(job)
    events.emit("phase", name="layout")
    choose_layout(job, ranks)
    torch.manual_seed(job.train.seed)
    events.emit("phase", name="model")
    loop = Loop(job, events, stop, ranks, windows, resume_from.step if resume_from else 0)
    if resume_from is not None:
        loop.restore(resume_from)
    loop.run()
    loop.write_adapter()


class Loop:
    """One leg's model, optimizer and loss curve so far."""

    def __init__(
        self, job: Job, events: EventLog | NoEvents, stop: threading.Event, ranks: Ranks,
        windows: Windows | None = None, first_step: int = 0,
    ) -> None:  # fmt: skip
        self._job, self._events, self._stop, self._ranks = job, events, stop, ranks
        self._device = resolve_device(job.device)
        self._dtype = resolve_dtype(job.train.precision, self._device)
        self._float8 = job.train.precision == "fp8"
        self._batches = BatchReader(job, ranks, self._device, windows or open_windows(job), first_step)
        self._model, absent = load_model(job, self._device, self._dtype, ranks)
        self._parameters = trained_parameters(self._model)
        self._optimizer = Optimizer(self._model, job.train.weight_decay, torch_dtype(self._dtype), ranks)
        self._backbone = Backbone(
            self._model,
            torch_dtype(self._dtype),
            windows=self._batches.batch_windows,
            window=job.leg.context_tokens,
            float8=self._float8,
            ranks=ranks,
            absent=absent,
        )
        self._loss = CausalLoss(self._model, self._backbone, torch_dtype(self._dtype), ranks.context_group)
        self._earlier_updates = self._carry_optimizer_over()
        self._curve: list[dict[str, Any]] = []
        self._seconds = self._step_s = self._snapshot_s = 0.0
        """of all steps, of the last one, of the last snapshot"""
        self._answers = np.zeros(2)
        """nats over this process's answers to exercises in the current step, and their number"""
        self._random = random_state(self._device)

    @property
    def _step(self) -> int:
        return len(self._curve)

    def restore(self, snapshot: Snapshot) -> None:
        """Set parameters, optimizer, random state and curve to a snapshot's: the next losses are
        bit-equal."""
        weights = {name: snapshot.tensors[f"parameter/{name}"] for name in self._parameters}
        self._optimizer.place_weights(weights)
        self._optimizer.place_moments(snapshot.tensors, self._earlier_updates + snapshot.step)
        torch.set_rng_state(snapshot.tensors["random/cpu"])
        if self._device == "cuda":
            torch.cuda.set_rng_state(snapshot.tensors["random/cuda"])
        self._random = random_state(self._device)
        self._curve, self._seconds = list(snapshot.curve), snapshot.seconds

    def run(self) -> None:
        """Train up to the leg's last step, with a snapshot every `checkpoint_every` steps, at the end, and
        before Stopped is raised."""
        steps, every = self._job.leg.steps, self._job.train.checkpoint_every
        precision = self._job.train.precision if self._job.train.quantised else self._dtype
        self._events.emit("start", step=self._step, device=self._device, precision=precision)
        self._report_plan()
        self._model.train()
        self._events.emit("phase", name="windows")
        first = self._batches.first()
        self._events.emit("phase", name="proof")
        self._loss.prove(first.inputs_BT)
        self._events.emit("phase", name="first step")
        if self._float8:
            self._backbone.quantise()
        while self._step < steps:
            if self._ranks.any(self._would_be_late()):
                self._save_snapshot()
                raise OverBudget(f"training: stopped after step {self._step} of {steps}; {RAISE_BUDGET}")
            if not self._train_step():
                self._save_snapshot()
                raise Stopped(f"training: stopped after step {self._step} of {steps}; run again to go on")
            if self._step % every == 0 or self._step == steps:
                self._save_snapshot()

    def _would_be_late(self) -> bool:
        """Whether one more step and its snapshot, by what they took so far, end past the job's deadline."""
        if self._job.deadline is None:
            return False
        mean_s = self._seconds / self._step if self._step else self._backbone.plan.step_s
        return time.monotonic() + max(mean_s, self._step_s) + self._snapshot_s > self._job.deadline

    def write_adapter(self) -> None:
        """Write the adapter directory atomically, and the event `done`. All ranks call it, the main one
        writes."""
        job, losses = self._job, [point["loss"] for point in self._curve]
        weights = self._optimizer.weights()
        moments = self._optimizer.moments() if job.keep_optimizer else {}
        if not self._ranks.is_main:
            return
        facts = {
            "method": job.train.method,
            "steps": job.leg.steps,
            "window_tokens": job.leg.context_tokens,
            "tokens_seen": job.leg.steps * job.global_batch_windows * job.leg.context_tokens,
            "trainable_parameters": sum(parameter.numel() for parameter in self._parameters.values()),
            "first_loss": losses[0],
            "final_loss": statistics.fmean(losses[-FINAL_LOSS_STEPS:]),
        }
        try:
            with atomic_write(job.out_dir, replacing=True) as draft:
                save_adapter(self._model, draft, facts, self._curve, weights)
                if job.keep_optimizer:
                    save_moments(draft, moments, self._earlier_updates + self._step)
        except (OSError, SafetensorError) as error:
            raise TrainError(
                f"{job.out_dir}: the adapter cannot be written ({error}); make room there and run again"
            ) from error
        self._events.emit("done", step=self._step, seconds=self._seconds, **facts)

    def _carry_optimizer_over(self) -> int:
        """Load the previous leg's optimizer where the leg carries it over; the updates it has taken, else
        0."""
        job = self._job
        if job.previous_dir is None or job.leg.carry != "adapter+optimizer":
            return 0
        moments, updates = load_moments(job.previous_dir, self._parameters)
        self._optimizer.place_moments(moments, updates)
        return updates

    def _train_step(self) -> bool:
        """One optimizer step; False, with parameters unchanged, when `stop` is set before its last
        micro-batch."""
        began, job = time.perf_counter(), self._job
        batches = self._batches.step(self._step)
        data_wait_s = time.perf_counter() - began
        loss = self._loss_of_step(batches)
        if loss is None:
            return False
        rate = learning_rate(self._step, steps=job.leg.steps, peak=job.peak_learning_rate, train=job.train)
        norm = self._update(rate, batches)
        self._step_s = step_s = time.perf_counter() - began
        self._seconds += step_s
        self._random = random_state(self._device)
        point: dict[str, Any] = {"step": self._step + 1, "loss": loss, "learning_rate": rate}
        point["gradient_norm"] = norm
        if self._job.train.exercises.share:
            nats, answers = (self._ranks.total(value) for value in self._answers.tolist())
            point["answer_loss"] = nats / answers if answers else None
        self._curve.append(point)
        self._events.emit(
            "step",
            **point,
            tokens_per_s=job.global_batch_windows * job.leg.context_tokens / step_s,
            step_s=step_s,
            data_wait_s=data_wait_s,
            **usage(self._device, self._backbone.flops * len(batches) / step_s),
        )
        return True

    def _loss_of_step(self, batches: list[Batch]) -> float | None:
        """The step's mean loss in nats a target, with gradients accumulated; None when `stop` is set
        meanwhile.

        A step that runs out of the GPU's memory is begun again with less kept.
        """
        target_tokens = self._ranks.total(sum(batch.target_tokens for batch in batches))
        if not target_tokens:
            raise TrainError(
                f"training: nothing is to be predicted in step {self._step + 1}, whose documents have one "
                "token each; set data.document_mask to false, or data.min_document_tokens"
            )
        while True:
            try:
                loss, self._answers = 0.0, np.zeros(2)
                for batch in batches:
                    if self._ranks.any(self._stop.is_set()):
                        return None
                    loss += self._accumulate(batch, target_tokens)
                return self._ranks.total(loss)
            except torch.OutOfMemoryError as error:
                # Of several processes, one cannot begin again: the others are in the midst of the step.
                if self._ranks.size > 1 or not self._backbone.step_down():
                    raise TrainError(
                        f"training: step {self._step + 1} does not fit the GPU's memory, whatever is kept "
                        f"({str(error).splitlines()[0]}); lower rope.factor or train.batch_windows"
                    ) from None
            self._optimizer.clear()
            if self._device == "cuda":
                torch.cuda.empty_cache()
            self._report_plan()

    def _report_plan(self) -> None:
        plan = self._backbone.plan
        facts: dict[str, Any] = {"predicted_s": plan.step_s} if self._device == "cuda" else {}
        if layout := self._ranks.layout.describe():
            facts["layout"] = layout
        self._events.emit("plan", kept=plan.describe(), predicted_bytes=plan.peak_bytes, **facts)

    def _accumulate(self, batch: Batch, target_tokens: float) -> float:
        """Accumulate a micro-batch's gradients; its part of the step's mean loss, in nats a target."""
        found = self._loss(batch)
        loss = found.total / target_tokens
        loss.backward()
        self._optimizer.accumulated()
        if not torch.isfinite(loss):
            raise TrainError(self._not_finite("loss", [batch]))
        if found.answers is not None and batch.answers_BT is not None:
            self._answers += np.array([found.answers.item(), batch.answers_BT.sum().item()])
        return loss.item()

    def _update(self, rate: float, batches: list[Batch]) -> float:
        """Take the optimizer's step; the gradient norm before clipping."""
        norm = self._optimizer.update(rate, self._job.train.clip_norm)
        if not math.isfinite(norm):
            raise TrainError(self._not_finite("gradient", batches))
        return norm

    def _not_finite(self, what: str, batches: list[Batch]) -> str:
        documents = sorted({document for batch in batches for document in batch.document_ids})
        more = len(documents) - NAMED_DOCUMENTS
        return (
            f"training: the {what} of step {self._step + 1} is not finite; its documents are "
            f"{', '.join(documents[:NAMED_DOCUMENTS])}{f' and {more} more' if more > 0 else ''}: look at "
            "them, or lower train.learning_rate"
        )

    def _save_snapshot(self) -> None:
        """All ranks call it, the main one writes."""
        began = time.perf_counter()
        tensors = {f"random/{device}": state for device, state in self._random.items()}
        tensors |= {f"parameter/{name}": value for name, value in self._optimizer.weights().items()}
        tensors |= self._optimizer.moments()
        if not self._ranks.is_main:
            return
        snapshot = Snapshot(self._step, self._job.identity(), self._curve, self._seconds, tensors)
        save_snapshot(self._job.snapshots, snapshot)
        self._snapshot_s = time.perf_counter() - began
        self._events.emit("checkpoint", step=self._step)


def load_model(
    job: Job, device: str, dtype: Dtype, ranks: Ranks
) -> tuple[PreTrainedModel, AbsentLayers | None]:
    """The base, its RoPE proven, with what trains unfrozen and the previous leg's adapter loaded; and its
    layers where the layout of `ranks` shards or streams them, or the recipe holds them in 4 bits. Such a base
    is loaded to host memory: no device has to hold all of it."""
    config, layout, nf4 = read_config(job.patched_dir), ranks.layout, job.train.precision == "nf4"
    # Frozen weights can lie in bf16; what learns is kept in float32 (`make_trainable`).
    frozen_bf16 = dtype == "bf16" and job.train.method == "lora"
    model = load_proven(
        job.base_dir, config, rope_spec_of(config),
        dtype=torch.bfloat16 if frozen_bf16 else torch.float32,
        device="cpu" if layout.sharded or layout.streamed or nf4 else device,
    )  # fmt: skip
    require_ours(job.train, unsupported(model, job.leg.context_tokens))
    make_trainable(model, job.train)
    if job.previous_dir is not None:
        load_trained(model, job.previous_dir)
    layers = model.base_model.layers
    absent: AbsentLayers | None = None
    if layout.sharded:
        absent = ShardedLayers(layers, device, ranks.size)
    elif layout.streamed:
        places = streamed_places(len(layers), layout.streamed)
        absent = StreamedLayers(layers, places, device, mapped=layout.mapped)
    elif nf4:
        absent = Nf4Layers(layers, device)
    return model.to(device), absent


def random_state(device: str) -> dict[str, Tensor]:
    """The states of torch's random generators, by device."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state()} if device == "cuda" else state
