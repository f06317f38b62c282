"""An agent loop: find, read, and where the reply only points on, ask again; bounded.

The tool is the search of `yarn_ops.remedies.search`. Each step the model sees what its present question
finds, and nothing of the steps before: what it learned is in the next question (as in Press et al. 2022,
"Measuring and Narrowing the Compositionality Gap in Language Models", whose follow-up questions go to a
search engine). What follows from a reply is said by the question (`Question.follow`); a question that was
asked before ends the loop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yarn_ops.evals.forward import Ids
from yarn_ops.evals.recall import Encode
from yarn_ops.remedies import remedy
from yarn_ops.remedies.costs import Cost, Meter
from yarn_ops.remedies.questions import Question
from yarn_ops.remedies.remedy import Reply
from yarn_ops.remedies.search import Index, Search

MAX_STEPS = 4
REPLY_TOKENS = 8
"""what is written before it is read for a pointer"""


@dataclass(frozen=True)
class Agent:
    search: Search
    encode: Encode
    name: str = "agent loop"

    def prefill(self, document: Ids) -> Acting:
        indexed = self.search.prefill(document)
        return Acting(self, indexed.index, indexed.cost)


@dataclass(frozen=True)
class Acting:
    agent: Agent
    index: Index
    cost: Cost

    @property
    def held_bytes(self) -> int:
        return self.index.nbytes

    def answer(self, question: Question) -> Reply:
        """The last step's reply, as long as the expected answer; `seen` is the most of any step."""
        search, device = self.agent.search, self.agent.search.model.device
        text: str | None = question.text
        asked: list[str] = []
        reply: tuple[int, ...] = ()
        read = seen = 0
        with Meter(device) as meter:
            while text is not None and text not in asked and len(asked) < MAX_STEPS:
                asked.append(text)
                memory, found = search.open(self.index, text)
                prompt = tuple(self.agent.encode(text))
                reply = remedy.write(memory, device, prompt, max(REPLY_TOKENS, len(question.answer)))
                read += found + len(prompt) + len(reply) - 1
                seen = max(seen, memory.seen)
                text = question.follow(search.decode(reply))
        return Reply(reply[: len(question.answer)], meter.cost(read), seen)

    def losses(self, continuation: Ids) -> NDArray[np.float32] | None:
        return None
