"""RULER's thirteen tasks: they fill the length, hold their answers, lie anywhere, or are refused."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from suite_parts import documents

from yarn_ops.errors import DataError
from yarn_ops.evals.names import RULER_AVERAGE
from yarn_ops.evals.tasks import ruler

LENGTH = 1024
GOLDEN = Path(__file__).parents[2] / "golden" / "ruler_samples.json"
"""of each task the sha256 of two samples' texts, and what is to be answered, which a person has read; delete
it and run the test below to make it again: a change is a new version of the suite"""


@pytest.fixture(scope="module")
def haystack(encode, base512_tokenizer):
    return replace(documents(encode), decode=base512_tokenizer.decode)


def test_samples_are_the_golden_ones(haystack):
    found = {
        name: [
            [sha256(text_of(sample, haystack).encode()).hexdigest(), *sample.references]
            for sample in ruler.examples(name, haystack, LENGTH, 2, 0)
        ]
        for name in ruler.TASKS
    }
    if not GOLDEN.is_file():
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        pytest.fail(f"{GOLDEN.name} was made; read it and run again")
    assert found == json.loads(GOLDEN.read_text("utf-8"))


def text_of(sample, haystack) -> str:
    return haystack.decode([*sample.context.tolist(), *sample.prompt])


@pytest.mark.parametrize("name", ruler.TASKS)
def test_a_sample_fills_the_length_and_holds_its_answer(name, haystack):
    for sample in ruler.examples(name, haystack, LENGTH, 2, 0):
        used = len(sample.context) + len(sample.prompt) + sample.written_tokens
        assert 0.85 * LENGTH < used <= LENGTH  # a unit of haystack is a passage at most
        text = text_of(sample, haystack)
        assert all(reference in text for reference in sample.references)
        assert len(set(sample.references)) == len(sample.references)


@pytest.mark.parametrize("name", ruler.TASKS)
def test_a_length_that_cannot_hold_it_is_refused(name, haystack):
    with pytest.raises(DataError, match="tokens cannot hold it"):
        ruler.examples(name, haystack, 100, 1, 0)


def test_prompts_are_the_published_ones(haystack):
    (one,) = ruler.examples("niah_single_1", haystack, LENGTH, 1, 0)
    text = text_of(one, haystack)
    assert text.startswith(
        "A special magic number is hidden within the following text. Make sure to memorize it."
    )
    asked = re.search(r"What is the special magic number for (\S+) mentioned in the provided text\?", text)
    assert asked and text.endswith(
        f"The special magic number for {asked[1]} mentioned in the provided text is"
    )
    assert re.fullmatch(r"\d{7}", one.references[0])
    (four,) = ruler.examples("niah_multiquery", haystack, LENGTH, 1, 0)
    assert re.search(r"for \S+, \S+, \S+, and \S+ mentioned", text_of(four, haystack))
    assert len(four.references) == 4


def test_variables_are_a_chain_after_a_demonstration(haystack):
    (sample,) = ruler.examples("vt", haystack, LENGTH, 1, 0)
    demonstration, _, asked = text_of(sample, haystack).rpartition("Memorize and track")
    names = sample.references
    assert len(names) == 5 and all(len(name) == 5 for name in names)
    places = [asked.index(f"VAR {name} =") for name in names]
    assert places == sorted(places)
    assert "they are: " in demonstration


def test_words_occur_as_often_as_they_should(haystack):
    (sample,) = ruler.examples("cwe", haystack, LENGTH, 1, 0)
    asked = text_of(sample, haystack).rpartition("numbered list")[2]
    counts = {word: len(re.findall(rf"\d+\. {word}\b", asked)) for word in sample.references}
    assert len(counts) == 10 and set(counts.values()) == {6}
    (coded,) = ruler.examples("fwe", haystack, LENGTH, 1, 0)
    body = text_of(coded, haystack).split("coded words.")[1].split("\nQuestion")[0].split()
    ranked = sorted({word: body.count(word) for word in body if word != "...."}.items(), key=lambda x: -x[1])
    assert {word for word, _ in ranked[:3]} == set(coded.references)
    assert ranked[2][1] > ranked[3][1]


@pytest.mark.parametrize("name", ["qa_1", "qa_2", "niah_single_1"])
def test_answers_lie_anywhere(name, haystack):
    places = []
    for sample in ruler.examples(name, haystack, LENGTH, 40, 0):
        text = text_of(sample, haystack)
        places.append(text.index(sample.references[0]) / len(text))
    assert np.histogram(places, 3, (0, 1))[0].min() >= 3


class Parrot:
    """Writes what it is told to."""

    def __init__(self, replies: list[list[int]]) -> None:
        self.read_tokens, self.replies = 0, replies

    def read(self, ids):
        self.reply = self.replies.pop(0)

    def forget(self):
        pass

    def write(self, prompt, tokens, enough):
        written: list[int] = []
        for token in self.reply[:tokens]:
            written.append(token)
            if enough(written):
                break
        return written


def measured(reader, haystack, tokens: int, count: int):
    """All tasks that fit, as the cell of a suite has them."""
    found = []
    for name in ruler.TASKS:
        with suppress(DataError):
            asked = ruler.examples(name, haystack, tokens, count, 0)
            found.append(ruler.measure(reader, name, asked, haystack.decode, tokens, 0))
    return ruler.joined(found)


def test_a_writer_of_the_references_scores_one_and_of_half_a_half(haystack):
    asked = [s for name in ruler.TASKS for s in ruler.examples(name, haystack, LENGTH, 2, 0)]
    whole = [haystack.encode(" " + ", ".join(sample.references).upper()) for sample in asked]
    scores = measured(Parrot(whole), haystack, LENGTH, 2)
    assert [score.task for score in scores] == [*(f"ruler/{name}" for name in ruler.TASKS), RULER_AVERAGE]
    assert {score.value for score in scores if "uuid" not in score.task} == {1.0}
    half = [haystack.encode(" " + ", ".join(s.references[: len(s.references) // 2])) for s in asked]
    values = {s.task: s.value for s in measured(Parrot(half), haystack, LENGTH, 2)}
    assert values["ruler/niah_multivalue"] == values["ruler/cwe"] == 0.5
    assert values["ruler/niah_single_1"] == 0


def test_matching_is_all_or_any():
    assert ruler.matched("a CAT and a dog", ["cat", "cow"], "all") == 0.5
    assert ruler.matched("a CAT and a dog", ["cat", "cow"], "part") == 1


def test_a_length_for_some_tasks_has_no_average(haystack):
    scores = measured(Silent(), haystack, 300, 1)
    assert scores and RULER_AVERAGE not in {score.task for score in scores}


class Silent:
    read_tokens = 0

    def read(self, ids):
        pass

    def forget(self):
        pass

    def write(self, prompt, tokens, enough):
        return []
