"""Known answers: a model that copies scores 1, a random one at chance; samples are what they say."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from suite_parts import Finder
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_ops.errors import EvaluationError
from yarn_ops.evals import scoring
from yarn_ops.evals.examples import Example
from yarn_ops.evals.tasks import needles

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
    samples = needles.recall_examples(texts(3, 512), encode, template, 512, pairs=4, seed=0)
    scores = by_task(scores_of(Finder(base512_tokenizer, template, rows=ROWS), samples, template))
    assert scores == {
        (f"recall/{template}", None): 1.0,
        **{(f"recall/{template}", depth): 1.0 for depth in (0.125, 0.375, 0.625, 0.875)},
        (f"recall/{template}/no-needle", None): 0.0,
    }


def test_a_model_with_a_window_recalls_what_lies_in_it(base512_tokenizer, encode) -> None:
    """A window of 1100 of 2048 tokens holds the two nearest quarters, and never the two farthest."""
    samples = needles.recall_examples(texts(2, 2048), encode, "code", 2048, pairs=4, seed=0)
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
    samples = needles.recall_examples(texts(24, 256), encode, "code", 256, pairs=4, seed=0)
    scores = scores_of(LlamaForCausalLM(config).eval(), samples, "code")
    assert {score.value for score in scores} == {0.0}
    assert scores[0].samples == 96
    assert scores[0].high < 0.04


@pytest.mark.parametrize("template", ["code", "prose"])
@pytest.mark.parametrize("length", [200, 256, 1000])
def test_samples_are_exactly_as_long_as_asked(template, length, encode) -> None:
    samples = needles.recall_examples(texts(5, length), encode, template, length, pairs=4, seed=0)
    assert {len(ids) for ids in laid_out(samples)} == {length}


@pytest.mark.parametrize("template", ["code", "prose"])
def test_each_part_holds_its_pair_and_the_unplanted_is_asked_last(
    template, encode, base512_tokenizer
) -> None:
    for sample in needles.recall_examples(texts(10, 512), encode, template, 512, pairs=4, seed=1):
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
    samples = needles.recall_examples(texts(300, 256), encode, "code", 256, pairs=2, seed=0)
    first_asked = np.mean([sample.questions[0].part == 0 for sample in samples])
    assert first_asked == pytest.approx(0.5, abs=0.09)
    plant = encode("\nKEY_")[:2]
    starts = [next(i for i in range(256) if list(ids[i : i + 2]) == plant) for ids in laid_out(samples)]
    filler = 256 - 2 * 9 - 3 * 9
    assert np.mean(starts) == pytest.approx(filler / 4, rel=0.2)
    assert len(set(starts)) > 40


def test_the_same_seed_asks_the_same_and_another_asks_others(encode) -> None:
    def ids(seed: int) -> np.ndarray:
        return np.stack(laid_out(needles.recall_examples(texts(3, 256), encode, "code", 256, 4, seed)))

    assert (ids(0) == ids(0)).all()
    assert (ids(0) != ids(1)).any(axis=1).all()


def test_a_window_too_short_for_its_pairs_is_refused(encode) -> None:
    with pytest.raises(EvaluationError, match=r"40 tokens cannot hold 4 prose pairs and questions \(\d+ "):
        needles.recall_examples(texts(1, 40), encode, "prose", 40, pairs=4, seed=0)
