"""Arms of a comparison: what each trains, and bad ones refused in one line."""

from __future__ import annotations

import re

import pytest

from yarn_ops.errors import RecipeError
from yarn_ops.recipe import Train, arm_training, parse_arms
from yarn_ops.recipe.arms import KNOWN, Arm

RECIPE = Train(rank=8, alpha=32, train_norms=True, train_embeddings=True, method="full", steps=7)
LORA = RECIPE.model_copy(update={"method": "lora"})


@pytest.mark.parametrize(
    ("arm", "changes"),
    [
        ("zero-shot", {}),
        ("full", {"method": "full"}),
        ("lora", {}),
        ("lora-only", {"train_norms": False, "train_embeddings": False}),
        ("lora+norms", {"train_embeddings": False}),
        ("lora+embeddings", {"train_norms": False}),
        ("lora+norms+embeddings", {}),
        ("lora+r64", {"rank": 64, "alpha": 256.0}),
        ("lora-only+r4", {"train_norms": False, "train_embeddings": False, "rank": 4, "alpha": 16.0}),
        ("lora+all-linear", {"targets": ("all-linear",)}),
        ("lora+norms+qv", {"train_embeddings": False, "targets": ("q_proj", "v_proj")}),
    ],
)
def test_an_arm_changes_what_it_names(arm: str, changes: dict[str, object]) -> None:
    assert arm_training(RECIPE, arm) == LORA.model_copy(update=changes)


def test_the_known_arms_are_known_to_form_and_command() -> None:
    pattern = Arm.__metadata__[0].metadata[0].pattern
    for arm in KNOWN.split(", "):
        assert parse_arms([arm]) == [arm]
        assert re.fullmatch(pattern, arm)


@pytest.mark.parametrize(
    ("arm", "complaint"),
    [
        ("lora+biases", "arm 'lora+biases' is unknown; known are zero-shot, full, lora, lora-only"),
        ("lora-only+norms", "arm 'lora-only+norms' is unknown; known are"),
        ("lora+norms+norms", "arm 'lora+norms+norms' says norms twice; say it once"),
        ("lora+r4+r8", "arm 'lora+r4+r8' says rank twice; say it once"),
        ("lora+r4096", "arm 'lora+r4096': rank: input should be less than or equal to 1024"),
        ("lora,lora", "arm 'lora' is named twice; name it once"),
        ("", "arm '' is unknown; known are"),
    ],
)
def test_a_bad_arm_is_one_line(arm: str, complaint: str) -> None:
    with pytest.raises(RecipeError) as fault:
        parse_arms(arm.split(","))
    assert str(fault.value).startswith(complaint)
    assert "\n" not in str(fault.value)
