"""Tasks beyond needles: what is asked, that it is right, in which language, and how it is told."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from suite_parts import documents, planned, run_of

from yarn_ops.data.haystack import Haystack
from yarn_ops.errors import DataError
from yarn_ops.evals.cells import Size
from yarn_ops.evals.journal import JsonLines
from yarn_ops.evals.names import FAR_PASSAGE, TRAINED, USES, USES_TRAINED
from yarn_ops.evals.plan import FAMILIES, GRIDS, SIZES
from yarn_ops.evals.reach import capacity_scores
from yarn_ops.evals.report.families import family_rows, told
from yarn_ops.evals.tasks import facts, natural
from yarn_ops.evals.tasks.recall import recall_examples
from yarn_ops.scores import BeforeAfter, Score, Scorecard

LENGTH = 1200
WORDLESS = {"many-shot", "hard-negative"}
"""families with hardly a word beside the documents'"""
SENTENCES = (
    "The miller of {n} sold flour to strangers. ", "In {n} hours the tide will turn again. ",
    "Nobody at station {n} heard the bell. ", "Her {n} letters lay unopened on the table. ",
    "A train with {n} wagons left at dawn. ",
)  # fmt: skip
CHINESE = "船长望着港口第{n}根桅杆，那里什么也没有动；随后他走下甲板，写了一封信。"


def letters(texts: list[str], prefix: tuple[int, ...] = ()) -> Haystack:
    """A token is a character."""

    def encode(text: str) -> list[int]:
        return [ord(character) for character in text]

    ids = tuple(np.asarray(encode(text), dtype=np.int64) for text in texts)
    return Haystack(tuple(texts), ids, prefix, encode, "letters", decoded)


def decoded(ids) -> str:
    return "".join(map(chr, ids))


def english(prefix: tuple[int, ...] = ()) -> Haystack:
    return letters(["".join(one.format(n=n) for n in range(400)) for one in SENTENCES], prefix)


def chinese() -> Haystack:
    return letters(["".join(CHINESE.format(n=f"{at}{n}") for n in range(300)) for at in range(5)])


def asked(task: str, haystack: Haystack, length: int = 4 * LENGTH, texts: int = 3, seed: int = 0):
    """(text, [(question, answer)]) of every example."""
    for example in {**GRIDS, **FAMILIES}[task](haystack, length, 4, texts, seed):
        yield decoded(example.context), [(decoded(q.prompt), decoded(q.answer)) for q in example.questions]


@pytest.mark.parametrize("prefix", [(), (1,)], ids=["without BOS", "with BOS"])
@pytest.mark.parametrize("task", FAMILIES)
def test_a_text_with_its_questions_fits_the_length(task: str, prefix: tuple[int, ...]) -> None:
    haystack = english(prefix)
    for example in FAMILIES[task](haystack, 4 * LENGTH, 4, 2, 0):
        longest = len(example.context) + max(question.tokens for question in example.questions)
        assert 4 * LENGTH - 48 < longest <= 4 * LENGTH
        assert tuple(example.context[: len(prefix)]) == prefix
        for question in example.questions:
            assert question.answer not in question.choices
            if question.distance:
                start = len(example.context) - question.distance
                assert abs(question.part - 4 * start / len(example.context)) < 1.1
    again, other = (FAMILIES[task](haystack, 4 * LENGTH, 4, 1, seed)[0] for seed in (0, 1))
    first = FAMILIES[task](haystack, 4 * LENGTH, 4, 1, 0)[0]
    assert first.context.tolist() == again.context.tolist() != other.context.tolist()
    assert first.questions == again.questions


@pytest.mark.parametrize("task", FAMILIES)
def test_a_length_that_cannot_hold_a_family_is_refused(task: str) -> None:
    with pytest.raises(DataError, match="cannot hold it"):
        FAMILIES[task](english(), 150, 4, 1, 0)


def test_two_hops_lead_to_the_answer_and_one_does_not() -> None:
    for text, questions in asked("two-hop", english()):
        swaps = dict(re.findall(r"token (\w{4}) may swap it against token (\w{4})", text))
        vaults = dict(re.findall(r"Token (\w{4}) opens vault (\d{5})", text))
        assert len(questions) == 4
        for question, answer in questions:
            key = re.findall(r"token (\w{4})", question)[0]
            assert answer == f" {vaults[swaps[key]]}" and key not in vaults


