"""Scores of a model, and what is judged by them."""

from __future__ import annotations

from flows.grid import Shared, helped, worker_of
from flows.tasks import Bench, stage
from yarn_ops.evals import VERSION
from yarn_ops.models.device import resolve_dtype
from yarn_ops.recipe import (
    Evaluate,
    FittedMethod,
    Gate,
    LegGate,
    Recipe,
    Rope,
)
from yarn_ops.records import (
    BaseModel,
    BeforeAfter,
    Checkpoint,
    Comparison,
    Fit,
    Local,
    PatchedModel,
    Scorecard,
    ShardSet,
    Verdict,
)


def score(
    recipe: Recipe, model: BaseModel | Checkpoint, shards: ShardSet, original_context_tokens: int
) -> Scorecard:
    """Measure a model as the recipe says; a suite reaches to the recipe's target."""
    target = None
    if recipe.evaluate.suite != "none":
        target = round(recipe.rope.resolve_factor(original_context_tokens) * original_context_tokens)
    return evaluate(recipe.evaluate, model, shards, original_context_tokens, target)


@stage("evaluate", version=VERSION, alone_on="device")
def evaluate(
    bench: Bench,
    section: Evaluate,
    model: Local[BaseModel] | Local[Checkpoint],
    shards: Local[ShardSet],
    original_context_tokens: int,
    target_context_tokens: int | None = None,
    patched: tuple[Local[PatchedModel], ...] = (),
) -> Scorecard:
    """Scores at every length, and with a suite how far the model sees and uses.

    Cells that the registry knows are not measured again. Where the settings name more grid workers than one,
    others help with a suite: not with the device of this run.
    """
    from yarn_ops.evals.measure import EvaluationRequest
    from yarn_ops.evals.measure import evaluate as measured

    read_by = patched[0] if patched else None
    asked = EvaluationRequest(section, model, shards, original_context_tokens, target_context_tokens, read_by)
    shared = None
    if target_context_tokens is not None:
        shared = Shared(
            run_id=bench.shop.run.id, attempt=bench.shop.run.attempts, key=bench.key, section=section,
            model=model.record, shards=shards.record, original_context_tokens=original_context_tokens,
            target_context_tokens=target_context_tokens,
        )  # fmt: skip
    with worker_of(bench) as worker, helped(bench.shop, shared):
        return measured(asked, bench.out, worker)


@stage("gate", version=1)
def judge(bench: Bench, gate: Gate, scores: BeforeAfter[Scorecard], target_context_tokens: int) -> Verdict:
    """Whether the result may be promoted, and why."""
    from yarn_ops.evals import gate as gates

    return gates.judge(gate, scores, target_context_tokens)


@stage("leg-gate", version=1)
def judge_leg(
    bench: Bench, gate: LegGate, scores: BeforeAfter[Scorecard], leg_context_tokens: int
) -> Verdict:
    """Whether the next leg may begin, and why."""
    from yarn_ops.evals import gate as gates

    return gates.judge(gate.at_target(), scores, leg_context_tokens)


@stage("fit", version=2, alone_on="device")
def search(
    bench: Bench,
    section: Evaluate,
    rope: Rope,
    method: FittedMethod,
    base: Local[BaseModel],
    shards: Local[ShardSet],
) -> Fit:
    """Parameters of a RoPE method, searched on held-out documents and verified on others."""
    from yarn_ops import fit as fitting

    return fitting.fit(
        section,
        rope,
        method,
        base,
        shards,
        device=bench.shop.device,
        precision=resolve_dtype("auto", bench.shop.device),
        progress=bench.report,
    )


@stage("compare", version=2)
def rank(
    bench: Bench,
    gate: Gate,
    before: Scorecard,
    names: list[str],
    scores: list[Scorecard],
    trained_parameters: list[int],
) -> Comparison:
    """Every arm judged, in one table and one picture."""
    from yarn_ops.evals.report import comparison as comparisons

    entries = [
        comparisons.Entry(method, arm, card, trained)
        for (method, arm), card, trained in zip(
            (name.split(" ") for name in names), scores, trained_parameters, strict=True
        )
    ]
    return comparisons.compare(gate, before, entries, bench.out)
