"""The questions are those of the recall evaluation, taken apart; chains are what they say."""

from __future__ import annotations

import re

import numpy as np
import pytest

from yarn_ops.errors import EvaluationError
from yarn_ops.evals.names import CONTINUATION
from yarn_ops.evals.tasks.recall import chain_examples, follow_key, recall_examples
from yarn_ops.remedies.side_by_side import CONTINUATION_TOKENS, cases


@pytest.mark.parametrize("template", ["code", "prose"])
def test_a_document_and_its_questions_are_the_sample_in_pieces(texts, encode, template) -> None:
    examples = recall_examples(texts, encode, (template,), 400, 4, seed=3)
    asked = [case.example for case in cases(np.stack(texts), encode, [template], 400, seed=3)]
    for example, case in zip(examples, asked, strict=False):
        close = encode({"code": "\n", "prose": ".\n"}[template])
        joined = list(case.context)
        for question in case.questions:
            joined += [*question.prompt, *question.answer, *close]
            assert question.planted == (question.part is not None)
        assert joined == example.in_turn()[0].tolist()
        assert sorted(q.part for q in case.questions if q.planted) == [0, 1, 2, 3]


def test_a_chain_leads_from_its_question_to_its_answer(texts, tokenizer, encode) -> None:
    for case in chain_examples(texts, encode, 400, chains=3, seed=0, steps=3):
        said = dict(re.findall(r"\nKEY_(\w+) = (\w+)\n", tokenizer.decode(case.context.tolist())))
        assert len(said) == 9
        for question in case.questions:
            text = tokenizer.decode(question.prompt)
            for step in range(3):
                reply = f" {said[text.split()[1].removeprefix('KEY_')]}"
                text = question.follow(reply + "\nand more")
                assert (text is None) == (step == 2)
            assert encode(reply) == list(question.answer)
            assert len(case.context) + len(question.prompt) + len(question.answer) <= 400


def test_the_lines_of_chains_are_spread_over_the_document(texts, encode, tokenizer) -> None:
    many = texts * 40
    first = [
        tokenizer.decode(case.context.tolist()).index("\nKEY_") / 1000
        for case in chain_examples(many, encode, 400, chains=1, seed=0)
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


def test_plain_text_goes_on_where_the_document_ends(texts, encode) -> None:
    found = [case for case in cases(np.stack(texts), encode, [], 300, seed=0) if case.task == CONTINUATION]
    for case, text in zip(found, texts[::2], strict=True):
        assert len(case.continuation) == CONTINUATION_TOKENS
        assert (np.concatenate([case.example.context, case.continuation]) == text[:300]).all()


def test_a_text_too_short_for_its_chains_is_refused(texts, encode) -> None:
    with pytest.raises(EvaluationError, match="100 tokens cannot hold 4 chains of 2 lines"):
        chain_examples(texts, encode, 100, chains=4, seed=0)
