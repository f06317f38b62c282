"""The legs of a curriculum: what each begins with, and whether the next may begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flows.run import current_run
from flows.stages.making import merge, train
from flows.stages.measuring import evaluate, judge_leg, score
from yarn_ops.errors import GateFailed
from yarn_ops.recipe import Leg, Recipe, loss_inputs
from yarn_ops.records import Adapter, BaseModel, Checkpoint, PatchedModel, ShardSet
from yarn_ops.scores import BeforeAfter


@dataclass(frozen=True)
class Trained:
    """All legs' adapters, and the weights that the last one belongs to."""

    weights: BaseModel | Checkpoint
    """the base, or the merged result of a leg whose weights were carried over"""
    patched: PatchedModel
    adapters: tuple[Adapter, ...]


def train_legs(
    recipe: Recipe,
    legs: Sequence[Leg],
    configs: Sequence[PatchedModel],
    base: BaseModel,
    shards: ShardSet,
    *,
    arm: str = "",
    gated: bool = False,
) -> Trained:
    """Train leg after leg; if `gated`, GateFailed where one does not pass its gate. arm: of a comparison."""
    weights: BaseModel | Checkpoint = base
    adapters: list[Adapter] = []
    for number, (leg, patched) in enumerate(zip(legs, configs, strict=True)):
        previous = adapters[-1:]
        if previous and leg.carry == "weights":
            weights, previous = merge(weights, configs[number - 1], adapters[-1], shards), []
        keep_optimizer = any(later.carry == "adapter+optimizer" for later in legs[number + 1 : number + 2])
        adapter = train(
            *loss_inputs(recipe.train, leg, recipe.data), base=weights, patched=patched, shards=shards,
            previous=previous, keep_optimizer=keep_optimizer, asked=recipe.train,
            steps=current_run().mlflow.step_sink(arm, sum(earlier.steps for earlier in adapters)),
        )  # fmt: skip
        adapters.append(adapter)
        if gated and leg.gate.asks:
            original = base.context_tokens
            before = score(recipe, base, shards, original)
            checkpoint = merge(weights, patched, adapter, shards)
            after = evaluate(recipe.evaluation_of(leg, original), checkpoint, shards, original)
            verdict = judge_leg(leg.gate, BeforeAfter(before, after), leg.context_tokens)
            if not verdict.passed:
                raise GateFailed(
                    f"leg {number + 1} of {len(legs)}, {leg.context_tokens} tokens: {verdict.reasons}; "
                    "nothing was registered"
                )
    return Trained(weights, patched, tuple(adapters))
