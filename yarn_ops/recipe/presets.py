"""A recipe from five answers: what to extend, how far, on which documents, its name, how thoroughly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from yarn_ops.errors import RecipeError
from yarn_ops.recipe.reading import parse_recipe, require_whole_paths
from yarn_ops.recipe.section import NO_PASSWORD
from yarn_ops.recipe.sections import MODEL_NAME
from yarn_ops.recipe.whole import Recipe

Preset = Literal["quick", "standard", "thorough"]
ModelName = Annotated[str, Field(min_length=1, max_length=1024, json_schema_extra=NO_PASSWORD)]
ReleaseName = Annotated[str, Field(pattern=MODEL_NAME)]
TEXT_ALONE = {"share": 0.0}
PRESETS: dict[Preset, dict[str, dict[str, Any]]] = {
    "quick": {
        "train": {"steps": 20, "learning_rate": 2e-3, "exercises": TEXT_ALONE},
        "evaluate": {"windows": 8, "recall_windows": 12},
    },
    "standard": {
        "train": {"steps": 50, "learning_rate": 2e-3, "warmup_steps": 10, "exercises": TEXT_ALONE},
        "evaluate": {"windows": 12, "recall_windows": 16},
    },
    "thorough": {
        "train": {
            "steps": 100,
            "learning_rate": 1.5e-3,
            "targets": ["all-linear"],
            "exercises": {"share": 1.0},
        },
        "evaluate": {"windows": 32, "recall_windows": 50, "suite": "quick"},
        "gate": {"max_short_growth": 1.03, "max_skill_loss": 0.02},
    },
}
"""standard is the shipped recipe demo, thorough is 8k-to-32k, where they do not depend on the model"""
ANSWERS = {
    "base.model": "base",
    "rope.target_context_tokens": "target_context_tokens",
    "data.sources": "documents",
    "publish.name": "name",
}
"""{key of the recipe: what it is called where five answers are given}"""


def short_recipe(
    base: str, target_context_tokens: int, documents: Sequence[str], name: str, preset: Preset
) -> Recipe:
    """The whole recipe; RecipeError, by the answer's own name, where it is none."""
    sections = {
        "base": {"model": base},
        "rope": {"target_context_tokens": target_context_tokens},
        "data": {"sources": list(documents)},
        "publish": {"name": name},
    }
    try:
        recipe = parse_recipe(sections | PRESETS[preset])
        require_whole_paths(recipe)
    except RecipeError as fault:
        told = str(fault).removeprefix("recipe: ")
        key = next((key for key in ANSWERS if told.startswith(key)), "")
        raise RecipeError(f"{ANSWERS.get(key, key)}{told.removeprefix(key)}") from None
    return recipe
