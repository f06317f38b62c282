"""Documents without needles, and models that find needles by regular expression."""

from __future__ import annotations

import re
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import torch

from yarn_ops.data.haystack import Haystack
from yarn_ops.evals.cells import ModelUnderTest, Size
from yarn_ops.evals.examples import Example
from yarn_ops.evals.plan import GRIDS, CellPlan, suite_cells
from yarn_ops.evals.run import Measured, PlanRun, Worker
from yarn_ops.evals.tasks.needles import NEEDLES
from yarn_ops.rope.config import rope_spec_of

CHANCE = 1 / NEEDLES
SYLLABLES = ["ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "ro", "tu", "sha", "the", "ing", "ou", "er"]
PLANTED = {
    "code": re.compile(r"KEY_(\w{4}) = (\d+)\n"),
    "prose": re.compile(r"number for (\w{4}) is: (\d+)\."),
}
ASKED = {
    "code": re.compile(r"assert KEY_(\w{4}) ==((?: \d*)?)$"),
    "prose": re.compile(r"number for (\w{4})\? It is:((?: \d*)?)$"),
}
ROWS = 12
"""last positions that a model here says something about: more than an answer has tokens"""
SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "initializer_range": 0.2,
}  # fmt: skip
SPEC = rope_spec_of({**SIZES, "model_type": "llama", "rope_theta": 10_000.0, "head_dim": 8})
"""of conftest.py's `tiny_llama`"""


def documents(encode, tokens: int = 6000, prefix: tuple[int, ...] = ()) -> Haystack:
    """One text of random words."""
    rng = np.random.default_rng(1)
    words = ["".join(word) for word in rng.choice(SYLLABLES, (tokens, 3))]
    text = "\n\n".join(" ".join(words[at : at + 30]) + "." for at in range(0, tokens, 30))
    ids = np.asarray(encode(text), dtype=np.int64)[:tokens]
    return Haystack((text,), (ids,), prefix, encode, "words")


def examples_of(task: str, size: Size, haystack: Haystack, length: int, seed: int = 0) -> list[Example]:
    return GRIDS[task](haystack, length, size.parts, size.texts, seed)


def planned(size: Size, lengths: tuple[int, ...], haystack: Haystack, seed: int = 0) -> CellPlan:
    return CellPlan(tuple(suite_cells(size, lengths, haystack, seed)), lengths, seed, haystack)


def run_of(plan: CellPlan, load, spec, journal, digest: str = "c", progress=lambda *_: None) -> PlanRun:
    worker = Worker("cpu", "fp32", journal, progress)
    return PlanRun(plan, ModelUnderTest(load, spec), digest, worker)


def measured(*arguments, **named) -> Measured:
    """Of `run_of` these."""
    return run_of(*arguments, **named).measure()


class CodedHead(torch.nn.Module):
    """An output layer whose hidden states are codes of ±1, so that the coded token is far the likeliest."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        numbers = torch.arange(vocabulary)[:, None]
        self.weight = 2.0 * ((numbers >> torch.arange(vocabulary.bit_length())) & 1) - 1
        self.bias = None

    def coded(self, tokens: torch.Tensor) -> torch.Tensor:
        return 20.0 * self.weight[tokens]


class Induction(torch.nn.Module):
    """Writes what followed the last tokens where they stood before: `match` of them alike, the latest place.

    shuffled: what followed somewhere in the text. Says something about the last ROWS positions.
    """

    def __init__(self, vocabulary: int, match: int, *, shuffled: bool = False) -> None:
        super().__init__()
        self.match, self.shuffled = match, shuffled
        self.config = SimpleNamespace(vocab_size=vocabulary)
        self.device = torch.device("cpu")
        self.head = CodedHead(vocabulary)

    def get_output_embeddings(self):
        return self.head

    def base_model(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        tokens = torch.zeros_like(input_ids)
        for row, ids in enumerate(input_ids.numpy()):
            for at in range(len(ids) - ROWS, len(ids)):
                tokens[row, at] = self._next(ids[: at + 1])
        return SimpleNamespace(last_hidden_state=self.head.coded(tokens))

    def _next(self, ids: np.ndarray) -> int:
        if self.shuffled:
            return int(ids[crc32(ids[-self.match :].tobytes()) % len(ids)])
        alike = np.lib.stride_tricks.sliding_window_view(ids[:-1], self.match) == ids[-self.match :]
        places = np.flatnonzero(alike.all(1))
        return int(ids[places[-1] + self.match]) if len(places) else 0


class Finder(torch.nn.Module):
    """Writes the value that the text gives for the key it is asked for.

    window: it sees so many tokens before the text's end and no further. shuffled: it takes the value of any
    key it saw. rows: how many of the last positions it says something about.
    Its hidden states are codes of next tokens.
    """

    def __init__(
        self, tokenizer, template: str = "prose", *, window: int | None = None, shuffled: bool = False,
        rows: int = ROWS,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tokenizer, self.window, self.shuffled, self.rows = tokenizer, window, shuffled, rows
        self.planted, self.asked = PLANTED[template], ASKED[template]
        self.config = SimpleNamespace(vocab_size=tokenizer.vocab_size)
        self.device = torch.device("cpu")
        self.head = CodedHead(tokenizer.vocab_size)

    def get_output_embeddings(self):
        return self.head

    def base_model(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        tokens = torch.zeros_like(input_ids)
        for row, ids in enumerate(input_ids.tolist()):
            start = max(0, len(ids) - self.window) if self.window else 0
            seen = dict(self.planted.findall(self.tokenizer.decode(ids[start:])))
            for at in range(max(0, len(ids) - self.rows), len(ids)):
                tokens[row, at] = self._next(ids[max(0, at - 40) : at + 1], seen)
        return SimpleNamespace(last_hidden_state=self.head.coded(tokens))

    def _next(self, ids: list[int], seen: dict[str, str]) -> int:
        question = self.asked.search(self.tokenizer.decode(ids))
        if question is None:
            return 0
        value = seen.get(question[1])
        if self.shuffled and seen:
            any_of = sorted(seen.values())
            value = any_of[crc32(question[1].encode()) % len(any_of)]
        answer = self.tokenizer.encode(f" {value}", add_special_tokens=False) if value else []
        written = self.tokenizer.encode(question[2], add_special_tokens=False)
        rest = answer[len(written) :] if answer[: len(written)] == written else []
        return rest[0] if rest else 0
