"""A model that has read a text and is asked about it.

Texts that begin alike share what they have in common: the keys and values of the longest common prefix are
kept, the rest is cut off and read in chunks. So a grid whose needles move from the end of one text to its
start reads each text from its needle on. All questions of one text are asked in one forward: packed side by
side at the same positions, under a mask in which none sees another.

On a GPU, chunks end at multiples of the chunk and what is shared is cut at multiples of a grain, since a
kernel is planned anew for every length it has not met. What a text has beyond its last grain is read with the
questions, in the same forward: of short texts the forwards cost more than their tokens.

Axes: R rows of packed questions, N tokens read, B = 1, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from yarn_ops.data.haystack import Ids
from yarn_ops.evals.examples import Question, Tokens
from yarn_ops.models import lean, suffix
from yarn_ops.models.head import Head

CHUNK_TOKENS, GPU_CHUNK_TOKENS = 4096, 16_384
"""read at once; the second on a GPU, by an attention that makes no mask of a chunk's rows × keys"""
GRAIN_TOKENS = {"cuda": suffix.PLANNED_TOKENS}
"""read again at most, to begin where a kernel has begun before"""
PACKED_ROWS = 1024


@dataclass(frozen=True)
class Reply:
    """To one question, teacher-forced."""

    right: tuple[bool, ...]
    """of each answer token: whether it is the likeliest"""
    nll: float | None = None
    """nats, of the whole answer; None: not looked at"""
    chosen: bool | None = None
    """whether the answer is likelier than every choice; None without choices"""
    written: Tokens = ()
    """what would have been written instead of the answer, where that was kept"""

    @property
    def exact(self) -> bool:
        return all(self.right)


class Reader(Protocol):
    """Reads a text, then answers about it. `read_tokens` counts what went through the model."""

    read_tokens: int

    def read(self, ids: Ids) -> None: ...

    def forget(self) -> None:
        """Share nothing of what was read: what follows is the same to the last bit, whatever came before."""
        ...

    def ask(self, questions: Sequence[Question]) -> list[Reply]: ...

    def write(self, prompt: Tokens, tokens: int, enough: Callable[[list[int]], bool]) -> list[int]:
        """Greedy continuation of the text and `prompt`, until `enough` says so."""
        ...


