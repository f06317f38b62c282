"""Names of scores, as gates, the registry and MLflow keep them: once given, they stay."""

from __future__ import annotations

LAST_QUARTER = "perplexity/last-quarter"
SINGLE_PASS = "perplexity/single-pass"
SLIDING = "perplexity/sliding"
BY_POSITION = "loss-by-position"
LONG_PERPLEXITY = "long-perplexity"

SAME_TARGETS = "loss/same-targets"
GAIN = "loss/gain"
RISE = "loss/rise"
FAR_TEXT = "loss/far-text"
FOREIGN = "loss/foreign"
"""of the same targets after another window's far text; `FAR_TEXT` is made of it"""

RECALL = ("recall/code", "recall/prose")
NEEDLES = ("needle/code", "needle/prose")
NEEDLE_FORMS = "needle/code+prose"
"""a cell of long texts that hold needles of both forms; its scores have the names of `NEEDLES`"""
CHAIN = "recall/chain"
RULER_AVERAGE = "ruler/average"
FAR_PASSAGE = "far-passage/nats"
TRAINED = "needle/trained"
"""needles in forms that exercises have: of all tasks the only one"""
CLOZE, ORDER, CHAT_ENDS = SKILLS = ("short/cloze", "short/order", "short/chat-ends")
"""shares of short items; the last where the tokenizer has a chat template"""
CHAT = "short/chat"
"""nats a token"""
CONTINUATION = "perplexity/continuation"

NO_NEEDLE = "/no-needle"
"""end of a name: asked where nothing was planted, so guessed"""
CHOICE = "/choice"
"""end of a name: the answer preferred to wrong ones"""
NATS = "/nats"
"""end of a name: not a share"""

SEES, USES = "capacity/sees", "capacity/uses"
USES_TRAINED = "capacity/uses-trained"
"""of needles in forms that exercises have"""


def template_of(task: str) -> str:
    """code of recall/code and of needle/code."""
    return task.partition("/")[2]
