"""What is measured of a model in a run: its scorecard, and the suite where the recipe asks for one."""

from __future__ import annotations

from dataclasses import dataclass

from flows.stages.measuring import evaluate, suite
from yarn_ops.recipe import Recipe
from yarn_ops.records import BaseModel, Checkpoint, Scorecard, ShardSet


@dataclass(frozen=True)
class Scored:
    card: Scorecard
    """every score, the suite's too"""
    suites: tuple[Scorecard, ...]
    """the suite's own record, or none"""


def score(
    recipe: Recipe, model: BaseModel | Checkpoint, shards: ShardSet, original_context_tokens: int
) -> Scored:
    """Score a model as the recipe says; the suite reaches to the recipe's target."""
    asked = recipe.evaluate
    card = evaluate(asked.scores_alone, model, shards, original_context_tokens)
    if asked.suite == "none":
        return Scored(card, ())
    target = round(recipe.rope.resolve_factor(original_context_tokens) * original_context_tokens)
    found = suite(asked.suite, asked.seed, model, shards, target, original_context_tokens)
    return Scored(card.joined([found]), (found,))
