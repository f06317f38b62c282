"""The trainer's data: a step's windows as micro-batches on the device, read while the step before runs.

Axes in names: B windows, T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from yarn_ops.data.windows import Window
from yarn_ops.train.job import Job
from yarn_ops.train.parallel.ranks import ContextGroup, Ranks
from yarn_ops.train.windows import Windows

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """A micro-batch on the device, its positions in host memory. With a document mask, positions restart at
    each document, and no document's first token is a target."""

    inputs_BT: Tensor
    targets_BT: Tensor
    """int64; `IGNORED` where nothing is to be predicted"""
    positions_BT: Tensor | None
    """of all tokens of the windows, also where this process holds a part of them; None without a mask"""
    target_tokens: int
    document_ids: frozenset[str]
    weights_BT: Tensor | None = None
    """of each target in the loss (float32), which add up to a window's number of targets; None: all are 1"""
    answers_BT: Tensor | None = None
    """which targets answer an exercise (bool); None where no window has one"""

    def part(self, context_group: ContextGroup | None) -> Batch:
        """The tokens of every window that this process holds."""
        if context_group is None:
            return self
        targets_BT = context_group.part(self.targets_BT, 1)
        return replace(
            self,
            inputs_BT=context_group.part(self.inputs_BT, 1),
            targets_BT=targets_BT,
            weights_BT=None if self.weights_BT is None else context_group.part(self.weights_BT, 1),
            answers_BT=None if self.answers_BT is None else context_group.part(self.answers_BT, 1),
            target_tokens=int((targets_BT != IGNORED).sum()),
        )


def make_batch(
    windows: Sequence[Window], *, device: str, document_mask: bool, answer_share: float = 0.5
) -> Batch:
    """The micro-batch of these windows. `document_mask`: attention stays within documents. `answer_share`: of
    the loss of a window with exercises, what its answers make up."""
    ids = torch.stack([torch.as_tensor(window.ids) for window in windows])
    segments = torch.stack([torch.as_tensor(window.segments) for window in windows])
    targets, positions = ids[:, 1:].clone(), None
    if document_mask:
        targets[segments[:, 1:] != segments[:, :-1]] = IGNORED
        positions = positions_within(segments[:, :-1])
    answers = weights = None
    if any(window.answers is not None for window in windows):
        answers, planted = (
            torch.stack([_marked(window, name) for window in windows]) & (targets != IGNORED)
            for name in ("answers", "planted")
        )
        weights = target_weights(answers, planted, targets, answer_share).to(device)
        answers = answers.to(device)
    return Batch(
        inputs_BT=ids[:, :-1].to(device),
        targets_BT=targets.to(device),
        positions_BT=positions,
        weights_BT=weights,
        answers_BT=answers,
        target_tokens=int((targets != IGNORED).sum()),
        document_ids=frozenset(document for window in windows for document in window.document_ids),
    )


def _marked(window: Window, name: str) -> Tensor:
    """Which targets of the window are among its `answers` or `planted` tokens (bool, T)."""
    marks = getattr(window, name)
    return torch.zeros(len(window.ids) - 1, dtype=torch.bool) if marks is None else torch.as_tensor(marks[1:])


def target_weights(answers_BT: Tensor, planted_BT: Tensor, targets_BT: Tensor, answer_share: float) -> Tensor:
    """Weights (float32, B × T) by which a window's loss is `answer_share` times the mean over its answers
    plus the rest times the mean over its text, what is planted aside; they add up to its number of targets.
    Without answers all are 1."""
    text_BT = (targets_BT != IGNORED) & ~answers_BT & ~planted_BT
    targets_B = (targets_BT != IGNORED).sum(1, keepdim=True).float()
    answers_B, texts_B = answers_BT.sum(1, keepdim=True), text_BT.sum(1, keepdim=True)
    share = torch.where((answers_B > 0) & (texts_B > 0), answer_share, (answers_B > 0).float())
    answer_weight = targets_B * share / answers_B.clamp(min=1)
    text_weight = targets_B * (1 - share) / texts_B.clamp(min=1)
    return torch.where(answers_BT, answer_weight, torch.where(text_BT, text_weight, 0.0))


def positions_within(segments_BT: Tensor) -> Tensor:
    """Each token's position in its own run of equal segment numbers: 0, 1, 2, ... (int64, B × T)."""
    index = torch.arange(segments_BT.shape[1]).expand(segments_BT.shape)
    starts = torch.ones_like(segments_BT, dtype=torch.bool)
    starts[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return index - torch.where(starts, index, 0).cummax(dim=1).values


class BatchReader:
    """This process's part of every step: a pure function of the job, the layout and the step's number."""

    def __init__(self, job: Job, ranks: Ranks, device: str, sampler: Windows, first_step: int) -> None:
        """The windows of `first_step` are read from now on, in a thread."""
        self._job, self._ranks, self._device, self._sampler = job, ranks, device, sampler
        self._windows = job.global_batch_windows // ranks.layout.data
        self.batch_windows = min(job.train.batch_windows, self._windows)
        """windows of a micro-batch"""
        self._thread = ThreadPoolExecutor(1, "windows")
        self._read_ahead(first_step)

    def first(self) -> Batch:
        """The first micro-batch of the next step, with all tokens of its windows."""
        return self._next.result()[0][0]

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of optimizer step `step` (from 0), with this process's part of their tokens.
        Those of the next step are then read in a thread."""
        if self._next_step != step:
            self._read_ahead(step)
        batches = [part for _, part in self._next.result()]
        self._read_ahead(step + 1)
        return batches

    def _read_ahead(self, step: int) -> None:
        self._next_step = step
        self._next: Future[list[tuple[Batch, Batch]]] = self._thread.submit(self._read, step)

    def _read(self, step: int) -> list[tuple[Batch, Batch]]:
        """Each micro-batch, with all tokens of its windows and with this process's part of them."""
        return [(batch, batch.part(self._ranks.context_group)) for batch in self._whole(step)]

    def _whole(self, step: int) -> Iterator[Batch]:
        first = step * self._job.global_batch_windows + self._ranks.data_rank * self._windows
        for start in range(first, first + self._windows, self.batch_windows):
            end = min(start + self.batch_windows, first + self._windows)
            yield make_batch(
                [self._sampler.window(index) for index in range(start, end)],
                device=self._device,
                document_mask=self._job.data.document_mask,
                answer_share=self._job.train.exercises.answer_share,
            )
