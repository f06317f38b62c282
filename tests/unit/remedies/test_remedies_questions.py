"""The questions are those of the recall evaluation, taken apart; chains are what they say."""

from __future__ import annotations

import re

import numpy as np
import pytest

from yarn_ops.errors import EvaluationError
from yarn_ops.evals.recall import make_samples
from yarn_ops.remedies.questions import CONTINUATION_TOKENS, chain_cases, follow_key, recall_cases, text_cases


@pytest.mark.parametrize("template", ["code", "prose"])
def test_a_document_and_its_questions_are_the_sample_in_pieces(texts, tokenizer, encode, template) -> None:
    samples = make_samples(texts, encode, template, 400, 4, seed=3)
    cases = recall_cases(texts, encode, tokenizer.decode, template, 400, 4, seed=3)
    for sample, case in zip(samples, cases, strict=True):
        close = len(encode({"code": "\n", "prose": ".\n"}[template]))
        joined = list(case.document)
        for question in case.questions:
            joined += [*question.ids, *question.answer]
            joined += sample.ids[len(joined) : len(joined) + close].tolist()
            assert question.text == tokenizer.decode(question.ids)
            assert question.planted == (question.part is not None)
        assert joined == sample.ids.tolist()
        assert sorted(q.part for q in case.questions if q.planted) == [0, 1, 2, 3]


def test_a_chain_leads_from_its_question_to_its_answer(texts, tokenizer, encode) -> None:
    for case in chain_cases(texts, encode, 400, chains=3, seed=0, steps=3):
        said = dict(re.findall(r"\nKEY_(\w+) = (\w+)\n", tokenizer.decode(case.document.tolist())))
        assert len(said) == 9
        for question in case.questions:
            text = question.text
            for step in range(3):
                reply = f" {said[text.split()[1].removeprefix('KEY_')]}"
                text = question.follow(reply + "\nand more")
                assert (text is None) == (step == 2)
            assert encode(reply) == list(question.answer)
            assert len(case.document) + len(question.ids) + len(question.answer) <= 400


def test_the_lines_of_chains_are_spread_over_the_document(texts, encode, tokenizer) -> None:
    many = texts * 40
    first = [
        tokenizer.decode(case.document.tolist()).index("\nKEY_") / 1000
        for case in chain_cases(many, encode, 400, chains=1, seed=0)
    ]
    # the earlier of two uniform places: mean a third of the text, about 1100 letters
    assert np.mean(first) == pytest.approx(0.37, abs=0.12)
    assert len(set(first)) > len(many) / 2


@pytest.mark.parametrize(
    ("reply", "asked"),
    [(" abcd\n", "\nassert KEY_abcd =="), (" 12345\n", None), (" abcde", None), ("abcd", None), ("", None)],
)
def test_only_a_key_is_followed(reply, asked) -> None:
    assert follow_key(reply) == asked


def test_plain_text_goes_on_where_the_document_ends(texts) -> None:
    for case, text in zip(text_cases(texts, 300), texts, strict=True):
        assert len(case.continuation) == CONTINUATION_TOKENS
        assert (np.concatenate([case.document, case.continuation]) == text[:300]).all()


def test_a_text_too_short_for_its_chains_is_refused(texts, encode) -> None:
    with pytest.raises(EvaluationError, match="100 tokens cannot hold 4 chains of 2 lines"):
        chain_cases(texts, encode, 100, chains=4, seed=0)
