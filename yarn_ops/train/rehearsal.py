"""A rehearsal of the training to come: the faults of a recipe that show without weights or documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import psutil
import torch
from transformers import PreTrainedModel

from yarn_ops.data.windows import needed_tokens
from yarn_ops.models.device import resolve_dtype
from yarn_ops.models.files import read_config
from yarn_ops.models.loading import lay_out
from yarn_ops.recipe import Leg, Train
from yarn_ops.records import Local, PatchedModel, Rehearsal, ShardSet
from yarn_ops.train.layout_search import predict
from yarn_ops.train.lora import make_trainable, trained_parameters
from yarn_ops.train.parallel.layout import StepShape, usable_processes
from yarn_ops.train.plan import GPUS, ModelShape
from yarn_ops.train.precision import trainer_environment


def rehearse(
    train: Train,
    legs: Sequence[Leg],
    patched: Local[PatchedModel],
    shards: ShardSet,
    *,
    device: Literal["cpu", "cuda"],
    processes: int,
) -> Rehearsal:
    """Raise what the trainer or the merge would: DataError for a corpus shorter than a window, TrainError for
    layers that the model has not, for arithmetic that this machine has not, or for a step that its GPUs do
    not hold, or cannot share as the recipe says."""
    for leg in legs:
        needed_tokens("train", shards.train_tokens, leg.context_tokens)
    needed_tokens("held_out", shards.held_out_tokens, patched.record.target_context_tokens)  # the merge's
    model = lay_out(patched.path)
    make_trainable(model, train)
    trainer_environment(train.precision, device)
    if device == "cuda" or processes > 1:
        _fit(model, train, legs, read_config(patched.path), device, processes)
    return Rehearsal(trainable_parameters=sum(value.numel() for value in trained_parameters(model).values()))


def _fit(
    model: PreTrainedModel,
    train: Train,
    legs: Sequence[Leg],
    config: Mapping[str, Any],
    device: Literal["cpu", "cuda"],
    processes: int,
) -> None:
    dtype = resolve_dtype(train.precision, device)
    element_bytes = 2 if dtype == "bf16" else 4
    frozen_bytes = element_bytes if train.method == "lora" else 4
    shape = ModelShape.of(model, element_bytes=element_bytes, weight_bytes=frozen_bytes)
    host = psutil.virtual_memory().total
    memory = torch.cuda.get_device_properties(0).total_memory if device == "cuda" else host
    for leg in legs:
        step = StepShape.of(train, leg.context_tokens, config)
        predict(
            usable_processes(processes, step),
            step,
            train,
            shape,
            GPUS[0].rates,  # which rates, does not matter: memory decides
            memory_bytes=memory,
            host_bytes=host,
        )
