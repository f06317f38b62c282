"""Before weights and documents are read: faults of a recipe's training, and what can be compiled for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import psutil
import torch

from yarn_ops.errors import TrainError
from yarn_ops.models.device import unsupported
from yarn_ops.models.files import read_config
from yarn_ops.models.loading import lay_out
from yarn_ops.recipe import Leg, Train
from yarn_ops.records import Local, PatchedModel, Rehearsal
from yarn_ops.train import attention
from yarn_ops.train.backbone import SEES_PAST_DOCUMENTS
from yarn_ops.train.elementwise import load_compiler
from yarn_ops.train.layout_search import predict, step_shape, training_shape
from yarn_ops.train.lora import make_trainable, trained_parameters
from yarn_ops.train.model_shape import ModelShape
from yarn_ops.train.parallel.layout import usable_processes
from yarn_ops.train.precision import trainer_environment
from yarn_ops.train.probe import GPUS


def compile_ahead(train: Train, window: int, masked: bool, patched: Local[PatchedModel]) -> None:
    """Compile and load what the first step needs and no device has to be touched for, where a GPU trains.

    window: tokens of one; masked: attention stays within its documents.
    """
    if not torch.cuda.is_available():
        return
    model = lay_out(patched.path)
    if unsupported(model, window) is None and train.precision in ("auto", "bf16"):
        shape = ModelShape.of(model, element_bytes=2, weight_bytes=2)
        attention.compile_ahead(shape.heads, shape.kv_heads, shape.head_width, window, masked=masked)
    load_compiler()


def rehearse(
    train: Train,
    legs: Sequence[Leg],
    patched: Local[PatchedModel],
    document_mask: bool = False,
    *,
    device: Literal["cpu", "cuda"],
    processes: int,
) -> Rehearsal:
    """Check that the trainer can do what `train` and its legs ask, on `processes` devices.

    TrainError: a target layer is not in the model, machine or model does not allow this precision, its layers
    do not stay within documents, or a step does not fit its memory or cannot be shared as the recipe says.
    """
    model = lay_out(patched.path)
    if document_mask and model.config.model_type in SEES_PAST_DOCUMENTS:
        raise TrainError(
            f"data.document_mask: layers of {model.config.model_type} see past the beginning of a document; "
            "set it to false"
        )
    make_trainable(model, train)
    trainer_environment(train.precision, device)
    config = read_config(patched.path)
    steps = [step_shape(model, train, leg.context_tokens, config) for leg in legs]
    if device == "cuda" or processes > 1:
        shape = training_shape(model, train, device)
        host = psutil.virtual_memory().total
        memory = torch.cuda.get_device_properties(0).total_memory if device == "cuda" else host
        for step in steps:
            usable = usable_processes(processes, step)
            rates = GPUS[0].rates  # any: whether a step fits is a question of memory
            predict(usable, step, train, shape, rates, memory_bytes=memory, host_bytes=host)
    return Rehearsal(trainable_parameters=sum(value.numel() for value in trained_parameters(model).values()))
