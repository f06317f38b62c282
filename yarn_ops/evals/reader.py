"""A model that has read a text and is asked about it.

Texts that begin alike share what they have in common: the keys and values of the longest common prefix are
kept, the rest is cut off and read in chunks. So a grid whose needles move from the end of one text to its
start reads each text from its needle on. All questions of one text are asked in one forward: packed side by
side at the same positions, under a mask in which none sees another.

On a GPU, chunks end at multiples of the chunk and what is shared is cut at multiples of a grain, since a
kernel is planned anew for every length it has not met. What a text has beyond its last grain is read with the
questions, in the same forward: of short texts the forwards cost more than their tokens. There, too, texts
are read side by side, as rows of one batch, where one alone would not fill the chip: those that begin alike
are one row until they part.

Axes: B texts, R rows of packed questions, N tokens read, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from yarn_ops.data.haystack import Ids
from yarn_ops.evals.examples import Example, Question, Tokens
from yarn_ops.evals.packed import Reply, pack, packs, replies_of
from yarn_ops.models import lean, suffix
from yarn_ops.models.costs import BYTES, costs, dimensions_of
from yarn_ops.models.head import Head

CHUNK_TOKENS, GPU_CHUNK_TOKENS = 4096, 16_384
"""read at once; the second on a GPU, by an attention that makes no mask of a chunk's rows × keys"""
GRAIN_TOKENS = {"cuda": suffix.PLANNED_TOKENS}
"""read again at most, to begin where a kernel has begun before"""
FILLING_FLOP = {"cuda": 2e13}
"""of one forward over texts side by side: the chip is then busy for longer than Python takes to call it"""
CACHE_SHARE = 0.25
"""of the device's memory that the keys and values of texts side by side may take"""
REST_TOKENS = 256
"""of a text, as many at most are read with its questions, under their mask, where texts are side by side"""


class Reader(Protocol):
    """Reads a text, then answers about it. `read_tokens` counts what went through the model."""

    @property
    def read_tokens(self) -> int: ...

    def read(self, ids: Ids) -> None: ...

    def forget(self) -> None:
        """Share nothing of what was read: what follows is the same to the last bit, whatever came before."""
        ...

    def ask(self, questions: Sequence[Question]) -> list[Reply]: ...

    def ask_side_by_side(self, examples: Sequence[Example]) -> list[list[Reply]] | None:
        """Replies by example; None where reading one after the other is as quick."""
        ...

    def write(self, prompt: Tokens, tokens: int, enough: Callable[[list[int]], bool]) -> list[int]:
        """Greedy continuation of the text and `prompt`, until `enough` says so."""
        ...