class SharedReader:
    """Keeps the keys and values of what was read."""

    def __init__(
        self, model: PreTrainedModel, chunk_tokens: int | None = None, grain_tokens: int | None = None
    ) -> None:
        """`grain_tokens`: what is kept of a text is cut to a multiple of it; None: as suits the device."""
        self.model = model
        maskless = lean.installed(model) or model.config._attn_implementation.startswith(suffix.NAME)
        large = maskless and model.device.type == "cuda"
        self.chunk_tokens = chunk_tokens or (GPU_CHUNK_TOKENS if large else CHUNK_TOKENS)
        self._grain = grain_tokens or GRAIN_TOKENS.get(model.device.type, 1)
        self.read_tokens = 0
        self._ids: Ids = np.empty(0, dtype=np.int64)
        self._rest: Ids = self._ids
        """of the text, what lies beyond its last grain and is not in the cache yet"""
        self._cache: Any = DynamicCache()

    @torch.inference_mode()
    def read(self, ids: Ids) -> None:
        """Make `ids`, int64 [N], the text that is asked about."""
        shared = _common_prefix(self._ids, ids)
        if shared < len(ids):
            shared -= shared % self._grain
        self._cut(len(self._ids) - shared)
        last_grain = len(ids) - len(ids) % self._grain
        while shared < last_grain:
            end = shared + self.chunk_tokens - (shared % self.chunk_tokens if self._grain > 1 else 0)
            end = min(end, last_grain)
            self._through(ids[shared:end])
            shared = end
        self._ids, self._rest = ids[:shared], ids[shared:]

    def forget(self) -> None:
        self._cut(len(self._ids))
        self._rest = self._rest[:0]

    @torch.inference_mode()
    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        packs = [*_packs(questions)]
        if len(packs) > 1:
            self._read_rest()
        return [reply for some in packs for reply in replies_of(some, self.logits(some))]

    @torch.inference_mode()
    def write(self, prompt: Tokens, tokens: int, enough: Callable[[list[int]], bool]) -> list[int]:
        self._read_rest()
        written: list[int] = []
        hidden = self._through(np.asarray(prompt, dtype=np.int64))
        while True:
            written.append(int(Head.of(self.model).logits(hidden[0, -1:]).argmax()))
            if len(written) == tokens or enough(written):
                break
            hidden = self._through(np.asarray(written[-1:], dtype=np.int64))
        self._cut(self._length() - len(self._ids))
        return written

    @torch.inference_mode()
    def attended(self, prompt: Tokens) -> tuple[Tensor, ...]:
        """Attention of `prompt`'s rows over the text and `prompt`: one [heads, rows, N + rows] a layer."""
        self._read_rest()
        usual = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            start = self._length()
            output = self.model.base_model(
                input_ids=torch.tensor([prompt], device=self.model.device),
                position_ids=torch.arange(start, start + len(prompt), device=self.model.device)[None],
                past_key_values=self._cache,
                use_cache=True,
                output_attentions=True,
            )
        finally:
            self.model.set_attn_implementation(usual)
        self._cut(self._length() - len(self._ids))
        return tuple(layer[0].float() for layer in output.attentions)

    @torch.inference_mode()
    def logits(self, questions: Sequence[Question]) -> Tensor:
        """float32 [all answer tokens, V]: what comes before each token of each question's answers."""
        kept, rest, device = self._length(), self._rest.tolist(), self.model.device
        packed = _pack(questions, kept + len(rest))
        rows = len(rest) + len(packed.ids)
        mask = torch.ones(rows, kept + rows, dtype=torch.bool).tril(kept)
        mask[len(rest) :, kept + len(rest) :] = packed.mask
        hidden = self.model.base_model(
            input_ids=torch.tensor([[*rest, *packed.ids]], device=device),
            position_ids=torch.tensor([[*range(kept, kept + len(rest)), *packed.positions]], device=device),
            attention_mask=mask.to(device)[None, None],
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state[0, len(rest) :]
        self._cut(rows)
        self.read_tokens += rows
        return Head.of(self.model).logits(hidden[packed.asked])

    def _read_rest(self) -> None:
        """Have the whole text in the cache."""
        if len(self._rest):
            self._through(self._rest)
            self._ids, self._rest = np.concatenate([self._ids, self._rest]), self._rest[:0]

    def _through(self, ids: Ids) -> Tensor:
        start = self._length()
        self.read_tokens += len(ids)
        return self.model.base_model(
            input_ids=torch.from_numpy(ids)[None].to(self.model.device),
            position_ids=torch.arange(start, start + len(ids), device=self.model.device)[None],
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state

    def _length(self) -> int:
        return int(self._cache.get_seq_length())

    def _cut(self, tokens: int) -> None:
        if tokens >= self._length():
            self._cache = DynamicCache()
        elif tokens > 0:
            self._cache.crop(-tokens)
        self._ids = self._ids[: self._length()]


class WholeReader:
    """Reads text, question and answer anew for every answer: any causal model can."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.read_tokens = 0
        self._ids: Ids = np.empty(0, dtype=np.int64)

    def read(self, ids: Ids) -> None:
        self._ids = ids

    def forget(self) -> None:
        self._ids = self._ids[:0]

    @torch.inference_mode()
    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        return [reply for one in questions for reply in replies_of([one], self.logits([one]))]

    @torch.inference_mode()
    def logits(self, questions: Sequence[Question]) -> Tensor:
        """As `SharedReader.logits`."""
        rows = [
            self._logits((*question.prompt, *answer[:-1]))[-len(answer) :]
            for question in questions
            for answer in question.answers
        ]
        return torch.cat(rows)

    @torch.inference_mode()
    def write(self, prompt: Tokens, tokens: int, enough: Callable[[list[int]], bool]) -> list[int]:
        written: list[int] = []
        while len(written) < tokens and not (written and enough(written)):
            written.append(int(self._logits((*prompt, *written))[-1].argmax()))
        return written

    def _logits(self, after: Sequence[int]) -> Tensor:
        """float32 [len(after), V]"""
        ids = np.concatenate([self._ids, np.asarray(after, dtype=np.int64)])
        self.read_tokens += len(ids)
        hidden = self.model.base_model(
            input_ids=torch.from_numpy(ids)[None].to(self.model.device), use_cache=False
        ).last_hidden_state[0, -len(after) :]
        return Head.of(self.model).logits(hidden)


@dataclass(frozen=True)
class _Packed:
    ids: list[int]
    positions: list[int]
    asked: list[int]
    """rows whose prediction is an answer token: question by question, answer and then choices"""
    mask: Tensor
    """bool [R, R]"""


def _pack(questions: Sequence[Question], start: int) -> _Packed:
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
    return _Packed(ids, positions, asked, mine & prompt_or_same & (rows[None] <= rows[:, None]))


def _packs(questions: Sequence[Question]) -> Iterator[list[Question]]:
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
    """logits: float32 [all answer tokens, V], in the order of `_Packed.asked`."""
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


def _common_prefix(one: Ids, other: Ids) -> int:
    shorter = min(len(one), len(other))
    different = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(different[0]) if different.size else shorter
