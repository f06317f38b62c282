"""Scores of a model, and what is judged by them."""

from __future__ import annotations

from flows.grid import Shared, helped
from flows.tasks import Bench, stage
from yarn_ops.evals.suite.version import VERSION as SUITE_VERSION
from yarn_ops.models.device import resolve_dtype
from yarn_ops.recipe import (
    Evaluate,
    FittedMethod,
    Gate,
    LegGate,
    Rope,
    SuiteName,
)
from yarn_ops.records import (
    BaseModel,
    Checkpoint,
    Comparison,
    Fit,
    Local,
    PatchedModel,
    Scorecard,
    ShardSet,
    Verdict,
)
from yarn_ops.registry.measurements import open_measurements


@stage("evaluate", version=2, alone_on="device")
def evaluate(
    bench: Bench,
    section: Evaluate,
    model: Local[BaseModel] | Local[Checkpoint],
    shards: Local[ShardSet],
    original_context_tokens: int,
    patched: tuple[Local[PatchedModel], ...] = (),
) -> Scorecard:
    """Perplexity and recall at every length."""
    return _measured(bench, section, model, shards, original_context_tokens, patched)


@stage("leg-evaluate", version=1, alone_on="device")
def evaluate_leg(
    bench: Bench,
    section: Evaluate,
    model: Local[Checkpoint],
    shards: Local[ShardSet],
    original_context_tokens: int,
) -> Scorecard:
    """What a leg's gate asks about."""
    return _measured(bench, section, model, shards, original_context_tokens)


def _measured(
    bench: Bench,
    section: Evaluate,
    model: Local[BaseModel] | Local[Checkpoint],
    shards: Local[ShardSet],
    original_context_tokens: int,
    patched: tuple[Local[PatchedModel], ...] = (),
) -> Scorecard:
    from yarn_ops.evals import evaluate as evaluation

    return evaluation.evaluate(
        section,
        model,
        shards,
        bench.out,
        original_context_tokens=original_context_tokens,
        device=bench.shop.device,
        dtype=resolve_dtype("auto", bench.shop.device),
        report=bench.report,
        patched=patched[0] if patched else None,
    )


@stage("suite", version=SUITE_VERSION, alone_on="device")
def suite(
    bench: Bench,
    name: SuiteName,
    seed: int,
    model: Local[BaseModel] | Local[Checkpoint],
    shards: Local[ShardSet],
    longest_tokens: int,
    original_context_tokens: int,
) -> Scorecard:
    """How far the model sees and uses; cells that the registry knows are not measured again.

    Where the settings name more grid workers than one, others help: not with the device of this run.
    """
    from yarn_ops.evals.capacity.stage import measure_capacity

    shop = bench.shop
    shared = Shared(
        run_id=shop.run.id, attempt=shop.run.attempts, key=bench.key, suite=name, seed=seed,
        model=model.record, shards=shards.record, longest_tokens=longest_tokens,
        original_context_tokens=original_context_tokens,
    )  # fmt: skip
    measurements = open_measurements(shop.settings.database, shop.settings.lease_s)
    try:
        with helped(shop, shared):
            return measure_capacity(
                name,
                seed,
                model,
                shards,
                longest_tokens,
                bench.out,
                original_context_tokens=original_context_tokens,
                device=shop.device,
                precision=resolve_dtype("auto", shop.device),
                journal=measurements,
                report=bench.report_or_stop,
            )
    finally:
        measurements.close()


@stage("gate", version=1)
def judge(
    bench: Bench, gate: Gate, before: Scorecard, after: Scorecard, target_context_tokens: int
) -> Verdict:
    """Whether the result may be promoted, and why."""
    return _judged(gate, before, after, target_context_tokens)


@stage("leg-gate", version=1)
def judge_leg(
    bench: Bench, gate: LegGate, before: Scorecard, after: Scorecard, leg_context_tokens: int
) -> Verdict:
    """Whether the next leg may begin, and why."""
    return _judged(gate.at_target(), before, after, leg_context_tokens)


def _judged(gate: Gate, before: Scorecard, after: Scorecard, target_context_tokens: int) -> Verdict:
    from yarn_ops.evals import gate as gates

    return gates.judge(
        gate,
        before,
        after,
        original_context_tokens=before.original_context_tokens,
        target_context_tokens=target_context_tokens,
    )


@stage("fit", version=1, alone_on="device")
def search(
    bench: Bench,
    section: Evaluate,
    rope: Rope,
    method: FittedMethod,
    base: Local[BaseModel],
    shards: Local[ShardSet],
) -> Fit:
    """Parameters of a RoPE method, searched on held-out documents and verified on others."""
    from yarn_ops.evals import fit as fitting

    return fitting.fit(
        section,
        rope,
        method,
        base,
        shards,
        device=bench.shop.device,
        dtype=resolve_dtype("auto", bench.shop.device),
        report=bench.report,
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
    from yarn_ops.evals import comparison as comparisons

    entries = [
        comparisons.Entry(method, arm, card, trained)
        for (method, arm), card, trained in zip(
            (name.split(" ") for name in names), scores, trained_parameters, strict=True
        )
    ]
    return comparisons.compare(gate, before, entries, bench.out)
