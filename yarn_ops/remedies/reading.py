"""Remedies that read the document once, keep keys and values, and answer from these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from yarn_ops.evals.forward import Ids
from yarn_ops.remedies import remedy
from yarn_ops.remedies.costs import Cost, Meter
from yarn_ops.remedies.late import Memory
from yarn_ops.remedies.questions import Question
from yarn_ops.remedies.remedy import Reply

ASKED_TOKENS = 64
"""room that a cut text leaves for a question and its answer"""


@dataclass(frozen=True)
class Reading:
    """Full attention, a rolling buffer, block selection: whatever `memory` makes. `cut`: the window that the
    end of the document has to fit into, with `ASKED_TOKENS` for a question."""

    name: str
    memory: Callable[[], Memory]
    device: torch.device
    cut: int | None = None

    def prefill(self, document: Ids) -> Read:
        if self.cut is not None:
            document = document[-(self.cut - ASKED_TOKENS) :]
        with Meter(self.device) as meter:
            memory = self.memory()
            memory.read(torch.from_numpy(document).to(self.device))
        return Read(memory, self.device, meter.cost(len(document)))


@dataclass(frozen=True)
class Read:
    memory: Memory
    device: torch.device
    cost: Cost

    @property
    def held_bytes(self) -> int:
        return self.memory.held_bytes

    def answer(self, question: Question) -> Reply:
        with Meter(self.device) as meter:
            ids = remedy.greedy(self.memory, self.device, question)
        read = len(question.ids) + len(question.answer) - 1
        return Reply(ids, meter.cost(read), self.memory.seen)

    def losses(self, continuation: Ids) -> NDArray[np.float32] | None:
        return remedy.losses(self.memory, self.device, continuation)
