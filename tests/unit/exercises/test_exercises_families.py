"""What a family asks can be answered from what it planted, and only from that."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from yarn_ops.exercises.draw import Draw
from yarn_ops.exercises.en import ENGLISH
from yarn_ops.exercises.families import FAMILIES, FEWEST_ROWS, MOST_ROWS, Event, Quote
from yarn_ops.exercises.language import Language
from yarn_ops.exercises.zh import CHINESE

DRAWS = 40
TOKENS = 8192
LANGUAGES = (ENGLISH, CHINESE)
VERBATIM = ("lookup", "lookalikes", "table", "updates", "ordinal", "association")
"""families whose answer is one planted text, word for word"""


def exercise(family: str, language: Language, seed: int) -> list[Event]:
    draw = Draw(np.random.default_rng(seed), language, TOKENS)
    return sorted(FAMILIES[family][0](draw), key=lambda event: event.place)


def text_of(event: Event) -> str:
    return "".join(part.content for part in event.parts if isinstance(part.content, str))


def answers_of(event: Event) -> list[str]:
    return [part.content for part in event.parts if part.answer and isinstance(part.content, str)]


def facts_before(events: list[Event], question: Event) -> list[Event]:
    return [event for event in events if event.place <= question.place and not answers_of(event)]


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_place_is_in_the_window_and_every_exercise_asks(family: str, language: Language) -> None:
    for seed in range(DRAWS):
        events = exercise(family, language, seed)
        assert all(0 <= event.place <= 1 for event in events)
        assert any(part.answer for event in events for part in event.parts)
        assert all(text_of(event).endswith("\n") for event in events)


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
@pytest.mark.parametrize("family", VERBATIM)
def test_the_answer_stands_before_its_question(family: str, language: Language) -> None:
    for seed in range(DRAWS):
        events = exercise(family, language, seed)
        for question in events:
            for answer in answers_of(question):
                before = [text_of(event) for event in facts_before(events, question)]
                assert any(answer.strip() in text for text in before), (text_of(question), before)


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_an_update_is_answered_by_the_latest_before_it(language: Language) -> None:
    for seed in range(DRAWS):
        events = exercise("updates", language, seed)
        for question in (event for event in events if answers_of(event)):
            latest = text_of(facts_before(events, question)[-1])
            assert answers_of(question)[0].strip() in latest


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_a_count_is_the_number_of_happenings_before_it(language: Language) -> None:
    for seed in range(DRAWS):
        events = exercise("count", language, seed)
        for question in (event for event in events if answers_of(event)):
            assert answers_of(question)[0].strip() == str(len(facts_before(events, question)))


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_all_values_are_answered_in_the_order_they_stand(language: Language) -> None:
    for seed in range(DRAWS):
        *facts, question = exercise("values", language, seed)
        found = answers_of(question)[0].strip().split(language.comma.strip())
        assert len(found) == len(facts)
        assert all(value.strip() in text_of(fact) for value, fact in zip(found, facts, strict=True))


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_a_chain_is_followed_to_its_end(language: Language) -> None:
    for seed in range(DRAWS):
        events = exercise("chain", language, seed)
        links = [text_of(event) for event in events if not answers_of(event)]
        traced, alone = sorted(
            (answers_of(event)[0].strip() for event in events if answers_of(event)), key=len
        )[::-1]
        assert traced.endswith(alone)
        (end,) = [text for text in links if alone in text]
        step = next(form.step for form in language.chain if form.step in traced)
        *way, last = traced.split(step)
        assert last == alone and len(way) == len(links) - 1
        assert way[-1] in end
        for one, other in pairwise(way):
            assert any(one in text and other in text for text in links)


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_keys_alike_differ_and_are_alike(language: Language) -> None:
    for kind in ("person", "constant", "tag"):
        for seed in range(8):
            keys = Draw(np.random.default_rng(seed), language, TOKENS).keys_alike(kind, 8)  # type: ignore[arg-type]
            assert len(set(keys)) == 8
            assert len({key[:2] for key in keys}) == 1 or len({key[-2:] for key in keys}) == 1


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_an_association_shares_no_word_with_its_question(language: Language) -> None:
    for pair in language.associations:
        if language is ENGLISH:
            small = {"a", "an", "the", "of", "to", "in", "at", "on", "is", "and"}
            assert not (set(pair.clue.lower().split()) & set(pair.asked.lower().split())) - small
        else:
            pieces = {pair.clue[at : at + 2] for at in range(len(pair.clue) - 1)}
            assert not pieces & {pair.asked[at : at + 2] for at in range(len(pair.asked) - 1)}


def test_a_quotation_is_asked_for_behind_itself() -> None:
    for seed in range(DRAWS):
        for event in exercise("passage", ENGLISH, seed):
            quotes = [part.content for part in event.parts if isinstance(part.content, Quote)]
            assert quotes and all(quote.place <= event.place for quote in quotes)


@pytest.mark.parametrize("tokens", [256, 32_768, 16_777_216])
def test_a_table_has_enough_codes_for_any_window(tokens: int) -> None:
    for seed in range(20):
        draw = Draw(np.random.default_rng(seed), ENGLISH, tokens)
        heading_and_rows, *questions = FAMILIES["table"][0](draw)
        rows = text_of(heading_and_rows).count("\n") - 2
        assert FEWEST_ROWS - 1 <= rows <= MOST_ROWS + 1
        assert 4 <= len(questions) <= rows


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_a_window_may_ask_for_more_words_than_there_are(language: Language) -> None:
    draw, count = Draw(np.random.default_rng(0), language, TOKENS), len(language.word_syllables) ** 2 + 500
    assert len({draw.key("word") for _ in range(count)}) == count