def test_ballots_are_counted() -> None:
    for task in ("count", "most-frequent"):
        for text, questions in asked(task, english()):
            counted = Counter(re.findall(r"Ballot in ward (\w{4}): (\w{4})\n", text))
            for question, answer in questions:
                ward, *candidate = re.findall(r"\b(?:ward|to) (\w{4})\b", question)
                of_ward = {name: count for (where, name), count in counted.items() if where == ward}
                if task == "count":
                    assert answer == f" {of_ward[candidate[0]]}"
                else:
                    best = max(of_ward.values())
                    assert [name for name, count in of_ward.items() if count == best] == [answer.strip()]


@pytest.mark.parametrize("words", [facts.ENGLISH, facts.CHINESE], ids=["English", "Chinese"])
def test_a_bond_shares_no_word_with_its_question(words: facts.Wording) -> None:
    """In Chinese, no two characters in a row."""
    parts = (
        (lambda text: set(re.findall("[a-z]{3,}", text.lower())) - {"the", "and"})
        if words.gap
        else (lambda text: {text[at : at + 2] for at in range(len(text) - 1)})
    )
    for clue, about in words.bonds:
        assert not parts(clue) & parts(words.about.format(asked=about)), (clue, about)
    assert len({about for _, about in words.bonds}) == len(words.bonds)


def test_who_is_asked_about_is_whom_the_fact_names() -> None:
    agents = dict(facts.ENGLISH.bonds)
    for text, questions in asked("no-overlap", english()):
        said = {agents[clue]: name for name, clue in re.findall(r"\nAgent (\w{4}) (.*)\.\n", text)}
        for question, answer in questions:
            (about,) = re.findall("ask about (.*)\\? Agent$", question)
            assert answer == f" {said[about]}"


def test_labels_are_those_of_the_documents_and_questions_are_new() -> None:
    haystack = english()
    for text, questions in asked("many-shot", haystack):
        shots = re.findall(r"(.{16})\n\^ group (\d)\n", text, re.DOTALL)
        labels = {}
        for run, label in shots:
            (where,) = {at for at, document in enumerate(haystack.texts) if run in document} or {-1}
            assert labels.setdefault(where, label) == label
        assert len(labels) == natural.LABELS
        for question, answer in questions:
            run = question.removesuffix("\n^ group")
            (where,) = (at for at, document in enumerate(haystack.texts) if run in document)
            assert answer == f" {labels[where]}"
            assert haystack.texts[where].rindex(run) >= len(haystack.texts[where]) * 7 // 8


def test_a_reference_stands_behind_its_passage_among_passages_like_it() -> None:
    for text, questions in asked("hard-negative", english()):
        likes = []
        for question, answer in questions:
            beginning = re.fullmatch("\nOn file: «(.*)…» as", question, re.DOTALL)[1]
            (found,) = re.findall(re.escape(beginning) + r".{36}\n\(on file as (\d{5})\)", text, re.DOTALL)
            assert answer == f" {found}"
            likes.append(beginning)
        assert len(set(likes)) == natural.NEIGHBOURS


def test_the_far_passage_is_the_one_that_is_repeated() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 1_000_000, 1024)
    ids[950:970] = ids[200:220]  # repeated from afar
    ids[1000:1010] = ids[800:810]  # from near by
    start, keys = natural.far_passage(ids)
    assert start == 192 and np.flatnonzero(keys).tolist() == [*range(952, 970)]
    assert natural.far_passage(rng.integers(1000, 1_000_000, 1024)) is None


def test_a_cell_of_far_passages(tiny_llama, encode, tmp_path) -> None:
    haystack = documents(lambda text: [token % 97 for token in encode(text)])
    size = Size(2, 1, 6, 0, ("far-passage",))
    found = run_of(planned(size, (512,), haystack), lambda: tiny_llama, None, JsonLines(tmp_path / "j"))
    (score,) = found.measure().scores
    assert score.task == FAR_PASSAGE and score.samples == len(score.items) >= 4


