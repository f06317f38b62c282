"""Advice from scorecards written by hand: intervals are ± 5 % of each value."""

from __future__ import annotations

import pytest

from yarn_ops.evals.advice import PERPLEXITY, advise
from yarn_ops.evals.perplexity import LAST_QUARTER

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
        return advise(scorecard(**BEFORE), scorecard(**{**GOOD, **changed}))

    return given


def test_it_reads_the_perplexity_that_the_gate_reads():
    assert PERPLEXITY == LAST_QUARTER


def test_a_good_extension_is_served_alone_at_its_factor(advice):
    given = advice()
    assert (given.factor, given.side_by_side) == (4, False)
    assert given.reasons == (
        "the model uses all 2,048 tokens measured: factor 4 is the smallest for that",
        "serve the extended model alone: at worst, perplexity at 256 tokens changes by -1.1 % "
        "[-7.8 %, +6.2 %] and code recall at 256 tokens changes by +0.00 [-0.07, +0.07]",
    )


def test_recall_that_breaks_before_the_target_asks_for_a_smaller_factor(advice):
    given = advice(code={256: 0.98, 512: 0.97, 1024: 0.96, 2048: 0.3})
    assert given.factor == 2
    assert given.reasons[0] == (
        "at 2,048 tokens code recall is 0.30 [0.28, 0.32] against 0.97 at 512; the model uses 1,024 tokens, "
        "factor 2 is sufficient"
    )


def test_a_length_beyond_one_that_breaks_does_not_count(advice):
    assert advice(code={256: 0.98, 512: 0.97, 1024: 0.2, 2048: 0.9}).factor == 1


def test_recall_that_may_hold_within_its_interval_does(advice):
    """0.9 × 0.97 = 0.873; 0.84 reaches it with the upper end, 0.882."""
    assert advice(code={256: 0.98, 512: 0.97, 1024: 0.98, 2048: 0.84}).factor == 4


def test_perplexity_that_explodes_asks_for_a_smaller_factor(advice):
    given = advice(perplexity={256: 9.2, 512: 8.9, 1024: 8.0, 2048: 31.0}, code={})
    assert given.factor == 2
    assert given.reasons[0].startswith("at 2,048 tokens perplexity is 31.0 against 8.9 at 512")


def test_a_loss_at_short_texts_is_served_by_the_base(advice):
    given = advice(perplexity={256: 10.0, 512: 9.2, 1024: 7.3, 2048: 6.8})
    assert given.side_by_side
    assert given.reasons[1] == (
        "serve base and extended side by side, texts up to 512 tokens by the base: "
        "perplexity at 256 tokens changes by +7.5 % [+0.2 %, +15.4 %]"
    )


def test_lost_recall_at_short_texts_is_served_by_the_base(advice):
    given = advice(code={256: 0.98, 512: 0.85, 1024: 0.98, 2048: 0.94})
    assert given.side_by_side
    assert "code recall at 512 tokens changes by -0.10" in given.reasons[1]


def test_what_was_not_measured_is_not_advised_on(scorecard):
    nothing = advise(scorecard(perplexity={}), scorecard(perplexity={}))
    assert (nothing.factor, nothing.side_by_side, nothing.reasons) == (None, False, ())


def test_scores_without_intervals_are_told_without(scorecard):
    bare = [
        card.model_copy(
            update={
                "scores": tuple(score.model_copy(update={"low": None, "high": None}) for score in card.scores)
            }
        )
        for card in (scorecard(**BEFORE), scorecard(**GOOD))
    ]
    assert "[" not in "".join(advise(*bare).reasons)
