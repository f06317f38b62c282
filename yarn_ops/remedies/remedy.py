"""The one interface: prepare a document, then answer questions about it.

    remedy.prefill(document) -> Prepared      what the remedy keeps of the document, and what that cost
    prepared.answer(question) -> Reply        the answer, what it cost, how many tokens it was given from
    prepared.losses(ids)                      of the text that goes on there, None where that has no meaning

An answer is greedy. `Question.answer` is what is expected; the reply holds the greedy tokens up to and with
the first that differs from it, so one forward is enough and the reply is right when it equals what was
expected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from yarn_ops.evals.forward import Ids
from yarn_ops.remedies.costs import Cost
from yarn_ops.remedies.late import Memory
from yarn_ops.remedies.questions import Question


@dataclass(frozen=True)
class Reply:
    ids: tuple[int, ...]
    cost: Cost
    seen: int
    """tokens that the answer's last token was chosen from: keys attended to in a head, itself included"""


class Prepared(Protocol):
    """A document as a remedy keeps it."""

    @property
    def cost(self) -> Cost: ...

    @property
    def held_bytes(self) -> int:
        """Kept between questions: keys and values, or an index."""
        ...

    def answer(self, question: Question) -> Reply: ...

    def losses(self, continuation: Ids) -> NDArray[np.float32] | None:
        """Nats of each token but the first, read after the document."""
        ...


class Remedy(Protocol):
    @property
    def name(self) -> str: ...

    def prefill(self, document: Ids) -> Prepared: ...


def greedy(memory: Memory, device: torch.device, question: Question) -> tuple[int, ...]:
    """Greedy tokens of the answer, up to and with the first that is not the expected one; one forward."""
    ids = torch.tensor([*question.ids, *question.answer[:-1]], device=device)
    chosen = memory.ask(ids, len(question.answer)).argmax(-1).tolist()
    wrong = [at for at, pair in enumerate(zip(chosen, question.answer, strict=True)) if pair[0] != pair[1]]
    return tuple(chosen[: wrong[0] + 1] if wrong else chosen)


def write(memory: Memory, device: torch.device, prompt: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    """Greedy continuation of a prompt by so many tokens."""
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(memory.ask(torch.tensor(ids, device=device), 1).argmax()))
    return tuple(ids[len(prompt) :])


def losses(memory: Memory, device: torch.device, continuation: Ids) -> NDArray[np.float32]:
    """Nats of each token but the first, read after what the memory holds; float32 [len - 1]."""
    ids = torch.from_numpy(continuation).to(device)
    logits = memory.ask(ids[:-1], len(ids) - 1)
    return F.cross_entropy(logits, ids[1:], reduction="none").cpu().numpy()
