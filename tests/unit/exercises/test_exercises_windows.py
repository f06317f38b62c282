"""A window with exercises is a pure function of text, seed and index, of the plain window's length."""

from __future__ import annotations

import re

import numpy as np
import pytest
from exercise_texts import CHINESE_TEXT, ENGLISH_TEXT, Texts

from yarn_ops.data.tokenizer import Tokenizer
from yarn_ops.data.windows import Window
from yarn_ops.exercises import FAMILIES, ExerciseSampler
from yarn_ops.exercises.en import ENGLISH
from yarn_ops.exercises.windows import FILL, LEAST_TOKENS

LENGTH = 2048


def sampler(
    tokenizer: Tokenizer, *, sentence: str = ENGLISH_TEXT, tokens: int = LENGTH, documents: int = 1,
    seed: int = 0, share: float = 1.0, document_mask: bool = False,
    families: tuple[str, ...] = tuple(FAMILIES),
) -> ExerciseSampler:  # fmt: skip
    texts = Texts(tokenizer, sentence, tokens, documents)
    return ExerciseSampler(
        texts, tokenizer, seed=seed, share=share, document_mask=document_mask, families=families  # type: ignore[arg-type]
    )  # fmt: skip


def runs(window: Window) -> list[tuple[int, int]]:
    """(start, stop) of the window's answers."""
    assert window.answers is not None
    edges = np.flatnonzero(np.diff(np.concatenate([[0], window.answers.astype(int), [0]])))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


@pytest.mark.parametrize("tokens", [LEAST_TOKENS, 1000, LENGTH, 8192])
def test_a_window_keeps_its_length_and_has_answers(tokenizer: Tokenizer, tokens: int) -> None:
    for index in range(3):
        window = sampler(tokenizer, tokens=tokens).window(index)
        assert window.answers is not None
        assert len(window.ids) == len(window.answers) == len(window.segments) == tokens + 1
        assert 0 < window.answers.sum() < FILL[1] * tokens


def test_equal_seed_and_index_give_equal_windows_in_any_order(tokenizer: Tokenizer) -> None:
    there, back = sampler(tokenizer), sampler(tokenizer)
    forwards = [there.window(index) for index in range(4)]
    backwards = [back.window(index) for index in reversed(range(4))][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.answers, other.answers)
    assert not np.array_equal(forwards[0].ids, sampler(tokenizer, seed=1).window(0).ids)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_share_of_windows_with_exercises_is_counted(tokenizer: Tokenizer, share: float) -> None:
    windows = [sampler(tokenizer, tokens=LEAST_TOKENS, share=share).window(index) for index in range(8)]
    assert sum(window.answers is not None for window in windows) == 8 * share


def test_the_text_is_the_plain_one_with_exercises_inserted(tokenizer: Tokenizer) -> None:
    plain = Texts(tokenizer, ENGLISH_TEXT, LENGTH).window(0).ids.tolist()
    rest = iter(sampler(tokenizer).window(0).ids.tolist())
    at = 0
    for token in rest:  # the plain text's beginning is a subsequence of the window
        at += token == plain[at]
    assert at > (1 - FILL[1]) * LENGTH


def test_a_continued_passage_stands_before_its_question(tokenizer: Tokenizer) -> None:
    for index in range(5):
        window = sampler(tokenizer, families=("passage",)).window(index)
        for start, stop in runs(window):
            quoted = window.ids[start:stop].tolist()
            before = window.ids[:start].tolist()
            assert any(before[at : at + len(quoted)] == quoted for at in range(len(before) - len(quoted)))


def test_a_section_is_named_by_the_heading_above_the_quotation(tokenizer: Tokenizer) -> None:
    found = 0
    for index in range(20):
        window = sampler(tokenizer, sentence="so ", families=("section",)).window(index)
        for start, stop in runs(window):
            name = tokenizer.decode(window.ids[start:stop]).strip()
            before = tokenizer.decode(window.ids[:start])
            opened, closed = next(
                (opened, closed) for opened, closed, _ in ENGLISH.section if before.endswith(closed)
            )
            quoted = before.removesuffix(closed).rpartition(opened)[2]
            above = before[: before.index(quoted)]
            names = [name_of(heading, above) for heading in ENGLISH.heading]
            assert name == max((at, found) for some in names for at, found in some)[1]
            found += 1
    assert found > 20


def name_of(heading: str, text: str) -> list[tuple[int, str]]:
    """(place, name) of every heading of this form in the text."""
    pattern = re.escape(heading).replace(re.escape("{k}"), "([a-z]+ [a-z]+)")
    return [(match.start(), match[1]) for match in re.finditer(pattern, text)]


def test_masked_documents_hold_their_own_exercises(tokenizer: Tokenizer) -> None:
    window = sampler(tokenizer, documents=3, document_mask=True).window(0)
    assert window.answers is not None
    plain = Texts(tokenizer, ENGLISH_TEXT, LENGTH, 3).window(0)
    np.testing.assert_array_equal(window.segments, plain.segments)
    assert {int(segment) for segment in window.segments[window.answers]} == {0, 1, 2}
    assert (np.diff(sampler(tokenizer, documents=3).window(0).segments) >= 0).all()


def test_a_document_too_short_for_exercises_stays_as_it_is(tokenizer: Tokenizer) -> None:
    documents = LENGTH // LEAST_TOKENS * 2
    window = sampler(tokenizer, documents=documents, document_mask=True).window(0)
    plain = Texts(tokenizer, ENGLISH_TEXT, LENGTH, documents).window(0)
    np.testing.assert_array_equal(window.ids, plain.ids)


def test_exercises_speak_the_language_of_their_text(tokenizer: Tokenizer) -> None:
    chinese = sampler(tokenizer, sentence=CHINESE_TEXT, tokens=4096).window(0)
    english = sampler(tokenizer, tokens=4096).window(0)
    questions = [tokenizer.decode(window.ids[: runs(window)[-1][1]])[-200:] for window in (chinese, english)]
    assert [any("\u4e00" <= c <= "\u9fff" for c in question) for question in questions] == [True, False]
