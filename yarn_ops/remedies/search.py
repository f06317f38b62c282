"""Search, and an agent that searches: the model reads only what a question finds in the document's index.

The index is BM25 over words. Passages overlap by half, so that whatever is shorter than half a passage lies
whole in one. The words of the question are the query; what is found is read in the order of the document.

The agent finds, reads, and where the reply only points on, asks again; bounded. Each step the model sees what
its present question finds, and nothing of the steps before: what it learned is in the next question (as in
Press et al. 2022, "Measuring and Narrowing the Compositionality Gap in Language Models", whose follow-up
questions go to a search engine). What follows from a reply is said by the question (`Question.follow`); a
question that was asked before ends the loop.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from yarn_ops.data.haystack import Decode, Encode, Ids
from yarn_ops.evals.bm25 import Bm25
from yarn_ops.evals.examples import Question
from yarn_ops.evals.packed import Reply
from yarn_ops.remedies.remedy import FullMemory, answer, reply_to, write

WORD = re.compile(r"\w+")
MAX_STEPS = 4
"""of the agent"""
REPLY_TOKENS = 8
"""what the agent writes before it is read for a pointer"""


class Index:
    """Passages of a document, to be found by words."""

    def __init__(self, document: Ids, decode: Decode, *, passage_tokens: int) -> None:
        """document: int64 [N]. Passages of `passage_tokens` begin at every half of that."""
        self._document, self._passage = document, passage_tokens
        half = passage_tokens // 2
        self._starts = list(range(0, max(1, len(document) - half), half))
        passages = [_words(decode(document[at : at + passage_tokens].tolist())) for at in self._starts]
        self._bm25 = Bm25(passages) if any(passages) else None

    @property
    def nbytes(self) -> int:
        return (self._bm25.nbytes if self._bm25 else 0) + self._document.nbytes

    def find(self, text: str, passages: int) -> Ids:
        """Tokens of the best passages for a text, in the document's order; none where no word is known."""
        if self._bm25 is None:
            return self._document[:0]
        scores = self._bm25.scores(_words(text))
        best = np.argsort(-scores, kind="stable")[:passages]
        spans = [
            np.arange(self._starts[at], min(self._starts[at] + self._passage, len(self._document)))
            for at in sorted(best.tolist())
            if scores[at] > 0
        ]
        return self._document[np.unique(np.concatenate(spans))] if spans else self._document[:0]


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


class Search:
    """Reads, for a question, `passages` passages of `passage_tokens` at most, after `prefix`."""

    name = "search"

    def __init__(
        self, model: PreTrainedModel, decode: Decode, passage_tokens: int, passages: int,
        prefix: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.read_tokens, self.seen = 0, 0
        self.decode, self.device = decode, model.device
        self._model, self._passage, self._passages, self._prefix = model, passage_tokens, passages, prefix

    @property
    def held_bytes(self) -> int:
        return self._index.nbytes

    def read(self, ids: Ids) -> None:
        self._index = Index(ids, self.decode, passage_tokens=self._passage)

    def open(self, text: str) -> FullMemory:
        """The model with what `text` finds read."""
        found = [*self._prefix, *self._index.find(text, self._passages).tolist()]
        memory = FullMemory(self._model)
        if found:
            memory.read(torch.tensor(found, device=self.device))
        self.read_tokens += len(found)
        return memory

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        replies = []
        for question in questions:
            memory = self.open(self.decode(question.prompt))
            replies.append(answer(memory, self.device, question))
            self.read_tokens += question.tokens - 1
            self.seen = memory.seen
        return replies

    def losses(self, continuation: Ids) -> None:
        return None


class Agent:
    """Replies with what its last step wrote; `seen` is the most of any step."""

    name = "agent loop"

    def __init__(self, search: Search, encode: Encode) -> None:
        self.seen, self._written = 0, 0
        self._search, self._encode = search, encode

    @property
    def read_tokens(self) -> int:
        return self._search.read_tokens + self._written

    @property
    def held_bytes(self) -> int:
        return self._search.held_bytes

    def read(self, ids: Ids) -> None:
        self._search.read(ids)

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        return [self._answer(question) for question in questions]

    def losses(self, continuation: Ids) -> None:
        return None

    def _answer(self, question: Question) -> Reply:
        search, self.seen = self._search, 0
        text, prompt = search.decode(question.prompt), question.prompt
        asked: list[str] = []
        while True:
            asked.append(text)
            memory = search.open(text)
            reply = write(memory, search.device, prompt, max(REPLY_TOKENS, len(question.answer)))
            self._written += len(prompt) + len(reply) - 1
            self.seen = max(self.seen, memory.seen)
            leads_to = question.follow(search.decode(reply)) if question.follow else None
            if leads_to is None or leads_to in asked or len(asked) == MAX_STEPS:
                return reply_to(question, reply[: len(question.answer)])
            text, prompt = leads_to, tuple(self._encode(leads_to))