@pytest.mark.parametrize("task", ["needle/prose", "multi-key", *sorted(FAMILIES.keys() - WORDLESS)])
def test_chinese_documents_are_asked_in_chinese(task: str) -> None:
    for _, questions in asked(task, chinese(), texts=1):
        assert all(re.search("[\u4e00-\u9fff]", question) for question, _ in questions)
    for _, questions in asked(task, english(), texts=1):
        assert not any(re.search("[\u4e00-\u9fff]", question) for question, _ in questions)


def test_recall_is_asked_in_chinese() -> None:
    haystack = chinese()
    (example,) = recall_examples([haystack.ids], haystack.encode, ("prose",), 900, 4, 0, True)
    text = decoded(example.in_turn()[0])
    planted = dict(re.findall(r"与(\w{4})对应的魔法数字：(\d{5})。", text))
    for question in example.questions[:-1]:
        key = re.findall("与([a-z]{4})对应", decoded(question.prompt))[0]
        assert decoded(question.answer) == planted[key]


@pytest.mark.parametrize("seed", range(6))
def test_forms_of_exercises_are_found_as_long_by_a_real_tokenizer(seed: int, encode) -> None:
    haystack = documents(encode)
    for example in FAMILIES[TRAINED](haystack, 1024, 4, 2, seed):
        assert {len(example.context) + question.tokens for question in example.questions} == {1024}


def test_every_family_is_in_the_suites() -> None:
    for name in ("use", "full"):
        assert {*FAMILIES, "far-passage"} <= {*SIZES[name].tasks}


def card(shares: dict[str, dict[int, float]]) -> Scorecard:
    """64 answers a cell, and needles in two parts of a text."""
    scores = []
    for task, by_length in shares.items():
        for length, value in by_length.items():
            hits = [1.0] * round(64 * value) + [0.0] * (64 - round(64 * value))
            bounds = (max(0.0, value - 0.1), min(1.0, value + 0.1))
            scores.append(Score.of(task, length, value, bounds, 64, 0, items=hits))
            if task.startswith("needle/"):
                scores += [Score.of(task, length, value, bounds, 64, 0, depth=d) for d in (0.25, 0.75)]
    return Scorecard(model_digest="0" * 64, original_context_tokens=512, scores=tuple(scores))


BASE = card({
    "needle/code": {256: 0.9, 512: 0.9, 2048: 0}, TRAINED: {256: 0.9, 512: 0.9, 2048: 0},
    "two-hop": {512: 0.5, 2048: 0},
})  # fmt: skip
TAUGHT = card({
    "needle/code": {256: 0.9, 512: 0.9, 2048: 0.1}, TRAINED: {256: 1, 512: 1, 2048: 1},
    "two-hop": {512: 0.6, 2048: 0.25},
})  # fmt: skip


def test_before_and_after_are_told_with_what_was_trained() -> None:
    heads, rows = family_rows(BeforeAfter(BASE, TAUGHT), ("chain",))
    assert heads == [
        "", "kind trained", "before at 512", "after at 512", "before at 2k", "after at 2k", "change at 2k",
    ]  # fmt: skip
    assert [row[:2] for row in rows] == [
        ["needles found, forms of exercises", "none"], ["needles found, code form", "none"],
        ["value at the end of two hops", "chain"],
    ]  # fmt: skip
    assert rows[2][2] == "0.50 [0.40, 0.60]" and rows[2][-1].startswith("+0.25 [0.1")
    needles_alone = card({"needle/code": {512: 1}})
    longer = card({"needle/code": {512: 1, 4096: 1}, TRAINED: {512: 1}, "two-hop": {512: 1}})
    assert family_rows(BeforeAfter(longer, longer), None)[0][-1] == "change at 4k"
    assert family_rows(BeforeAfter(needles_alone, needles_alone), None) == ([], [])


def test_a_gain_in_trained_forms_alone_is_called_that() -> None:
    text = " ".join(told(BeforeAfter(BASE, TAUGHT)))
    assert "Below the base's own score at 512, by interval: needles found, code form (0.10" in text
    assert text.endswith("The gain shows in trained forms alone.")
    carried = card({task: {256: 1, 2048: 1} for task in ("needle/code", TRAINED)})
    both = " ".join(told(BeforeAfter(BASE, carried)))
    assert "trained forms alone" not in both
    uses = {score.task: score.value for score in capacity_scores(TAUGHT)}
    assert (uses[USES], uses[USES_TRAINED]) == (512, 2048)
