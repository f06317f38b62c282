"""Advice from scorecards written by hand: intervals are ± 5 % of each value."""

from __future__ import annotations

import math

import pytest

from yarn_ops.evals.advice import advise
from yarn_ops.evals.names import LAST_QUARTER
from yarn_ops.scores import BeforeAfter

BEFORE = {
    "perplexity": {256: 9.3, 512: 9.1, 1024: 117, 2048: 271},
    "code": {256: 0.98, 512: 0.95, 1024: 0, 2048: 0},
}
GOOD = {
    "perplexity": {256: 9.2, 512: 8.9, 1024: 7.3, 2048: 6.8},
    "code": {256: 0.98, 512: 0.97, 1024: 0.98, 2048: 0.94},
}


@pytest.fixture
def advice(scorecard):
    def given(**changed):
        return advise(BeforeAfter(scorecard(**BEFORE), scorecard(**{**GOOD, **changed})), 2048)

    return given


def test_a_good_extension_is_served_alone(advice):
    given = advice()
    assert (given.uses_tokens, given.side_by_side) == (2048, False)
    assert given.reasons == (
        "the model uses 2,048 tokens, the longest measured up to its target",
        "serve the extended model alone: at worst, perplexity at 256 tokens changes by -1.1 % "
        "and code recall at 256 tokens changes by +0.00",
    )


def test_recall_that_breaks_before_the_target_asks_for_a_shorter_one(advice):
    given = advice(code={256: 0.98, 512: 0.97, 1024: 0.96, 2048: 0.3})
    assert given.uses_tokens == 1024
    assert given.reasons[0] == (
        "at 2,048 tokens code recall is 0.30 [0.28, 0.32] against 0.97 at 512; the model uses 1,024 tokens, "
        "ask for no more"
    )


def test_a_length_beyond_one_that_breaks_does_not_count(advice):
    assert advice(code={256: 0.98, 512: 0.97, 1024: 0.2, 2048: 0.9}).uses_tokens == 512


def test_recall_that_may_hold_within_its_interval_does(advice):
    """0.9 × 0.97 = 0.873; 0.84 reaches it with the upper end, 0.882."""
    assert advice(code={256: 0.98, 512: 0.97, 1024: 0.98, 2048: 0.84}).uses_tokens == 2048


def test_perplexity_that_explodes_asks_for_a_shorter_target(advice):
    given = advice(perplexity={256: 9.2, 512: 8.9, 1024: 8.0, 2048: 31.0}, code={})
    assert given.uses_tokens == 1024
    assert given.reasons[0].startswith("at 2,048 tokens perplexity is 31.0 against 8.9 at 512")


def test_a_loss_at_short_texts_is_served_by_the_base(advice):
    given = advice(perplexity={256: 10.0, 512: 9.2, 1024: 7.3, 2048: 6.8})
    assert given.side_by_side
    assert given.reasons[1] == (
        "serve base and extended side by side (yarn-ops router), texts up to 512 tokens by the base: "
        "perplexity at 256 tokens changes by +7.5 %"
    )


def test_lost_recall_at_short_texts_is_served_by_the_base(advice):
    given = advice(code={256: 0.98, 512: 0.85, 1024: 0.98, 2048: 0.94})
    assert given.side_by_side
    assert "code recall at 512 tokens changes by -0.10" in given.reasons[1]


def test_what_was_not_measured_is_not_advised_on(scorecard):
    nothing = advise(BeforeAfter(scorecard(perplexity={}), scorecard(perplexity={})), 2048)
    assert (nothing.uses_tokens, nothing.side_by_side, nothing.reasons) == (None, False, ())


def with_items(card, items):
    """The card with the items of some (task, length), and the values that they make."""
    scores = []
    for score in card.scores:
        parts = items.get((score.task, score.context_tokens))
        if parts is not None:
            mean = sum(parts) / len(parts)
            value = math.exp(mean) if score.task == LAST_QUARTER else mean
            score = score.model_copy(update={"items": parts, "value": value})
        scores.append(score)
    return card.model_copy(update={"scores": tuple(scores)})


def test_what_was_measured_on_the_same_windows_is_compared_window_by_window(scorecard):
    """Windows differ by a nat, the change is 0.03 ± 0.006 in each: its interval is as narrow as that."""
    windows = [2.0, 2.4, 1.9, 2.8, 3.0, 2.2]
    changes = [0.03, 0.036, 0.024, 0.03, 0.033, 0.027]
    place = (LAST_QUARTER, 256)
    before = with_items(scorecard(**BEFORE), {place: tuple(windows)})
    after = with_items(scorecard(**GOOD), {place: tuple(map(sum, zip(windows, changes, strict=True)))})
    assert (
        advise(BeforeAfter(before, after), 2048)
        .reasons[1]
        .startswith(
            "serve base and extended side by side (yarn-ops router), texts up to 512 tokens by the base: "
            "perplexity at 256 tokens changes by +3.0 % [+2.6 %, +3.5 %]"
        )
    )


def test_recall_is_compared_pair_by_pair(scorecard):
    """64 pairs, the same three missed: nothing says that anything changed."""
    place, found = ("recall/code", 256), (1.0,) * 61 + (0.0,) * 3
    before, after = (with_items(scorecard(**card), {place: found}) for card in (BEFORE, GOOD))
    assert (
        "code recall at 256 tokens changes by +0.00 [-0.03, +0.03]"
        in advise(BeforeAfter(before, after), 2048).reasons[1]
    )
    others = with_items(scorecard(**GOOD), {place: found[::-1]})
    assert (
        "code recall at 256 tokens changes by +0.00 [-0.08, +0.08]"
        in advise(BeforeAfter(before, others), 2048).reasons[1]
    )


def test_scores_of_other_windows_are_told_without_an_interval(scorecard):
    place = (LAST_QUARTER, 256)
    before = with_items(scorecard(**BEFORE), {place: (2.0, 2.4, 1.9, 2.8)})
    after = with_items(scorecard(**GOOD), {place: (2.0, 2.4, 1.9, 2.8, 2.2)})
    assert "[" not in advise(BeforeAfter(before, after), 2048).reasons[1]


def test_lengths_beyond_the_target_are_no_argument(scorecard) -> None:
    broken = {key: {**values, 4096: 900.0 if key == "perplexity" else 0.0} for key, values in GOOD.items()}
    scores = BeforeAfter(scorecard(**BEFORE), scorecard(**broken))
    assert advise(scores, 2048).uses_tokens == 2048
    assert "at 4,096 tokens perplexity is 900.0" in advise(scores, 4096).reasons[0]
