"""The curriculum: the legs that a recipe trains, what each measures and asks of its gate."""

from __future__ import annotations

import pytest
from small_recipe import asked

from yarn_ops.errors import RecipeError
from yarn_ops.recipe import Data, Leg, load_recipe
from yarn_ops.shipped import recipe_path


def test_one_leg_unless_stages_are_given() -> None:
    (leg,) = asked(rope={"target_context_tokens": 2048}).curriculum(512)
    assert (leg.context_tokens, leg.factor, leg.steps, leg.learning_rate) == (2048, 4.0, 50, 5e-4)


def test_legs_grow_to_the_target() -> None:
    first, second = load_recipe(recipe_path("8k-16k-32k")).curriculum(8192)
    assert (first.context_tokens, first.factor, first.steps, first.learning_rate) == (16384, 2.0, 30, 2e-4)
    assert (second.context_tokens, second.factor, second.steps, second.learning_rate) == (
        32768,
        4.0,
        20,
        1e-4,
    )


def test_a_leg_draws_its_windows_as_it_says() -> None:
    data = Data(sources=("texts/*.txt",), prefer_long=1.0)
    assert Leg(context_tokens=64, steps=1).data_of(data) is data
    drawn = Leg(context_tokens=64, steps=1, prefer_long=0).data_of(data)
    assert drawn == data.model_copy(update={"prefer_long": 0.0})


def test_a_leg_s_gate_asks_for_what_it_names() -> None:
    legs = "[{context_tokens=768, steps=2}, {context_tokens=1024, steps=2, gate={min_recall=0.5}}]"
    recipe = load_recipe(recipe_path("demo"), [f"train.legs={legs}", "rope.factor=2"])
    plain, gated = recipe.curriculum(512)
    assert (plain.gate.asks, gated.gate.asks) == (False, True)
    measured = recipe.evaluation_of(gated, 512)
    assert (measured.lengths, measured.templates) == ((1.0, 2.0), ("code", "prose"))
    assert recipe.evaluation_of(plain, 512).templates == ()
    gate = gated.gate.at_target()
    assert {name: value for name, value in gate if value} == {"min_recall": 0.5}


def test_the_first_leg_carries_nothing_over() -> None:
    legs = [{"context_tokens": 1024, "steps": 5, "carry": "weights"}] * 2
    recipe = asked(rope={"factor": 2}, train={"legs": legs})
    assert [leg.carry for leg in recipe.curriculum(512)] == ["adapter", "weights"]


def test_a_curriculum_that_stops_short_is_refused() -> None:
    recipe = asked(rope={"factor": 4}, train={"legs": [{"context_tokens": 1024, "steps": 5}]})
    with pytest.raises(RecipeError, match="the last leg's factor is 2 but rope asks for 4"):
        recipe.curriculum(512)


def test_a_target_below_the_original_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"256 is below the base's original context of 512"):
        asked(rope={"target_context_tokens": 256}).curriculum(512)


def test_a_factor_beyond_the_target_s_scales_positions_alone() -> None:
    """Windows, lengths and gates are those of the target; legs have their share of the factor."""
    recipe = asked(rope={"factor": 8, "target_context_tokens": 2048})
    (leg,) = recipe.curriculum(512)
    assert (leg.context_tokens, leg.factor) == (2048, 8.0)
    assert recipe.rope.target_tokens(512) == 2048
    assert max(recipe.measured(512).lengths) == 4.0
    legs = [{"context_tokens": 1024, "steps": 5}, {"context_tokens": 2048, "steps": 5}]
    grown = asked(rope={"factor": 8, "target_context_tokens": 2048}, train={"legs": legs})
    assert [leg.factor for leg in grown.curriculum(512)] == [4.0, 8.0]


def test_a_factor_below_the_target_s_is_refused() -> None:
    told = r"is less than rope.target_context_tokens \(2048\); give 4 or more, or leave it out"
    with pytest.raises(RecipeError, match=f"rope.factor: 2 times the original context of 512 {told}"):
        asked(rope={"factor": 2, "target_context_tokens": 2048}).curriculum(512)
