"""Methods side by side on the user's own model: the same base, data, budget and seeds for each."""

from __future__ import annotations

from flows.curriculum import train_legs
from flows.outcome import run_flow
from flows.reporting import show_comparison
from flows.run import open_run
from flows.stages.making import fetch_base, merge, patch, prepare, rehearse, require_windows, survey
from flows.stages.measuring import evaluate, rank
from yarn_ops.errors import RecipeError
from yarn_ops.recipe import (
    ZERO_SHOT,
    Arm,
    Evaluate,
    Recipe,
    RopeMethod,
    arm_training,
    parse_arms,
    parse_methods,
    parse_recipe,
)
from yarn_ops.records import BaseModel, ShardSet
from yarn_ops.scores import Scorecard
from yarn_ops.settings import read_settings

METHODS: list[RopeMethod] = ["none", "linear", "ntk", "by-parts", "yarn"]
ARMS: list[Arm] = [ZERO_SHOT, "lora"]


@run_flow("compare-methods", "compare {recipe.publish.name}")
def compare(recipe: Recipe, methods: list[RopeMethod] = METHODS, arms: list[Arm] = ARMS) -> str:
    """Compare RoPE methods on one base: perplexity, recall and short-context change, by the recipe's gate.

    Stages that arms share are computed once; those that an extension has computed are reused. Legs are
    trained whole, without their gates. Nothing is registered: extend with the winner.

    Args:
        recipe: What to do; its method is replaced by each of the methods.
        methods: The RoPE methods to compare.
        arms: Ways to train each of them: zero-shot (not at all), lora (as the recipe has it), lora-only,
            lora+norms, lora+norms+embeddings, lora+r64, lora+all-linear, full (all parameters).

    Returns:
        The run's id in the registry.
    """
    names = [(method, arm) for method in parse_methods(methods) for arm in parse_arms(arms)]
    if not names:
        raise RecipeError("methods, arms: nothing to compare; name at least one of each")
    recipes = [of_arm(recipe, method, arm) for method, arm in names]
    with open_run(read_settings(), recipe, compared={"methods": methods, "arms": arms}) as run:
        base = fetch_base(recipe.base)
        to_train = []
        for (_, arm), of_this_arm in zip(names, recipes, strict=True):
            if arm != ZERO_SHOT:
                legs = [leg.ungated() for leg in of_this_arm.curriculum(base.context_tokens)]
                patched = patch(of_this_arm.rope, legs[-1].factor or 1.0, base)
                rehearse(of_this_arm.train, legs, patched, recipe.data.document_mask)
                to_train.append((legs, patched))
        corpus = survey(recipe.data)
        shards = prepare(recipe.data.of_shards(), corpus, base)
        for legs, patched in to_train:
            require_windows(shards, legs, patched)
        before = evaluate(scores_of(recipe, base), base, shards, base.context_tokens)

        scores: list[Scorecard] = []
        trained: list[int] = []
        for (method, arm), of_this_arm in zip(names, recipes, strict=True):
            card, parameters = contend(of_this_arm, method, arm, base, shards)
            scores.append(card)
            trained.append(parameters)
        target = recipe.rope.target_tokens(base.context_tokens)
        arms_named = [" ".join(name) for name in names]
        comparison = rank(recipe.gate, before, arms_named, scores, trained, target)
        show_comparison(comparison)
        return run.id


def contend(
    recipe: Recipe, method: RopeMethod, arm: Arm, base: BaseModel, shards: ShardSet
) -> tuple[Scorecard, int]:
    """One arm, patched and measured, or trained and merged before that; and how many parameters learnt."""
    legs = recipe.curriculum(base.context_tokens)
    if arm == ZERO_SHOT:
        patched = patch(recipe.rope, legs[-1].factor or 1.0, base)
        asked = scores_of(recipe, base)
        return evaluate(asked, base, shards, base.context_tokens, patched=(patched,)), 0
    configs = [patch(recipe.rope, leg.factor or 1.0, base) for leg in legs]
    metrics = f"{method} {arm}".replace("+", ".")  # MLflow's names have no plus
    trained = train_legs(recipe, legs, configs, base, shards, arm=metrics)
    last = trained.adapters[-1]
    checkpoint = merge(trained.weights, trained.patched, last, shards)
    card = evaluate(scores_of(recipe, base), checkpoint, shards, base.context_tokens)
    return card, last.trainable_parameters


def scores_of(recipe: Recipe, base: BaseModel) -> Evaluate:
    """What every contender is measured by: without a suite."""
    return recipe.measured(base.context_tokens).scores_alone


def of_arm(recipe: Recipe, method: RopeMethod, arm: Arm) -> Recipe:
    """The recipe with one arm's method and way of training; RecipeError where the method needs more."""
    values = recipe.model_dump()
    values["rope"]["method"] = method
    values["train"] = arm_training(recipe.train, arm).model_dump()
    return parse_recipe(values, f"method {method!r}")
