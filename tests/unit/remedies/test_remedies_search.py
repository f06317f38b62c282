"""Search finds what lies in the document, whole; the agent follows what it found, and ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from yarn_ops.evals.examples import Question
from yarn_ops.evals.tasks.recall import chain_examples, follow_key
from yarn_ops.remedies import search as search_module
from yarn_ops.remedies.search import MAX_STEPS, Agent, Index, Search


@pytest.mark.parametrize("at", [0, 17, 200, 580, 590])
def test_a_line_is_found_whole_wherever_it_lies(texts, encode, tokenizer, at) -> None:
    line = encode("\nKEY_abcd = 12345\n")
    document = np.concatenate([texts[0][:at], line, texts[0][at:], encode("\nKEY_efgh = 67890\n")])
    index = Index(document, tokenizer.decode, passage_tokens=64)
    found = index.find("\nassert KEY_abcd ==", 2)
    assert "KEY_abcd = 12345" in tokenizer.decode(found.tolist())
    assert 0 < len(found) <= 128


def test_what_is_found_is_read_in_the_documents_order(texts, encode, tokenizer) -> None:
    lines = [encode(f"\nKEY_abcd = {value}\n") for value in (11111, 22222, 33333)]
    document = np.concatenate([piece for line in lines for piece in (texts[0][:200], line)])
    text = tokenizer.decode(Index(document, tokenizer.decode, passage_tokens=64).find("KEY_abcd", 6).tolist())
    assert text.index("11111") < text.index("22222") < text.index("33333")


@pytest.mark.parametrize("words", ["KEY_zzzz", "", "=="])
def test_nothing_is_found_where_no_word_is_known(texts, tokenizer, words) -> None:
    assert len(Index(texts[0], tokenizer.decode, passage_tokens=64).find(words, 4)) == 0


def test_a_document_shorter_than_a_passage_is_one(encode, tokenizer) -> None:
    document = np.array(encode("KEY_abcd = 1"))
    assert (
        Index(document, tokenizer.decode, passage_tokens=64).find("key_ABCD", 3).tolist() == document.tolist()
    )


@dataclass
class Copier:
    """A memory whose model copies: after `assert KEY_x ==` it writes what stands behind `KEY_x =`."""

    tokenizer: object
    text: str = ""
    seen: int = 7

    def read(self, ids: torch.Tensor) -> None:
        self.text = self.tokenizer.decode(ids.tolist())

    def ask(self, ids: torch.Tensor, last: int) -> torch.Tensor:
        key, written = self.tokenizer.decode(ids.tolist()).removeprefix("\nassert KEY_").split(" ==")
        line = (
            self.text.partition(f"KEY_{key} =")[2].partition("\n")[0] + "\n" if key in self.text else " 0\n"
        )
        wanted = self.tokenizer.encode(line, add_special_tokens=False)
        done = len(self.tokenizer.encode(written, add_special_tokens=False)) if written else 0
        logits = torch.zeros(last, self.tokenizer.vocab_size)
        logits[-1, wanted[done] if done < len(wanted) else wanted[-1]] = 1
        return logits


@pytest.fixture
def agent(monkeypatch, tokenizer, encode) -> Agent:
    """An agent over a model that can do one step and no more: it copies from what it was shown."""
    monkeypatch.setattr(search_module, "FullMemory", lambda model: Copier(tokenizer))
    model = torch.nn.Module()
    model.device = torch.device("cpu")
    return Agent(Search(model, tokenizer.decode, passage_tokens=64, passages=2), encode)


def test_the_agent_follows_a_chain_that_one_look_cannot(agent, texts, encode) -> None:
    for example in chain_examples(texts, encode, 500, chains=2, seed=0, steps=3):
        agent.read(example.context)
        for question in example.questions:
            before = agent.read_tokens
            (reply,) = agent.ask([question])
            assert reply.exact and reply.written == question.answer
            assert agent.read_tokens - before <= MAX_STEPS * (128 + len(question.prompt) + 8)
            (alone,) = agent._search.ask([question])
            assert not alone.exact


@pytest.mark.parametrize("keys", [["abcd", "efgh"], ["abcd", "efgh", "ijkl", "mnop", "qrst", "uvwx"]])
def test_the_agent_ends_in_a_circle_and_in_a_chain_without_end(agent, texts, encode, keys) -> None:
    pieces = [
        piece
        for key, target in zip(keys, [*keys[1:], keys[0]], strict=True)
        for piece in (texts[0][:150], encode(f"\nKEY_{key} = {target}\n"))
    ]
    text = "\nassert KEY_abcd =="
    question = Question(tuple(encode(text)), tuple(encode(" 12345")), follow=follow_key)
    agent.read(np.concatenate(pieces))
    (reply,) = agent.ask([question])
    assert not reply.exact
    steps = min(len(keys), MAX_STEPS)
    assert agent.read_tokens <= steps * (128 + len(question.prompt) + 9)
