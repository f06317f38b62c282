"""The recipe: WHAT to do, never where. Frozen pydantic models, read from TOML.

`Recipe.digest()` is canonical: key order, `4` against `4.0`, defaults written out or left out make no
difference. The Prefect run form is made from these models, so titles and descriptions here are what a
person reads there.
"""

from yarn_ops.recipe.arms import ZERO_SHOT, Arm, arm_training, parse_arms
from yarn_ops.recipe.reading import load_recipe, parse_recipe, recorded_recipe, require_whole_paths
from yarn_ops.recipe.section import FittedMethod, RopeMethod, Section, SuiteName, parse_methods
from yarn_ops.recipe.sections import ALIAS, MODEL_NAME, Base, Condition, Data, Evaluate, Gate, Publish, Rope
from yarn_ops.recipe.training import NOT_IN_LOSSES, Carry, Leg, LegGate, Train, loss_inputs
from yarn_ops.recipe.whole import NAMED, RAISE_BUDGET, Budget, Recipe

__all__ = [
    "ALIAS",
    "MODEL_NAME",
    "NAMED",
    "NOT_IN_LOSSES",
    "RAISE_BUDGET",
    "ZERO_SHOT",
    "Arm",
    "Base",
    "Budget",
    "Carry",
    "Condition",
    "Data",
    "Evaluate",
    "FittedMethod",
    "Gate",
    "Leg",
    "LegGate",
    "Publish",
    "Recipe",
    "Rope",
    "RopeMethod",
    "Section",
    "SuiteName",
    "Train",
    "arm_training",
    "load_recipe",
    "loss_inputs",
    "parse_arms",
    "parse_methods",
    "parse_recipe",
    "recorded_recipe",
    "require_whole_paths",
]
