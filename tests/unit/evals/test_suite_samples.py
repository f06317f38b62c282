"""Generators: exact lengths, needles anywhere with equal chance, refusals instead of loops, golden texts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from suite_parts import documents, examples_of

from yarn_ops.data.haystack import Haystack
from yarn_ops.errors import DataError
from yarn_ops.evals.cells import Size, lengths_to
from yarn_ops.evals.examples import Example, plant
from yarn_ops.evals.names import NEEDLE_FORMS
from yarn_ops.evals.plan import GRIDS, SIZES, TASKS
from yarn_ops.shipped import MODELS

GOLDEN = Path(__file__).parents[2] / "golden" / "suite_samples.json"
"""made by `python tests/unit/evals/test_suite_samples.py`; a change here is a new version of the suite"""
OTHERS = ("passkey", "multi-key", "key-value", "mqar", "copy")
SMALL = Size(parts=4, texts=2, windows=2, ruler_samples=1, tasks=tuple(GRIDS))


def made(task: str, haystack: Haystack, length: int = 512, seed: int = 0) -> list[Example]:
    return examples_of(task, SMALL, haystack, length, seed)


@pytest.mark.parametrize("task", GRIDS)
@pytest.mark.parametrize("prefix", [(), (0,)], ids=["plain", "bos"])
def test_context_question_and_answer_are_exactly_the_length(task, prefix, encode):
    for length in (512, 700):
        for sample in made(task, documents(encode, prefix=prefix), length):
            ends = {len(sample.context) + question.tokens for question in sample.questions}
            assert max(ends) == length and len(ends) == (2 if task == NEEDLE_FORMS else 1)
            assert tuple(sample.context[: len(prefix)]) == prefix


@pytest.mark.parametrize("task", GRIDS)
def test_the_same_seed_asks_the_same_and_another_asks_anew(task, encode):
    haystack = documents(encode)
    first, again, other = made(task, haystack), made(task, haystack), made(task, haystack, seed=1)
    assert [s.context.tolist() for s in first] == [s.context.tolist() for s in again]
    assert [s.questions for s in first] == [s.questions for s in again]
    assert [s.context.tolist() for s in first] != [s.context.tolist() for s in other]


@pytest.mark.parametrize("task", GRIDS)
def test_the_answer_lies_where_the_question_says_and_nowhere_in_the_control(task, encode):
    for sample in made(task, documents(encode), 1024):
        text = sample.context.tolist()
        for question in sample.questions:
            answer = list(question.answer)
            tail = answer[1:] or answer  # a value after a blank is spelled otherwise in some templates
            found = [at for at in range(len(text)) if text[at : at + len(tail)] == tail]
            if question.planted:
                start = len(text) - question.distance
                assert any(start <= at < start + 80 for at in found)
                assert question.part == pytest.approx(4 * start / len(text), abs=1.3)
            elif task != "copy":
                assert not found


@pytest.mark.parametrize("task", GRIDS)
def test_a_length_that_cannot_hold_a_task_is_refused(task, encode):
    with pytest.raises(DataError, match="tokens cannot hold it"):
        made(task, documents(encode), 40)


def test_documents_too_short_for_a_length_are_refused(encode):
    with pytest.raises(DataError, match="give more documents"):
        made("needle/code", documents(encode, 300))


@pytest.mark.parametrize("task", ["needle/prose", NEEDLE_FORMS, *OTHERS])
def test_needles_lie_anywhere_with_equal_chance(task, encode):
    size = Size(parts=4, texts=40, windows=1, ruler_samples=1, tasks=())
    samples = examples_of(task, size, documents(encode), 1200 if task == NEEDLE_FORMS else 600, 3)
    places = sorted(
        1 - question.distance / len(sample.context)
        for sample in samples
        for question in sample.questions
        if question.planted
    )
    assert len(places) >= 160
    expected = (np.arange(len(places)) + 0.5) / len(places)
    largest = np.abs(np.asarray(places) - expected).max()  # Kolmogorov and Smirnov
    allowed = 0.12 if task in ("passkey", "key-value") else 0.08  # a prompt before, whole lines
    assert largest < allowed
    assert max(Counter(round(place, 3) for place in places).values()) < len(places) / 20


def test_planting_keeps_the_filler_and_says_where():
    context, starts = plant(np.arange(10), [(90, 91), (80,)], [7, 2])
    assert context.tolist() == [0, 1, 80, 2, 3, 4, 5, 6, 90, 91, 7, 8, 9]
    assert starts == [8, 2]


def test_lengths_halve_down_to_what_a_task_fits_in():
    assert lengths_to(32_768) == (2048, 4096, 8192, 16_384, 32_768)
    assert lengths_to(512) == (128, 256, 512)
    assert lengths_to(1536, 512) == (192, 384, 512, 768, 1536)
    assert lengths_to(2048, 512) == lengths_to(2048) == lengths_to(2048, 4096) == lengths_to(2048, 100)
    with pytest.raises(DataError, match="no task fits"):
        lengths_to(100)


def test_suites_name_known_tasks():
    assert all(set(size.tasks) <= set(TASKS) for size in SIZES.values())


def golden_samples(encode, decode) -> dict[str, list[dict[str, object]]]:
    size = Size(parts=2, texts=1, windows=1, ruler_samples=1, tasks=())
    haystack = documents(encode)
    return {
        task: [
            {
                "context": decode(sample.context.tolist()),
                "questions": [
                    [decode(question.prompt), decode(question.answer), question.part, question.planted]
                    for question in sample.questions[:3]
                ],
            }
            for sample in examples_of(task, size, haystack, 450)[:2]
        ]
        for task in GRIDS
    }


def test_samples_are_the_golden_ones(encode, base512_tokenizer):
    assert golden_samples(encode, base512_tokenizer.decode) == json.loads(GOLDEN.read_text("utf-8"))


if __name__ == "__main__":
    from transformers import PreTrainedTokenizerFast

    base = MODELS / "base512"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    samples = golden_samples(lambda text: tokenizer.encode(text, add_special_tokens=False), tokenizer.decode)
    GOLDEN.write_text(json.dumps(samples, indent=1, ensure_ascii=False) + "\n", "utf-8")
