"""Known answers: a model that copies scores 1, a random one at chance; samples are what they say."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from suite_parts import PLANTED, Finder
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_ops.errors import EvaluationError
from yarn_ops.evals import scoring
from yarn_ops.evals.examples import Example
from yarn_ops.evals.tasks import needles
from yarn_ops.evals.tasks.recall import recall_examples

ROWS = 200
"""the questions at a window's end take fewer tokens"""


def texts(count: int, tokens: int) -> list[np.ndarray]:
    """Letters and spaces alone: nothing that looks like a pair."""
    return list(np.random.default_rng(0).integers(300, 700, (count, tokens)))


def laid_out(examples: list[Example]) -> list[np.ndarray]:
    """All tokens of each, questions and answers too."""
    return [example.in_turn()[0] for example in examples]


def scores_of(model, examples: list[Example], template: str):
    (ids,) = {len(ids) for ids in laid_out(examples)}
    asked = scoring.ask_in_turn(model, examples)
    return scoring.recall(f"recall/{template}", asked, ids, 4, 0)


def by_task(scores) -> dict[tuple[str, float | None], float]:
    return {(score.task, score.depth): score.value for score in scores}


@pytest.mark.parametrize("template", ["code", "prose"])
def test_a_model_that_copies_recalls_everything_and_guesses_nothing(
    template, base512_tokenizer, encode
) -> None:
    samples = recall_examples(texts(3, 512), encode, (template,), 512, pairs=4, seed=0)
    scores = by_task(scores_of(Finder(base512_tokenizer, template, rows=ROWS), samples, template))
    assert scores == {
        (f"recall/{template}", None): 1.0,
        **{(f"recall/{template}", depth): 1.0 for depth in (0.125, 0.375, 0.625, 0.875)},
        (f"recall/{template}/no-needle", None): 0.0,
    }


def test_a_model_with_a_window_recalls_what_lies_in_it(base512_tokenizer, encode) -> None:
    """A window of 1100 of 2048 tokens holds the two nearest quarters, and never the two farthest."""
    samples = recall_examples(texts(2, 2048), encode, ("code",), 2048, pairs=4, seed=0)
    finder = Finder(base512_tokenizer, "code", window=1100, rows=ROWS)
    scores = by_task(scores_of(finder, samples, "code"))
    assert [scores["recall/code", depth] for depth in (0.125, 0.375, 0.625, 0.875)] == [0, 0, 1, 1]
    assert scores["recall/code", None] == 0.5


def test_a_random_model_is_at_chance(encode, base512_tokenizer) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=base512_tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16,
    )  # fmt: skip
    samples = recall_examples(texts(24, 256), encode, ("code",), 256, pairs=4, seed=0)
    scores = scores_of(LlamaForCausalLM(config).eval(), samples, "code")
    assert {score.value for score in scores} == {0.0}
    assert scores[0].samples == 96
    assert scores[0].high < 0.04


@pytest.mark.parametrize("template", ["code", "prose"])
@pytest.mark.parametrize("length", [200, 256, 1000])
def test_samples_are_exactly_as_long_as_asked(template, length, encode) -> None:
    samples = recall_examples(texts(5, length), encode, (template,), length, pairs=4, seed=0)
    assert {len(ids) for ids in laid_out(samples)} == {length}


@pytest.mark.parametrize("template", ["code", "prose"])
def test_each_part_holds_its_pair_and_the_unplanted_is_asked_last(
    template, encode, base512_tokenizer
) -> None:
    for sample in recall_examples(texts(10, 512), encode, (template,), 512, pairs=4, seed=1):
        planted = needles.TEMPLATES[template].plant.split("{value}")[0]
        assert sample.questions[-1].part is None
        ids, starts = sample.in_turn()
        for answer, start in zip(sample.questions, starts, strict=True):
            value = base512_tokenizer.decode(ids[start : start + len(answer.answer)])
            before = base512_tokenizer.decode(ids[:start])
            key = re.findall(r"_(\w{4}) ==|for (\w{4})\?", before)[-1]
            head, found, _ = before.partition(planted.format(key="".join(key)) + value.strip())
            assert bool(found) == (answer.part is not None)
            if answer.part is not None:
                share = len(encode(head)) / starts[0]
                assert answer.part / 4 - 0.1 <= share <= (answer.part + 1) / 4 + 0.1


