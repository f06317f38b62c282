"""Short skills: items with one right answer, chats that end, a gate that fails on what is surely lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from suite_parts import SPEC, documents, planned, run_of

from yarn_ops.evals.cells import Size
from yarn_ops.evals.gate import judge
from yarn_ops.evals.journal import JsonLines
from yarn_ops.evals.names import CHAT, CHAT_ENDS, CLOZE, ORDER
from yarn_ops.evals.report.families import skill_rows
from yarn_ops.evals.subject import Subject
from yarn_ops.evals.tasks import skills
from yarn_ops.recipe import Gate
from yarn_ops.scores import BeforeAfter, Score, Scorecard

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"


def subject(tokenizer, template: str | None) -> Subject:
    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    tokenizer.chat_template = template
    return Subject(None, "any", {"vocab_size": 8192}, None, False, 512, 512, encode, tokenizer)


@pytest.mark.parametrize("prefix", [(), (0,)], ids=["without BOS", "with BOS"])
def test_what_follows_is_right_and_nothing_else(encode, prefix) -> None:
    haystack = documents(encode, prefix=prefix)
    ids, found = haystack.ids.tolist(), list(skills.examples(haystack, np.random.default_rng(0)))
    assert [task for task, _ in found] == [CLOZE, ORDER] * skills.ITEMS
    for task, example in found:
        (question,) = example.questions
        text = [*example.context.tolist(), *question.prompt]
        assert tuple(text[: len(prefix)]) == prefix
        whole = [*text[len(prefix) :], *question.answer]
        assert any(ids[at : at + len(whole)] == whole for at in range(len(ids)))
        assert all(len(choice) == len(question.answer) for choice in question.choices)
        if task == ORDER:
            half = skills.RUN_TOKENS
            assert question.choices == ((*question.answer[half:], *question.answer[:half]),)


def test_a_chat_is_framed_and_ends(base512_tokenizer, encode) -> None:
    framed = subject(base512_tokenizer, TEMPLATE).chat
    before, said, end = framed("How are you?", "Well.")
    decode = base512_tokenizer.decode
    assert decode(before) == "<|user|>How are you?<|end|>\n<|assistant|>" and decode(said) == "Well."
    assert len(end) == 1 and "<|end|>".startswith(decode(end))
    haystack = replace(documents(encode), chat=framed, decode=decode)
    chats = [example for task, example in skills.examples(haystack, np.random.default_rng(0)) if task == CHAT]
    assert len(chats) == skills.CHATS
    for answer, ending in (example.questions for example in chats):
        assert ending.prompt == (*answer.prompt, *answer.answer) and ending.answer == end


@pytest.mark.parametrize("template", [None, "{{ 1 / 0 }}", "{{ messages[0].content }}", "{% if %}"])
def test_without_a_template_that_can_be_applied_there_is_no_chat(base512_tokenizer, template) -> None:
    assert subject(base512_tokenizer, template).chat is None


def test_skills_are_measured_once_at_the_shortest_length(tiny_llama, encode, tmp_path) -> None:
    haystack = documents(lambda text: [token % 97 for token in encode(text)])
    haystack = replace(
        haystack, decode=lambda ids: " ".join(map(str, ids)), chat=lambda asked, told: ((1, 2), (3, 4), (5,))
    )
    plan = planned(Size(2, 1, 2, 0, ("skills",)), (128, 256), haystack)
    scores = {
        score.task: score
        for score in run_of(plan, lambda: tiny_llama, SPEC, JsonLines(tmp_path / "j")).measure().scores
    }
    assert {task: score.context_tokens for task, score in scores.items()} == dict.fromkeys(
        (CLOZE, ORDER, CHAT, CHAT_ENDS), 128
    )
    assert scores[CLOZE].samples == len(scores[CLOZE].items) == skills.ITEMS
    assert abs(scores[CLOZE].value - 0.25) < 0.15 and abs(scores[ORDER].value - 0.5) < 0.15
    assert scores[CHAT].value > 0 and scores[CHAT].samples == skills.CHATS


def card(cloze: float, order: float, ends: float | None = None) -> Scorecard:
    shares = {CLOZE: cloze, ORDER: order} | ({} if ends is None else {CHAT_ENDS: ends})
    scores = []
    for task, share in shares.items():
        items = [1.0] * round(128 * share) + [0.0] * (128 - round(128 * share))
        scores.append(Score.of(task, 128, share, None, 128, 0, items=items))
    return Scorecard(model_digest="0" * 64, original_context_tokens=512, scores=tuple(scores))


NOTHING = Scorecard(model_digest="0", original_context_tokens=512, scores=())


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (card(0.75, 0.75), card(0.72, 0.75), None),
        (
            card(0.75, 0.75),
            card(0.5, 0.75),
            "least of short/cloze that is lost (0.75 before, 0.50 after, 0.2",
        ),
        (card(0.75, 0.75), card(1.0, 0.5), "least of short/order that is lost"),
        (card(0.75, 0.75, 1.0), card(0.75, 0.75, 0.99), None),
        (card(0.75, 0.75, 1.0), card(0.75, 0.75, 0.5), "least of short/chat-ends that is lost"),
        (card(0.75, 0.75, 1.0), card(0.75, 0.75), "short/chat-ends of the result was not measured"),
        (NOTHING, card(1, 1), "short/cloze of the base was not measured"),
    ],
)
def test_what_is_surely_lost_fails_the_gate(before: Scorecard, after: Scorecard, reason: str | None) -> None:
    gate = Gate.model_validate(Gate.unasked() | {"max_skill_loss": 0.02})
    verdict = judge(gate, BeforeAfter(before, after), 2048)
    assert verdict.passed == (reason is None), verdict.reasons
    assert reason is None or verdict.reasons.startswith(reason)


def test_skills_are_told_item_by_item() -> None:
    rows = skill_rows(BeforeAfter(card(0.75, 0.75, 1.0), card(0.5, 0.75, 0.5)))
    assert [row[0] for row in rows] == [
        "short texts continued, chosen from four", "order of what follows, of two",
        "answers in a chat that end",
    ]  # fmt: skip
    assert rows[0][-1].startswith("-0.25 [-0.3") and rows[2][-1].startswith("-0.50")
