"""What a person is shown of a run, and the version that is registered."""

from __future__ import annotations

from flows.tasks import Bench, stage
from flows.workshop import Workshop, git_commit
from yarn_ops.catalogue import DIGEST_TAG
from yarn_ops.recipe import (
    Publish,
    Recipe,
)
from yarn_ops.records import (
    Adapter,
    BaseModel,
    Checkpoint,
    Local,
    PatchedModel,
    Release,
    Report,
    Scorecard,
    ShardSet,
    Verdict,
)
from yarn_ops.store.trees import compose_tree


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
    tree = compose_tree(shop.store, checkpoint.tree, {reports.CARD: card}, target)
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
        DIGEST_TAG: tree.digest,
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
