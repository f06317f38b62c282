"""The one interface, and the remedies that read a document once and answer from the keys and values kept.

A remedy reads as an evaluation's reader does: `read` makes a document the one that is asked about, `ask`
answers questions about it, each alone and greedily. The answer that is expected is teacher-forced, so one
forward is enough: a reply is right where every expected token is the likeliest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from yarn_ops.data.haystack import Ids
from yarn_ops.evals.examples import Question, Tokens
from yarn_ops.evals.packed import Reply

ASKED_TOKENS = 64
"""room that a cut text leaves for a question and its answer"""
CHUNK_TOKENS = 2048
"""of a document that full attention reads at a time"""


class Memory(Protocol):
    """What a remedy keeps of a text, and the attention of later tokens over it."""

    def read(self, ids: Tensor) -> None:
        """Read a document, int64 [N], from an empty memory."""

    def ask(self, ids: Tensor, last: int) -> Tensor:
        """Logits float32 [last, V] after the last tokens of `ids` [Q], as if read next; then forgotten."""

    @property
    def seen(self) -> int:
        """Keys that the last query of the last `ask` attended to, in one head."""

    @property
    def held_bytes(self) -> int:
        """Keys and values kept between questions."""


class FullMemory:
    """Full attention: the model's own, over transformers' own cache, which is read into in chunks."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._cache = DynamicCache()
        self._read = 0

    def read(self, ids: Tensor) -> None:
        for chunk in ids.split(CHUNK_TOKENS):
            self._run(chunk, 1)
        self._read += len(ids)

    def ask(self, ids: Tensor, last: int) -> Tensor:
        logits = self._run(ids, last)
        self._cache.crop(-len(ids))
        self.seen = self._read + len(ids)
        return logits

    seen = 0

    @property
    def held_bytes(self) -> int:
        return sum(
            layer.keys.nbytes + layer.values.nbytes for layer in self._cache.layers if layer.keys is not None
        )

    @torch.inference_mode()
    def _run(self, ids: Tensor, last: int) -> Tensor:
        return (
            self._model(input_ids=ids[None], past_key_values=self._cache, use_cache=True, logits_to_keep=last)
            .logits[0]
            .float()
        )


class Remedy(Protocol):
    """A way to answer questions about a long document."""

    name: str
    seen: int
    """keys that the last answer's last token attended to in one head, itself included"""

    @property
    def read_tokens(self) -> int:
        """Tokens that went through the model so far."""
        ...

    @property
    def held_bytes(self) -> int:
        """Bytes kept between questions: keys and values, or an index."""
        ...

    def read(self, ids: Ids) -> None: ...

    def ask(self, questions: Sequence[Question]) -> list[Reply]: ...

    def losses(self, continuation: Ids) -> NDArray | None:  # type: ignore[type-arg]
        """Nats of each token but the first, read after the document; None where that has no meaning."""
        ...


class Reading:
    """A remedy that reads the document once into the Memory that `memory` makes, and answers from it."""

    def __init__(
        self, name: str, memory: Callable[[], Memory], device: torch.device, cut: int | None = None
    ) -> None:
        """cut: the window that the end of a document has to fit into, with `ASKED_TOKENS` for a question."""
        self.name, self.read_tokens, self.seen = name, 0, 0
        self._make, self._device, self._cut = memory, device, cut

    @property
    def held_bytes(self) -> int:
        return self._memory.held_bytes

    def read(self, ids: Ids) -> None:
        kept = ids if self._cut is None else ids[-(self._cut - ASKED_TOKENS) :]
        self._memory = self._make()
        self._memory.read(torch.from_numpy(kept).to(self._device))
        self.read_tokens += len(kept)

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        replies = [answer(self._memory, self._device, question) for question in questions]
        self.read_tokens += sum(question.tokens - 1 for question in questions)
        self.seen = self._memory.seen
        return replies

    def losses(self, continuation: Ids) -> NDArray:  # type: ignore[type-arg]
        """float32 [len - 1]"""
        ids = torch.from_numpy(continuation).to(self._device)
        logits = self._memory.ask(ids[:-1], len(ids) - 1)
        return F.cross_entropy(logits, ids[1:], reduction="none").cpu().numpy()


def answer(memory: Memory, device: torch.device, question: Question) -> Reply:
    """The reply to one question, teacher-forced, in one forward."""
    ids = torch.tensor([*question.prompt, *question.answer[:-1]], device=device)
    return reply_to(question, memory.ask(ids, len(question.answer)).argmax(-1).tolist())


def reply_to(question: Question, written: Sequence[int]) -> Reply:
    """written: the likeliest token at each place of the answer."""
    right = tuple(one == other for one, other in zip(written, question.answer, strict=True))
    return Reply(right, written=tuple(written))


def write(memory: Memory, device: torch.device, prompt: Tokens, tokens: int) -> Tokens:
    """Greedy continuation of a prompt by so many tokens."""
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(memory.ask(torch.tensor(ids, device=device), 1).argmax()))
    return tuple(ids[len(prompt) :])
