"""Scores of a model, and what is judged by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flows.grid import Shared, helped, worker_of
from flows.run import current_run
from flows.tasks import StageContext, stage
from yarn_ops.evals import VERSION
from yarn_ops.models.device import resolve_dtype
from yarn_ops.recipe import Evaluate, FittedMethod, Gate, LegGate, Recipe, Rope
from yarn_ops.records import BaseModel, Checkpoint, PatchedModel, ShardSet
from yarn_ops.scores import BeforeAfter, Comparison, Fit, Scorecard, Verdict
from yarn_ops.shown import one_line


def score(
    recipe: Recipe, model: BaseModel | Checkpoint, shards: ShardSet, original_context_tokens: int
) -> Scorecard:
    """Measure a model as the recipe says, at both ends in any case; a suite reaches to the target."""
    target = None
    if recipe.evaluate.suite != "none":
        target = recipe.rope.target_tokens(original_context_tokens)
    asked = recipe.measured(original_context_tokens)
    return evaluate(asked, model, shards, original_context_tokens, target)


def require_measurable(
    recipe: Recipe, base: BaseModel, shards: ShardSet, original_context_tokens: int
) -> None:
    """EvaluationError, before a run trains, where what is measured after it does not fit the documents."""
    run = current_run()
    if run.device.trainer is not None:
        run.device.trainer.call(
            "yarn_ops.evals.measure:require_scorecard",
            recipe.measured(original_context_tokens), run.fetch(base), run.fetch(shards),
            original_context_tokens,
        )  # fmt: skip


def _measured(section: Evaluate, model: BaseModel | Checkpoint, *others: Any) -> str:
    """shipped:base512; yarn ×4, trained; yarn ×4, zero-shot."""
    patched = next((one[0] for one in others if isinstance(one, list | tuple) and one), None)
    if isinstance(model, Checkpoint):
        return f"{model.method} ×{model.factor:g}, trained"
    return f"{patched.method} ×{patched.factor:g}, zero-shot" if patched else one_line(model.source)


@stage("evaluate", version=VERSION, of=_measured)
def evaluate(
    context: StageContext,
    section: Evaluate,
    model: BaseModel | Checkpoint,
    shards: ShardSet,
    original_context_tokens: int,
    target_context_tokens: int | None = None,
    patched: Sequence[PatchedModel] = (),
) -> Scorecard:
    """Scores at every length, and with a suite how far the model sees and uses.

    patched: the config that the model is read by, if not its own. Cells that the registry knows are not
    measured again. Where the settings name more grid workers than one, others help with a suite: not with the
    device of this run.
    """
    from yarn_ops.evals.measure import EvaluationRequest
    from yarn_ops.evals.measure import evaluate as measured

    run = context.run
    asked = EvaluationRequest(
        section, context.fetch(model), context.fetch(shards), original_context_tokens,
        target_context_tokens, context.fetch(patched[0]) if patched else None,
    )  # fmt: skip
    shared = None
    if target_context_tokens is not None:
        shared = Shared(
            run_id=run.id, attempt=run.attempts, key=context.key, section=section, model=model,
            shards=shards, original_context_tokens=original_context_tokens,
            target_context_tokens=target_context_tokens,
        )  # fmt: skip
    with context.alone_on("device"), worker_of(context) as worker, helped(run, shared):
        return measured(asked, context.out, worker)


@stage("gate", version=1)
def judge(
    context: StageContext, gate: Gate, scores: BeforeAfter[Scorecard], target_context_tokens: int
) -> Verdict:
    """Whether the result may be promoted, and why."""
    from yarn_ops.evals import gate as gates

    return gates.judge(gate, scores, target_context_tokens)


@stage("leg-gate", version=1)
def judge_leg(
    context: StageContext, gate: LegGate, scores: BeforeAfter[Scorecard], leg_context_tokens: int
) -> Verdict:
    """Whether the next leg may begin, and why."""
    from yarn_ops.evals import gate as gates

    return gates.judge(gate.at_target(), scores, leg_context_tokens)


@stage("fit", version=2)
def search(
    context: StageContext,
    section: Evaluate,
    rope: Rope,
    method: FittedMethod,
    base: BaseModel,
    shards: ShardSet,
) -> Fit:
    """Parameters of a RoPE method, searched on held-out documents and verified on others."""
    from yarn_ops import fit as fitting

    device, read = context.run.device.kind, (context.fetch(base), context.fetch(shards))
    with context.alone_on("device"):
        return fitting.fit(
            section, rope, method, *read,
            device=device, precision=resolve_dtype("auto", device), progress=context.report,
        )  # fmt: skip


@stage("compare", version=3)
def rank(
    context: StageContext,
    gate: Gate,
    before: Scorecard,
    names: list[str],
    scores: list[Scorecard],
    trained_parameters: list[int],
    target_context_tokens: int,
) -> Comparison:
    """Every arm judged, in one table and one picture."""
    from yarn_ops.evals.report import comparison as comparisons

    entries = [
        comparisons.Entry(method, arm, card, trained)
        for (method, arm), card, trained in zip(
            (name.split(" ") for name in names), scores, trained_parameters, strict=True
        )
    ]
    return comparisons.compare(gate, before, entries, target_context_tokens, context.out)
