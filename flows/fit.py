"""A search for RoPE parameters that suit one base, on the recipe's held-out documents."""

from __future__ import annotations

from flows.outcome import run_flow
from flows.reporting import show_fit
from flows.run import open_run
from flows.stages.making import fetch_base, prepare, survey
from flows.stages.measuring import search
from yarn_ops.recipe import FittedMethod, Recipe
from yarn_ops.scores import Fit
from yarn_ops.settings import read_settings


@run_flow("fit-rope", "fit {recipe.publish.name}")
def fit(recipe: Recipe, method: FittedMethod = "yarn") -> Fit:
    """Search the parameters of a RoPE method zero-shot. Nothing is trained and nothing is registered.

    Args:
        recipe: The base, the documents, the factor, and how many windows to measure on.
        method: yarn (betas and attention factor) or longrope (a factor for each pair of dimensions).

    Returns:
        What was found, or the method's defaults where that is no better on fresh documents.
    """
    with open_run(read_settings(), recipe, compared={"fit": method}):
        base = fetch_base(recipe.base)
        corpus = survey(recipe.data)
        shards = prepare(recipe.data.of_shards(), corpus, base)
        found = search(recipe.evaluate, recipe.rope, method, base, shards)
        show_fit(found)
        return found