def test_places_and_order_are_uniform(encode) -> None:
    samples = recall_examples(texts(300, 256), encode, ("code",), 256, pairs=2, seed=0)
    first_asked = np.mean([sample.questions[0].part == 0 for sample in samples])
    assert first_asked == pytest.approx(0.5, abs=0.09)
    plant = encode("\nKEY_")[:2]
    starts = [next(i for i in range(256) if list(ids[i : i + 2]) == plant) for ids in laid_out(samples)]
    filler = 256 - 2 * 9 - 3 * 9
    assert np.mean(starts) == pytest.approx(filler / 4, rel=0.2)
    assert len(set(starts)) > 40


def test_the_same_seed_asks_the_same_and_another_asks_others(encode) -> None:
    def ids(seed: int) -> np.ndarray:
        return np.stack(laid_out(recall_examples(texts(3, 256), encode, ("code",), 256, 4, seed)))

    assert (ids(0) == ids(0)).all()
    assert (ids(0) != ids(1)).any(axis=1).all()


BOTH = ("code", "prose")


def test_a_text_of_both_forms_is_as_long_holds_each_and_asks_each_as_alone(encode, base512_tokenizer) -> None:
    samples = recall_examples(texts(6, 1024), encode, BOTH, 1024, pairs=4, seed=0)
    assert {len(ids) for ids in laid_out(samples)} == {1024}
    orders = set()
    for sample in samples:
        *asked, code, prose = sample.questions
        assert [(one.form, one.part) for one in (code, prose)] == [("code", None), ("prose", None)]
        assert sorted((one.form, one.part) for one in asked) == [(f, p) for f in BOTH for p in range(4)]
        orders.add(tuple(one.form for one in asked))
        text = base512_tokenizer.decode(sample.context.tolist())
        for form, pattern in PLANTED.items():
            facts = [(match.start() / len(text), *match.groups()) for match in pattern.finditer(text)]
            assert [int(4 * place) for place, *_ in facts] == pytest.approx(range(4), abs=1)
            values = {key: value for _, key, value in facts}
            for one in asked:
                if one.form == form:
                    key = re.findall(r"_(\w{4}) ==|for (\w{4})\?", base512_tokenizer.decode(one.prompt))[-1]
                    assert base512_tokenizer.decode(one.answer).strip() == values.pop("".join(key))
            assert not values
    assert len(orders) > 1  # forms are mixed, not one after the other


def test_forms_lie_uniformly_in_every_part_and_independently(encode) -> None:
    places: dict[str, list[float]] = {form: [] for form in BOTH}
    for sample in recall_examples(texts(200, 1024), encode, BOTH, 1024, pairs=2, seed=0):
        context = sample.context.tolist()
        for one in sample.questions[:-2]:
            plant = [*encode({"code": "\nKEY_", "prose": "\nThe special magic number for"}[one.form])]
            starts = [at for at in range(len(context)) if context[at : at + len(plant)] == plant]
            places[one.form].append(starts[one.part] / len(context) * 2 - one.part)
    for found in places.values():
        expected = (np.arange(len(found)) + 0.5) / len(found)
        assert np.abs(np.sort(found) - expected).max() < 0.1  # Kolmogorov and Smirnov
    assert abs(np.corrcoef(places["code"][:400], places["prose"][:400])[0, 1]) < 0.15


def test_scores_of_both_forms_are_those_of_each(base512_tokenizer, encode) -> None:
    """A model that finds one form alone has 1 in it and 0 in the other; both have as many pairs as alone."""
    samples = recall_examples(texts(3, 1024), encode, BOTH, 1024, pairs=4, seed=0)
    for form, other in (BOTH, BOTH[::-1]):
        asked = scoring.ask_in_turn(Finder(base512_tokenizer, form, rows=400), samples)
        scores = scoring.recall_of([f"recall/{one}" for one in BOTH], asked, 1024, 4, 0)
        assert by_task(scores)[f"recall/{form}", None] == 1
        assert by_task(scores)[f"recall/{other}", None] == 0
        assert by_task(scores)[f"recall/{form}", 0.125] == 1
        assert {s.samples for s in scores if s.task.count("/") == 1 and s.depth is None} == {12}


def test_forms_share_texts_that_have_room_for_them() -> None:
    assert needles.planted_together(BOTH, 4, 2048) == [BOTH]
    assert needles.planted_together(BOTH, 4, 2047) == [("code",), ("prose",)]
    assert needles.planted_together(("prose",), 4, 200) == [("prose",)]


def test_a_window_too_short_for_its_pairs_is_refused(encode) -> None:
    with pytest.raises(EvaluationError, match=r"40 tokens cannot hold 4 prose pairs and questions \(\d+ "):
        recall_examples(texts(1, 40), encode, ("prose",), 40, pairs=4, seed=0)
