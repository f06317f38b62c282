"""An agent loop: find, read, and where the reply only points on, ask again; bounded.

The tool is the search of `yarn_ops.remedies.search`. Each step the model sees what its present question
finds, and nothing of the steps before: what it learned is in the next question (as in Press et al. 2022,
"Measuring and Narrowing the Compositionality Gap in Language Models", whose follow-up questions go to a
search engine). What follows from a reply is said by the question (`Question.follow`); a question that was
asked before ends the loop.
"""

from __future__ import annotations

from dataclasses import dataclass

from yarn_ops.evals.forward import Ids
from yarn_ops.evals.recall import Encode
from yarn_ops.remedies import remedy
from yarn_ops.remedies.costs import Meter
from yarn_ops.remedies.questions import Question
from yarn_ops.remedies.remedy import Reply
from yarn_ops.remedies.search import Indexed, Search

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
        return Acting(self.search, indexed.index, indexed.cost, self.encode)


@dataclass(frozen=True)
class Acting(Indexed):
    encode: Encode

    def answer(self, question: Question) -> Reply:
        """The last step's reply, as long as the expected answer; `seen` is the most of any step."""
        search, device = self.search, self.search.model.device
        text: str | None = question.text
        asked: list[str] = []
        reply: tuple[int, ...] = ()
        read = seen = 0
        with Meter(device) as meter:
            while text is not None and text not in asked and len(asked) < MAX_STEPS:
                asked.append(text)
                memory, found = search.open(self.index, text)
                prompt = tuple(self.encode(text))
                reply = remedy.write(memory, device, prompt, max(REPLY_TOKENS, len(question.answer)))
                read += found + len(prompt) + len(reply) - 1
                seen = max(seen, memory.seen)
                text = question.follow(search.decode(reply))
        return Reply(reply[: len(question.answer)], meter.cost(read), seen)
