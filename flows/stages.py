"""The stages of an extension: which plain function does the work of each, and what it is given.

What needs torch is imported by the stages that compute with it: a run that only reuses starts without.
"""

from __future__ import annotations

import os

from prefect import get_run_logger

from flows.tasks import Bench, observation, stage
from flows.workshop import Workshop, git_commit
from yarn_ops import bases
from yarn_ops.data import corpus as corpora
from yarn_ops.data import shards as tokenised
from yarn_ops.errors import LeaseLost
from yarn_ops.evals.suite.version import VERSION as SUITE_VERSION
from yarn_ops.recipe import (
    Base,
    Data,
    Evaluate,
    FittedMethod,
    Gate,
    Publish,
    Recipe,
    Rope,
    Stage,
    StageGate,
    SuiteName,
    Train,
)
from yarn_ops.records import (
    Adapter,
    BaseModel,
    Checkpoint,
    Comparison,
    Corpus,
    Fit,
    Local,
    PatchedModel,
    Rehearsal,
    Release,
    Report,
    Scorecard,
    ShardSet,
    Verdict,
)
from yarn_ops.registry.measurements import open_measurements
from yarn_ops.store.trees import compose_tree
from yarn_ops.train import launch
from yarn_ops.train.events import Event
from yarn_ops.train.job import Job
from yarn_ops.train.precision import resolve_dtype


@observation("base")
def fetch_base(bench: Bench, base: Base) -> BaseModel:
    """The base model, checked, in the store."""
    record, bench.out = bases.fetch_base(
        base,
        cache=bench.shop.settings.home / "cache",
        store_options=bench.shop.store_options,
        find_release=bench.shop.tracking.source_of,
    )
    return record


@observation("documents")
def survey(bench: Bench, data: Data) -> Corpus:
    """Which source files there are, fingerprinted."""
    return corpora.survey(data, bench.shop.files, bench.out)


@stage("shards", version=1)
def prepare(bench: Bench, data: Data, corpus: Local[Corpus], base: Local[BaseModel]) -> ShardSet:
    """Tokenised documents, split into train and held-out."""
    return tokenised.prepare(
        data,
        corpus,
        base,
        bench.out,
        files=bench.shop.files,
        report=bench.report,
        workers=os.cpu_count() or 1,
    )


@stage("patch", version=1)
def patch(bench: Bench, rope: Rope, leg: Stage, base: Local[BaseModel]) -> PatchedModel:
    """Config and tokenizer rewritten for this leg's factor, and proven."""
    from yarn_ops.rope import patch as patching

    return patching.patch(rope, base, bench.out, factor=leg.factor or 1.0)


@stage("rehearse", version=1)
def rehearse(
    bench: Bench, section: Train, legs: tuple[Stage, ...], patched: Local[PatchedModel], shards: ShardSet
) -> Rehearsal:
    """What is wrong with training and merging as asked, told before the base is measured."""
    from yarn_ops.train import rehearsal

    return rehearsal.rehearse(section, legs, patched, shards, device=bench.shop.device)


@stage("train", version=1, alone_on="device")
def train(
    bench: Bench,
    section: Train,
    leg: Stage,
    data: Data,
    base: Local[BaseModel] | Local[Checkpoint],
    patched: Local[PatchedModel],
    shards: Local[ShardSet],
    previous: tuple[Local[Adapter], ...],
    earlier_steps: int,
    keep_optimizer: bool,
) -> Adapter:
    """LoRA (or all parameters) in a process of its own; its losses go to MLflow while it runs.

    `earlier_steps`: of the legs before, wherever they are: where this leg's losses begin in MLflow.
    """
    shop = bench.shop
    job = Job(
        train=section,
        leg=leg,
        data=data,
        base_dir=base.path,
        patched_dir=patched.path,
        shards_dir=shards.path,
        previous_dir=previous[0].path if previous else None,
        keep_optimizer=keep_optimizer,
        out_dir=bench.out,
        work_dir=bench.work,
        device=shop.settings.device,
        threads=os.cpu_count() or 1,
    )

    def on_event(event: Event) -> None:
        if event["event"] == "step":
            if event["step"] == 1:
                get_run_logger().info("step 1 of %d, loss %.3f", event["steps"], event["loss"])
            shop.log_training_step(event, earlier_steps)
            bench.report(event["step"], event["steps"], f"loss {event['loss']:.3f}")

    return launch.run_trainer(job, on_event=on_event, should_stop=bench.lost)