class SharedReader:
    """Keeps the keys and values of what was read."""

    def __init__(
        self, model: PreTrainedModel, chunk_tokens: int | None = None, grain_tokens: int | None = None,
        *, side_by_side: bool = True,
    ) -> None:  # fmt: skip
        """`grain_tokens`: what is kept of a text is cut to a multiple of it; None: as suits the device.
        `side_by_side`: whether texts may be read so."""
        self.model = model
        self._side_by_side = side_by_side
        maskless = lean.installed(model) or model.config._attn_implementation.startswith(suffix.NAME)
        self._sees_all_before = maskless  # a mask says what rows see of each other alone
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
        self._cut(self._length())
        self._rest = self._rest[:0]

    @torch.inference_mode()
    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        some = [*packs(questions)]
        if len(some) > 1:
            self._read_rest()
        return [reply for one in some for reply in replies_of(one, self.logits(one))]

    @torch.inference_mode()
    def ask_side_by_side(self, examples: Sequence[Example]) -> list[list[Reply]] | None:
        some = sorted(range(len(examples)), key=lambda index: len(examples[index].context))
        batches = [*self._batches([examples[index] for index in some])]
        if len(batches) == len(examples) or any(len([*packs(each.questions)]) > 1 for each in examples):
            return None
        replies = (
            replies_of(each.questions, logits)
            for batch in batches
            for each, logits in zip(batch, self.logits_side_by_side(batch), strict=True)
        )
        try:
            by_index = dict(zip(some, replies, strict=True))
        except torch.OutOfMemoryError:  # others use the device too
            self.forget()
            return None
        return [by_index[index] for index in range(len(examples))]

    def _batches(self, examples: Sequence[Example]) -> Iterator[list[Example]]:
        """Texts, ascending in length, so many at a time as fill the chip and fit its memory."""
        filling = FILLING_FLOP.get(self.model.device.type, 0) if self._side_by_side else 0
        parameters = self.model.num_parameters()
        dimensions = dimensions_of(self.model.config.to_dict(), parameters)
        batch: list[Example] = []
        for each in examples:
            longest, shortest = len(each.context), len((batch or [each])[0].context)
            rows = max(_rows(one) for one in (*batch, each)) + min(longest, REST_TOKENS)
            count = len(batch) + 1
            fits = dimensions is not None and (
                count * 2 * parameters * min(longest, self._grain + rows) <= filling
                and count * rows <= GPU_CHUNK_TOKENS
                and longest - shortest <= REST_TOKENS
                and count * costs(dimensions, [longest + rows])[0].kv_bytes
                <= self._cache_bytes() * BYTES / self.model.dtype.itemsize
            )
            if batch and not fits:
                yield batch
                batch = []
            batch.append(each)
        yield batch

    def _cache_bytes(self) -> float:
        """What keys and values may take: the same on every device of a kind, so that scores are, too."""
        device = self.model.device
        if device.type != "cuda":
            return float("inf")
        return CACHE_SHARE * torch.cuda.get_device_properties(device).total_memory

    @torch.inference_mode()
    def logits_side_by_side(self, examples: Sequence[Example]) -> Iterator[Tensor]:
        """float32 [answer tokens, V], example by example; nothing read before counts."""
        self.forget()
        texts = [each.context for each in examples]
        together = min(map(len, texts))
        step = max(self._grain, self.chunk_tokens // len(texts) // self._grain * self._grain)
        *starts, last = range(0, together // self._grain * self._grain + 1, self._grain)
        edges = sorted({*starts[:: step // self._grain], last})
        if together - last > REST_TOKENS:
            edges.append(together)
        row_of = [0] * len(texts)
        for start, end in pairwise(edges):
            rows: dict[tuple[int, bytes], int] = {}
            for index, text in enumerate(texts):
                parted = row_of[index], text[start:end].tobytes()
                row_of[index] = rows.setdefault(parted, len(rows))
            self._select([row for row, _ in rows])
            self._through(np.stack([np.frombuffer(read, dtype=np.int64) for _, read in rows]))
        self._select(row_of)
        yield from self._answers(
            [text[edges[-1] :].tolist() for text in texts], [each.questions for each in examples]
        )
        self.forget()

    def _select(self, rows: Sequence[int]) -> None:
        """Make these rows of the cache, some of them several times, its rows."""
        if self._length() and [*rows] != [*range(self._cache.batch_size)]:
            self._cache.batch_select_indices(torch.tensor(rows, device=self.model.device))

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
        return next(self._answers([self._rest.tolist()], [questions]))

    def _answers(self, rests: Sequence[list[int]], asked: Sequence[Sequence[Question]]) -> Iterator[Tensor]:
        """As `logits`, for each row of the cache: of what its text still has, and its questions."""
        kept, device = self._length(), self.model.device
        packed = [pack(questions, kept + len(rest)) for rest, questions in zip(rests, asked, strict=True)]
        rows = max(len(rest) + len(one.ids) for rest, one in zip(rests, packed, strict=True))
        ids = torch.zeros(len(rests), rows, dtype=torch.int64)
        positions = torch.full_like(ids, kept)
        seen = torch.ones(rows, rows, dtype=torch.bool).tril().repeat(len(rests), 1, 1, 1)
        for row, (rest, one) in enumerate(zip(rests, packed, strict=True)):
            first, end = len(rest), len(rest) + len(one.ids)
            ids[row, :end] = torch.tensor([*rest, *one.ids])
            positions[row, :end] = torch.tensor([*range(kept, kept + first), *one.positions])
            seen[row, 0, first:, first:] = torch.eye(rows - first, dtype=torch.bool)  # those that pad
            seen[row, 0, first:end, first:end] = one.mask
        seen = seen.to(device)
        if not self._sees_all_before:
            seen = torch.cat((seen.new_ones(*seen.shape[:3], kept), seen), -1)
        hidden = self.model.base_model(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            attention_mask=seen,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        self._cut(rows)
        self.read_tokens += sum(len(rest) + len(one.ids) for rest, one in zip(rests, packed, strict=True))
        head = Head.of(self.model)
        for row, (rest, one) in enumerate(zip(rests, packed, strict=True)):
            yield head.logits(hidden[row, [len(rest) + at for at in one.asked]])

    def _read_rest(self) -> None:
        """Have the whole text in the cache."""
        if len(self._rest):
            self._through(self._rest)
            self._ids, self._rest = np.concatenate([self._ids, self._rest]), self._rest[:0]

    def _through(self, ids: Ids) -> Tensor:
        """ids: int64 [N], or [B, N] of the rows of the cache; hidden states [B, N, D]."""
        start, ids = self._length(), np.atleast_2d(ids)
        self.read_tokens += ids.size
        return self.model.base_model(
            input_ids=torch.from_numpy(ids).to(self.model.device),
            position_ids=torch.arange(start, start + ids.shape[1], device=self.model.device)[None],
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

    def ask_side_by_side(self, examples: Sequence[Example]) -> None:
        return None

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


def _rows(example: Example) -> int:
    return sum(len(one.prompt) + sum(map(len, one.answers)) for one in example.questions)


def _common_prefix(one: Ids, other: Ids) -> int:
    shorter = min(len(one), len(other))
    different = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(different[0]) if different.size else shorter
