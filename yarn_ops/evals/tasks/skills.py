"""What short texts must still be good for, from the user's own documents, asked of base and result alike.

- `short/cloze`: which of four runs continues a passage (in the way of Zellers et al., HellaSwag, 2019);
- `short/order`: in which order its next two runs stand;
- `short/chat-ends`, where the tokenizer has a chat template: whether the turn ends behind an answer that says
  again what it was asked to, and `short/chat`: nats a token of that answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.random import Generator

from yarn_ops.data.haystack import Haystack
from yarn_ops.errors import DataError
from yarn_ops.evals.cells import Cell, ModelUnderTest, Size
from yarn_ops.evals.examples import WRONG_CHOICES, Example, Question, Tokens
from yarn_ops.evals.names import CHAT, CHAT_ENDS, CLOZE, ORDER
from yarn_ops.evals.scoring import ask_all, mean_score
from yarn_ops.scores import Score

ITEMS = 128
"""of cloze and of order"""
CHATS = 64
READ_TOKENS, RUN_TOKENS, CHAT_TOKENS = 80, 12, 32
"""of a passage, of what follows it, of an answer in a chat"""
SAY_AGAIN = (
    "Say this again, word by word, and then stop:\n\n{text}",
    "请逐字复述下面这段话，说完就停：\n\n{text}",
)
"""in English and in Chinese"""


def cell(haystack: Haystack, size: Size, length: int, lengths: Sequence[int], seed: int) -> Cell:
    """All of them, on texts of a hundred tokens, under the shortest length."""

    def measure(under_test: ModelUnderTest) -> tuple[Score, ...]:
        rng = np.random.default_rng([seed, *b"skills"])
        found: dict[str, list[float]] = {}
        tasks, asked = zip(*examples(haystack, rng), strict=True)
        replies = (reply for _, reply in ask_all(under_test.reader, [asked]))
        for task, reply in zip(tasks, replies, strict=False):
            if reply.nll is None:
                raise DataError("skills: the server does not tell how likely these answers are")
            if task in (CLOZE, ORDER):
                found.setdefault(task, []).append(float(bool(reply.chosen)))
                continue
            ends = next(replies)
            found.setdefault(CHAT_ENDS, []).append(float(ends.exact))
            found.setdefault(CHAT, []).append(reply.nll / len(reply.right))
        return tuple(
            mean_score(task, length, items, seed, shares=task != CHAT) for task, items in found.items()
        )

    asks = (haystack.digest, ITEMS, CHATS)
    return Cell.whole("skills", length, asks, tokens_read(size, length, lengths), measure)


def tokens_read(size: Size, length: int, lengths: Sequence[int]) -> int:
    """About how many go through a model."""
    return 2 * (ITEMS + CHATS) * (READ_TOKENS + 4 * RUN_TOKENS)


def examples(haystack: Haystack, rng: Generator) -> Iterator[tuple[str, Example]]:
    """(task, example); in a chat the second question is what ends the first one's answer."""
    whole = READ_TOKENS + 2 * RUN_TOKENS

    def runs() -> tuple[Tokens, Tokens, Tokens]:
        text = haystack.run(rng, len(haystack.prefix) + whole).tolist()
        cuts = (len(text) - 2 * RUN_TOKENS, len(text) - RUN_TOKENS)
        return tuple(text[: cuts[0]]), tuple(text[cuts[0] : cuts[1]]), tuple(text[cuts[1] :])

    for _ in range(ITEMS):
        read, one, other = runs()
        wrong = tuple(runs()[1] for _ in range(WRONG_CHOICES))
        for task, answer, choices in ((CLOZE, one, wrong), (ORDER, one + other, (other + one,))):
            question = Question(read[-1:], answer, choices)
            yield task, Example(np.asarray(read[:-1], dtype=np.int64), (question,))
    if haystack.chat is None or haystack.decode is None:
        return
    for _ in range(CHATS):
        run = haystack.run(rng, len(haystack.prefix) + CHAT_TOKENS)[len(haystack.prefix) :]
        told = " ".join(haystack.decode(run.tolist()).split())
        asked = SAY_AGAIN[haystack.chinese].format(text=told)
        before, said, end = haystack.chat(asked, told)
        questions = (Question(before[-1:], said), Question((before[-1], *said), end))
        yield CHAT, Example(np.asarray(before[:-1], dtype=np.int64), questions)
