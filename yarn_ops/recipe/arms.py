"""Arms of a comparison: what is trained, with the same data, steps and seeds.

    zero-shot              patched, not trained
    lora                   LoRA as the recipe has it
    lora-only              its matrices alone: norms and embeddings stay frozen
    lora+norms             and norms; lora+embeddings, lora+norms+embeddings
    full                   all parameters

Behind any lora, +rN is another rank (alpha / rank stays) and +all-linear or +qv are other layers: lora+r64,
lora+norms+all-linear. What an arm does not name stays as in the recipe.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, ValidationError

from yarn_ops.errors import RecipeError
from yarn_ops.recipe.training import Train

ZERO_SHOT = "zero-shot"
TARGETS = {"all-linear": ("all-linear",), "qv": ("q_proj", "v_proj")}  # every layer; the LoRA paper's
WHOLE = {"norms": "train_norms", "embeddings": "train_embeddings"}
RANK = re.compile(r"r([1-9][0-9]*)")
KNOWN = (
    "zero-shot, full, lora, lora-only, lora+norms, lora+norms+embeddings, lora+r64, lora+all-linear, lora+qv"
)

Arm = Annotated[
    str,
    Field(
        pattern=r"^(zero-shot|full|lora(-only)?(\+(norms|embeddings|all-linear|qv|r[1-9][0-9]*))*)$",
        examples=KNOWN.split(", "),
    ),
]


def parse_arms(names: Sequence[str]) -> list[Arm]:
    """These names; RecipeError for an unknown one, or one that is there twice."""
    for place, name in enumerate(names):
        arm_training(Train(), name)
        if name in names[:place]:
            raise RecipeError(f"arm {name!r} is named twice; name it once")
    return list(names)


def arm_training(train: Train, arm: Arm) -> Train:
    """The training section as an arm has it; RecipeError for an arm that means nothing."""
    if arm in (ZERO_SHOT, "full"):
        return train.model_copy(update={"method": "full" if arm == "full" else "lora"})
    first, *parts = arm.split("+")
    changes: dict[str, Any] = {}
    if first == "lora-only" or set(parts) & WHOLE.keys():
        changes = dict.fromkeys(WHOLE.values(), False)
    for part in parts:
        for key, value in _change(train, arm, first, part).items():
            if changes.get(key):
                raise RecipeError(f"arm {arm!r} says {key.removeprefix('train_')} twice; say it once")
            changes[key] = value
    if first not in ("lora", "lora-only"):
        raise _unknown(arm)
    try:
        return Train.model_validate(train.model_dump() | {"method": "lora"} | changes)
    except ValidationError as error:
        fault = error.errors()[0]
        message = fault["msg"]
        raise RecipeError(f"arm {arm!r}: {fault['loc'][0]}: {message[:1].lower()}{message[1:]}") from None


def _change(train: Train, arm: str, first: str, part: str) -> dict[str, Any]:
    """What one part of an arm's name changes in the training section."""
    if part in WHOLE and first == "lora":
        return {WHOLE[part]: True}
    if part in TARGETS:
        return {"targets": TARGETS[part]}
    if rank := RANK.fullmatch(part):
        return {"rank": int(rank[1]), "alpha": train.alpha * int(rank[1]) / train.rank}
    raise _unknown(arm)


def _unknown(arm: str) -> RecipeError:
    return RecipeError(f"arm {arm!r} is unknown; known are {KNOWN}")
