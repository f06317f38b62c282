"""A model behind a server's address, measured by the cells that measure a loaded one.

Answers are written greedily: a reply is exact if and only if each of its tokens is the likeliest after the
right ones before it, which is what a loaded model is asked. Losses are the log-probabilities of a prompt,
where the server tells them. Texts are sent as token ids where it takes these, so that they are the very
ones; else as text, whose tokens are counted against its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yarn_ops.data.haystack import Ids
from yarn_ops.errors import DataError, ServingError
from yarn_ops.evals.cells import ModelUnderTest
from yarn_ops.evals.examples import Example, Question, Tokens
from yarn_ops.evals.packed import Reply
from yarn_ops.evals.reader import Reader
from yarn_ops.evals.subject import Subject
from yarn_ops.serving.client import Completion, InferenceServer, Prompt

TOLD_TOKENS = 512
"""longest context of a question that is sent again for the likelihood of each answer and choice"""
MORE_THAN_READ = 2
"""tokens of a window with a loss beyond its length: its last target, and the one that must be asked for"""
MOST_CHANGED, MOST_CHANGED_SHARE = 4, 0.02
"""tokens more that a text may have when it is read again"""
CHANGED = "the server takes text alone, and these tokens are not read again from their text"
MISPLACED = "the server's log-probabilities of a prompt are not those of all its tokens"
OWN_TOKENS, SAME_NATS = 16, 1e-3
UNTOLD = "the server tells no log-probabilities of a prompt"
KNOWN_TEXT = (
    "The ferry leaves at 07:45 from pier 12 (4€).\n\ndef fare(zones: int) -> float:\n    return 1.9 * zones\n"
    "渡轮开船。 Überfahrt, Ωmega\n"
)


class ServedModel(ModelUnderTest):
    """A running server that is said to serve `subject`."""

    by_token = False

    def __init__(self, server: InferenceServer, subject: Subject, prefix: Tokens) -> None:
        """prefix: what the tokenizer puts before every text. ServingError: the server's tokenizer is
        another, or it does not answer."""
        super().__init__(self._refuse, subject.spec)
        self.server = server
        self.sent_tokens = 0
        self._name, self._tokenizer, self._prefix = subject.name, subject.tokenizer, list(prefix)
        self._encode, self._encode_whole = subject.encode, subject.encode_whole
        ids = [*prefix, *subject.encode_whole(KNOWN_TEXT)]
        by_ids = server.write(ids, 1)
        self._takes_ids = isinstance(by_ids, Completion) and by_ids.prompt_tokens == len(ids)
        by_text = server.write(KNOWN_TEXT, 1)
        if isinstance(by_text, str):
            raise ServingError(f"{server.url}: refuses a text of {len(ids)} tokens, it says {by_text}")
        told = by_text.prompt_tokens
        if told is not None and abs(told - len(ids)) > (1 if self._takes_ids else 0):
            raise ServingError(
                f"{server.url}: counts {told} tokens in a text that has {len(ids)} by {self._name}'s "
                "tokenizer; name the model that it serves"
            )

    def _refuse(self) -> Any:
        raise DataError("asks for what a server does not tell; measure the model's directory")

    @cached_property
    def reader(self) -> Reader:
        return ServedReader(self)

    @property
    def read_tokens(self) -> int:
        return self.sent_tokens

    def token_losses(self, windows: Ids, scored_tokens: int) -> NDArray[np.float32]:
        """As of a loaded model. Where the server takes no more than a window's length, up to two tokens
        after the prefix are left out of a window; the first targets are then told by its beginning.

        DataError: it tells no log-probabilities of a prompt. ServingError: it refuses a window.
        """
        rows = []
        for window in windows:
            ids, head = window.tolist(), len(self._prefix) or 1
            spare = self.server.context_tokens or len(ids) + 1
            out = max(0, len(ids) + 1 - spare)
            if out > MORE_THAN_READ:
                raise ServingError(
                    f"{self.server.url}: takes {spare:,} tokens, the evaluation asks {len(ids) - 1:,}; "
                    "serve with more, or give --longest"
                )
            row = self.logprobs(ids[:head] + ids[head + out :], scored_tokens)
            if len(row) < scored_tokens:
                row = np.concatenate([self.logprobs(ids[: head + out], scored_tokens - len(row)), row])
            rows.append(-row)
        return np.stack(rows).astype(np.float32)

    def logprobs(self, ids: list[int], tokens: int) -> NDArray[np.float64]:
        """Of the last `tokens` of a prompt, or of all after its first, whichever are fewer. DataError: the
        server does not tell them."""
        if isinstance(self._first, str) or (self.server.context_tokens or len(ids) + 1) <= len(ids):
            raise DataError(self._first if isinstance(self._first, str) else UNTOLD)
        prompt, expected = self._prompt(ids)
        if expected[-tokens:] != ids[-tokens:]:
            raise DataError(CHANGED)
        told = self.server.prompt_logprobs(prompt) or []
        known = [value for value, _ in told[self._first : self._first + len(expected) - 1]]
        asked = np.array(known[max(0, len(known) - tokens) :])
        if len(known) < len(expected) - 1 or not np.isfinite(asked).all():
            raise DataError(MISPLACED)
        return asked

    @cached_property
    def _first(self) -> int | str:
        """Which log-probability of a prompt is its second token's; or why none is.

        Found by what the server itself writes: these tokens are the likeliest ones. llama-cpp-python 0.3.36
        tells those of a model without BOS one place too far.
        """
        ids = [*self._prefix, *self._encode_whole(KNOWN_TEXT)]
        own = self.tokens_of(self.write(ids, OWN_TOKENS).text)
        prompt, expected = self._prompt([*ids, *own])
        told = self.server.prompt_logprobs(prompt)
        if told is None:
            return UNTOLD
        first = len(told) - len(expected)  # 1: the last is of what follows; 0: and a BOS is left out
        asked = told[first + len(expected) - 1 - len(own) : -1]
        likeliest = sum(value >= best - SAME_NATS for value, best in asked) > OWN_TOKENS // 2
        return first if likeliest and (first == 1 or (first == 0 and self._prefix)) else MISPLACED

    def write(self, ids: list[int], tokens: int) -> Completion:
        """ServingError: it refuses the prompt."""
        reply = self.server.write(self._prompt(ids)[0], tokens)
        if isinstance(reply, str):
            raise ServingError(
                f"{self.server.url}: refuses a text of {len(ids):,} tokens, it says {reply}; "
                "serve with more, or give --longest"
            )
        return reply

    def written(self, text: str, before: Sequence[int], answer: Tokens, *, ended: bool) -> int:
        """How many of the answer's first tokens a text is, that was written after the tokens `before`."""
        shown = self._tokenizer.decode(before)
        special = self._tokenizer.all_special_ids
        for count in range(len(answer), 0, -1):
            silent = answer[count - 1] in special  # it ends the text and is not shown
            some = answer[: count - 1] if silent else answer[:count]
            wanted = self._tokenizer.decode([*before, *some])[len(shown) :]
            forms = (wanted, wanted.removeprefix(" "))  # some drop the space that a text begins with
            if ended and text in forms if silent else text.startswith(tuple(filter(None, forms))):
                return count
        return 0

    def tokens_of(self, text: str) -> list[int]:
        return list(self._encode(text))

    def _prompt(self, ids: list[int]) -> tuple[Prompt, list[int]]:
        """What is sent, and its tokens. A text lacks the prefix, which the server puts before each itself;
        cut between words of the documents it may have a few more tokens, and then loses its first ones.
        DataError: its tokens are no text's."""
        self.sent_tokens += len(ids)
        if self._takes_ids:
            return ids, ids
        head = len(self._prefix) if ids[: len(self._prefix)] == self._prefix else 0
        text = str(self._tokenizer.decode(ids[head:]))
        again = list(self._encode_whole(text))
        more = len(again) - (len(ids) - head)
        if more > max(MOST_CHANGED, MOST_CHANGED_SHARE * len(ids)):
            raise DataError(CHANGED)
        if more > 0:
            again = again[more:]
            text = str(self._tokenizer.decode(again))
        return text, [*ids[:head], *again]


