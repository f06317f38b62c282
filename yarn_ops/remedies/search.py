"""Search: the document goes into an index, and the model reads only what a question finds there.

The index is BM25 over words (Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and
Beyond"; the bm25s package). Passages overlap by half, so that whatever is shorter than half a passage lies
whole in one. The words of the question are the query; what is found is read in the order of the document.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import bm25s  # type: ignore[import-untyped]
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from yarn_ops.evals.forward import Ids
from yarn_ops.remedies import remedy
from yarn_ops.remedies.costs import Cost, Meter
from yarn_ops.remedies.full import FullMemory
from yarn_ops.remedies.questions import Decode, Question
from yarn_ops.remedies.remedy import Reply

WORD = re.compile(r"\w+")
INDEX_BYTES_A_SCORE = 8
"""float32 score and int32 passage of a word in bm25s' sparse matrix"""


class Index:
    """Passages of a document, to be found by words."""

    def __init__(self, document: Ids, decode: Decode, *, passage_tokens: int) -> None:
        """document: int64 [N]. Passages of `passage_tokens` begin at every half of that."""
        self._document, self._passage = document, passage_tokens
        half = passage_tokens // 2
        self._starts = list(range(0, max(1, len(document) - half), half))
        passages = [_words(decode(document[at : at + passage_tokens].tolist())) for at in self._starts]
        self._words = {word for passage in passages for word in passage}
        self._scores = sum(len(set(passage)) for passage in passages)
        self._bm25 = bm25s.BM25()
        if self._words:
            self._bm25.index(passages, show_progress=False)

    @property
    def nbytes(self) -> int:
        return self._scores * INDEX_BYTES_A_SCORE + self._document.nbytes

    def find(self, text: str, passages: int) -> Ids:
        """Tokens of the best passages for a text, in the document's order; none where no word is known."""
        known = [word for word in _words(text) if word in self._words]
        if not known:
            return self._document[:0]
        scores = self._bm25.get_scores(known)
        best = np.argsort(-scores, kind="stable")[:passages]
        spans = [
            np.arange(self._starts[at], min(self._starts[at] + self._passage, len(self._document)))
            for at in sorted(best.tolist())
            if scores[at] > 0
        ]
        return self._document[np.unique(np.concatenate(spans))] if spans else self._document[:0]


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


@dataclass(frozen=True)
class Search:
    """`passages` passages of `passage_tokens` at most are read for a question, after `prefix`."""

    model: PreTrainedModel
    decode: Decode
    passage_tokens: int
    passages: int
    prefix: Sequence[int] = ()
    name: str = "search"

    def prefill(self, document: Ids) -> Indexed:
        with Meter(self.model.device) as meter:
            index = Index(document, self.decode, passage_tokens=self.passage_tokens)
        return Indexed(self, index, meter.cost(0))

    def open(self, index: Index, text: str) -> tuple[FullMemory, int]:
        """The model with what `text` finds read, and how many tokens that were."""
        found = [*self.prefix, *index.find(text, self.passages).tolist()]
        memory = FullMemory(self.model)
        if found:
            memory.read(torch.tensor(found, device=self.model.device))
        return memory, len(found)


@dataclass(frozen=True)
class Indexed:
    search: Search
    index: Index
    cost: Cost

    @property
    def held_bytes(self) -> int:
        return self.index.nbytes

    def answer(self, question: Question) -> Reply:
        device = self.search.model.device
        with Meter(device) as meter:
            memory, found = self.search.open(self.index, question.text)
            ids = remedy.greedy(memory, device, question)
        read = found + len(question.ids) + len(question.answer) - 1
        return Reply(ids, meter.cost(read), memory.seen)

    def losses(self, continuation: Ids) -> NDArray[np.float32] | None:
        return None
