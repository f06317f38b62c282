"""Questions packed side by side behind a text, under a mask in which none sees another, and the replies.

Axes: R rows of packed questions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from yarn_ops.evals.examples import Question, Tokens

PACKED_ROWS = 1024


@dataclass(frozen=True)
class Reply:
    """To one question, teacher-forced."""

    right: tuple[bool, ...]
    """of each answer token: whether it is the likeliest"""
    nll: float | None = None
    """nats, of the whole answer; None: not looked at, or not told by a server"""
    chosen: bool | None = None
    """whether the answer is likelier than every choice; None without choices"""
    written: Tokens = ()
    """what would have been written instead of the answer, where that was kept"""

    @property
    def exact(self) -> bool:
        return all(self.right)


@dataclass(frozen=True)
class Packed:
    ids: list[int]
    positions: list[int]
    asked: list[int]
    """rows whose prediction is an answer token: question by question, answer and then choices"""
    mask: Tensor
    """bool [R, R]"""


def pack(questions: Sequence[Question], start: int) -> Packed:
    ids: list[int] = []
    positions: list[int] = []
    owner: list[int] = []
    branch: list[int] = []
    asked: list[int] = []
    for number, question in enumerate(questions):
        ids += question.prompt
        positions += range(start, start + len(question.prompt))
        owner += [number] * len(question.prompt)
        branch += [0] * len(question.prompt)
        last, after = len(ids) - 1, start + len(question.prompt)
        for which, answer in enumerate(question.answers, start=1):
            asked += [last, *range(len(ids), len(ids) + len(answer) - 1)]
            ids += answer[:-1]
            positions += range(after, after + len(answer) - 1)
            owner += [number] * (len(answer) - 1)
            branch += [which] * (len(answer) - 1)
    owners, branches, rows = torch.tensor(owner), torch.tensor(branch), torch.arange(len(ids))
    mine = owners[:, None] == owners[None]
    prompt_or_same = (branches[None] == 0) | (branches[:, None] == branches[None])
    return Packed(ids, positions, asked, mine & prompt_or_same & (rows[None] <= rows[:, None]))


def packs(questions: Sequence[Question]) -> Iterator[list[Question]]:
    """The questions in order, so many at a time that their rows stay few."""
    some: list[Question] = []
    rows = 0
    for question in questions:
        needed = len(question.prompt) + sum(map(len, question.answers))
        if some and rows + needed > PACKED_ROWS:
            yield some
            some, rows = [], 0
        some.append(question)
        rows += needed
    if some:
        yield some


def replies_of(questions: Sequence[Question], logits: Tensor) -> list[Reply]:
    """logits: float32 [all answer tokens, V], in the order of `Packed.asked`."""
    targets = [token for question in questions for answer in question.answers for token in answer]
    target = torch.tensor(targets, device=logits.device)
    nll = F.cross_entropy(logits, target, reduction="none").double().cpu().numpy()
    right = (logits.argmax(-1) == target).cpu().numpy()
    replies, at = [], 0
    for question in questions:
        sums, hits = [], tuple(map(bool, right[at : at + len(question.answer)]))
        for answer in question.answers:
            sums.append(float(nll[at : at + len(answer)].sum()))
            at += len(answer)
        replies.append(Reply(hits, sums[0], sums[0] < min(sums[1:]) if question.choices else None))
    return replies