class ServedReader:
    """Asks a server: the text and a question are sent for each answer. What it read before, it may keep."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self._ids: list[int] = []

    @property
    def read_tokens(self) -> int:
        return self._model.sent_tokens

    def read(self, ids: Ids) -> None:
        self._ids = ids.tolist()

    def forget(self) -> None:
        self._ids = []

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        return [self._reply(question) for question in questions]

    def ask_side_by_side(self, examples: Sequence[Example]) -> None:
        return None

    def write(self, prompt: Tokens, tokens: int, enough: Callable[[list[int]], bool]) -> list[int]:
        return self._model.tokens_of(self._model.write([*self._ids, *prompt], tokens).text)[:tokens]

    def _reply(self, question: Question) -> Reply:
        answer = question.answer
        reply = self._model.write([*self._ids, *question.prompt], len(answer))
        count = self._model.written(reply.text, question.prompt, answer, ended=reply.ended)
        right = tuple(at < count for at in range(len(answer)))
        sums = self._nats(question) if len(self._ids) <= TOLD_TOKENS else None
        if sums is None:
            return Reply(right)
        return Reply(right, sums[0], sums[0] < min(sums[1:]) if question.choices else None)

    def _nats(self, question: Question) -> list[float] | None:
        """Of the answer and of each choice; None where the server does not tell them."""
        try:
            return [
                -float(self._model.logprobs([*self._ids, *question.prompt, *answer], len(answer)).sum())
                for answer in question.answers
            ]
        except DataError:
            return None
