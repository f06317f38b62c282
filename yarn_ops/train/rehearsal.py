"""A rehearsal of the training to come: the faults of a recipe that show without weights or documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from yarn_ops.data.windows import needed_tokens
from yarn_ops.recipe import Stage, Train
from yarn_ops.records import Local, PatchedModel, Rehearsal, ShardSet
from yarn_ops.rope.patch import lay_out
from yarn_ops.train.lora import make_trainable, trained_parameters
from yarn_ops.train.precision import trainer_environment


def rehearse(
    train: Train,
    legs: Sequence[Stage],
    patched: Local[PatchedModel],
    shards: ShardSet,
    *,
    device: Literal["cpu", "cuda"],
) -> Rehearsal:
    """Raise what the trainer or the merge would: DataError for a corpus shorter than a window, TrainError for
    layers that the model has not, or for arithmetic that this machine has not."""
    for leg in legs:
        needed_tokens("train", shards.train_tokens, leg.context_tokens)
    needed_tokens("held_out", shards.held_out_tokens, patched.record.target_context_tokens)  # the merge's
    model = lay_out(patched.path)
    make_trainable(model, train)
    trainer_environment(train.precision, device)
    return Rehearsal(trainable_parameters=sum(value.numel() for value in trained_parameters(model).values()))