@stage("merge", version=1, alone_on="gpu")
def merge(
    bench: Bench,
    base: Local[BaseModel] | Local[Checkpoint],
    patched: Local[PatchedModel],
    adapter: Local[Adapter],
    shards: Local[ShardSet],
) -> Checkpoint:
    """Base and adapter merged once, in bfloat16, and compared with the unmerged."""
    from yarn_ops.train import merge as merging

    return merging.merge(
        base, patched, adapter, shards, bench.out, device=bench.shop.device, report=bench.report
    )


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
    """How far the model sees and uses; cells that the registry knows are not measured again."""
    from yarn_ops.evals.capacity.stage import measure_capacity

    def report(done: int, total: int, note: str) -> None:
        if bench.lost():
            raise LeaseLost(f"suite: its lease is gone before {note}; what was measured is kept")
        bench.report(done, total, note)

    measurements = open_measurements(bench.shop.settings.database)
    try:
        return measure_capacity(
            name,
            seed,
            model,
            shards,
            longest_tokens,
            bench.out,
            original_context_tokens=original_context_tokens,
            device=bench.shop.device,
            precision=resolve_dtype("auto", bench.shop.device),
            journal=measurements,
            report=report,
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
    bench: Bench, gate: StageGate, before: Scorecard, after: Scorecard, leg_context_tokens: int
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


@stage("capacity", version=1)
def chart(
    bench: Bench,
    names: tuple[str, ...],
    cards: tuple[Scorecard, ...],
    suites: tuple[Local[Scorecard], ...],
    context_tokens: tuple[int, ...],
) -> Report:
    """The capacity page and its picture: of the model under test, then of its base."""
    from yarn_ops.evals import report as reports

    return reports.capacity_report(reports.capacities(names, cards, suites, context_tokens), bench.out)


@stage("report", version=4)
def draw(
    bench: Bench,
    recipe: Recipe,
    base: BaseModel,
    shards: ShardSet,
    patched: PatchedModel,
    adapters: tuple[Local[Adapter], ...],
    checkpoint: Checkpoint,
    before: Scorecard,
    after: Scorecard,
    verdict: Verdict,
    suites: tuple[Local[Scorecard], ...],
) -> Report:
    """Pictures, the capacity page and the model card. suites: of the result, then of the base, or none."""
    from yarn_ops.evals import report as reports
    from yarn_ops.evals.card import Extension
    from yarn_ops.train.lora import read_losses

    extension = Extension(
        name=recipe.publish.name,
        data=recipe.data,
        training=recipe.train,
        base=base,
        shards=shards,
        patched=patched,
        adapter=adapters[-1].record,
        checkpoint=checkpoint,
        before=before,
        after=after,
        verdict=verdict,
        capacities=reports.capacities(
            (recipe.publish.name, "base"), (after, before), suites,
            (checkpoint.context_tokens, base.context_tokens),
        ),
    )  # fmt: skip
    losses = [loss for adapter in adapters for loss in read_losses(adapter.path)]
    return reports.report(extension, list(enumerate(losses, start=1)), bench.out)


@stage("publish", version=1)
def publish(
    bench: Bench,
    section: Publish,
    base: BaseModel,
    checkpoint: Checkpoint,
    before: Scorecard,
    after: Scorecard,
    verdict: Verdict,
    report: Local[Report],
) -> Release:
    """One model version in MLflow; the alias moves only when the gate passed."""
    from yarn_ops.evals import report as reports

    shop, tracking, run_id = bench.shop, bench.shop.tracking, bench.shop.mlflow_run_id
    card = (report.path / reports.CARD).read_bytes()
    target = f"{tracking.artifact_uri(run_id)}/model"
    assert checkpoint.tree is not None
    compose_tree(shop.store, checkpoint.tree, {reports.CARD: card}, target)
    log_scores(shop, before, after)
    for name in (*report.record.pictures, *report.record.pages):
        tracking.log_picture(run_id, report.path / name)
    gate = "passed" if verdict.passed else "failed"
    tags = {
        **section.tags,
        "context_length": str(checkpoint.context_tokens),
        "original_context_length": str(checkpoint.original_context_tokens),
        "rope_method": checkpoint.method,
        "factor": f"{checkpoint.factor:g}",
        "base": base.source,
        "recipe": shop.recipe.digest(),
        "run": shop.run.id,
        "gate": gate,
        "git_commit": git_commit() or "unknown",
    }
    version = tracking.register(section.name, target, run_id, tags, verdict.reasons)
    if verdict.passed:
        tracking.move_alias(section.name, section.alias, version)
    return Release(
        name=section.name,
        version=version,
        mlflow_run_id=run_id,
        gate=gate,
        alias=section.alias if verdict.passed else None,
        tags=tags,
    )


def log_scores(shop: Workshop, before: Scorecard, after: Scorecard) -> None:
    """All scores of base and result as MLflow metrics, how far each sees and uses among them."""
    metrics = score_metrics(before, "before") | score_metrics(after, "after")
    shop.tracking.log_metrics(shop.mlflow_run_id, 0, metrics)


def score_metrics(card: Scorecard, when: str) -> dict[str, float]:
    """{task/tokens/when: value} of a scorecard's scores over all depths; {capacity/uses/when: tokens}."""
    from yarn_ops.evals.gate import with_capacity

    return {
        f"{score.task}/{when}"
        if score.task.startswith("capacity/")
        else f"{score.task}/{score.context_tokens}/{when}": score.value
        for score in with_capacity(card).scores
        if score.depth is None
    }
