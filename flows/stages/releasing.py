"""What a person is shown of a run, and the version that is registered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from flows.tasks import Bench, stage
from flows.workshop import Workshop, git_commit
from yarn_ops.bars import Report as Told
from yarn_ops.catalogue import DIGEST_TAG
from yarn_ops.recipe import (
    Publish,
    Recipe,
)
from yarn_ops.records import (
    CARD,
    Adapter,
    BaseModel,
    Checkpoint,
    Local,
    PatchedModel,
    Release,
    Report,
    Score,
    Scorecard,
    ShardSet,
    Verdict,
)
from yarn_ops.release import PICTURES
from yarn_ops.store.trees import compose_tree
from yarn_ops.upkeep import UNFINISHED

UNREGISTERED = 0
"""version number of a release that MLflow was not told of yet"""


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


def mend_release(
    shop: Workshop,
    release: Release,
    section: Publish,
    base: BaseModel,
    checkpoint: Checkpoint,
    before: Scorecard,
    after: Scorecard,
    verdict: Verdict,
    report: Report,
) -> Release:
    """A finished publication as store and MLflow have it, with what is missing there made good.

    What somebody has changed since stays: other tags, another description, an alias that names another
    version, or none while a newer version passed. A run that was deleted in MLflow is replaced by this one.
    """
    if shop.tracking.run(release.mlflow_run_id) is None:
        tags = {**release.tags, "run": shop.run.id}
        release = release.model_copy(update={"mlflow_run_id": shop.mlflow_run_id, "tags": tags})
    with shop.progress.of("publish") as told:
        made = _brought_about(shop, release, checkpoint, before, after, verdict, shop.fetch(report), told)
    versions = [one for one in shop.tracking.models() if one.name == made.name]
    holder = next((one.version for one in versions if made.alias in one.aliases), None)
    overtaken = any(one.version > made.version and one.passed for one in versions)
    if (
        made.alias is not None
        and holder in (None, release.version)
        and holder != made.version
        and not overtaken
    ):
        shop.tracking.move_alias(made.name, made.alias, made.version)
    return made


@stage("publish", version=1, mend=mend_release)
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
    shop = bench.shop
    gate: Literal["passed", "failed"] = "passed" if verdict.passed else "failed"
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
    asked = Release(
        name=section.name,
        version=UNREGISTERED,
        mlflow_run_id=shop.mlflow_run_id,
        gate=gate,
        alias=section.alias if verdict.passed else None,
        tags=tags,
    )
    release = _brought_about(shop, asked, checkpoint, before, after, verdict, report, bench.report)
    if release.alias is not None:
        shop.tracking.move_alias(release.name, release.alias, release.version)
    return release


def _brought_about(
    shop: Workshop,
    release: Release,
    checkpoint: Checkpoint,
    before: Scorecard,
    after: Scorecard,
    verdict: Verdict,
    report: Local[Report],
    told: Told,
) -> Release:
    """The release with its directory verified, its figures and pictures in MLflow, and its version there.

    What is there already stays as it is.
    """
    tracking, run_id = shop.tracking, release.mlflow_run_id
    artifacts = tracking.artifact_uri(run_id)
    card = (report.path / CARD).read_bytes()
    target = f"{artifacts}/model"
    assert checkpoint.tree is not None
    tree = compose_tree(shop.store, checkpoint.tree, {CARD: card}, target, report=told)
    log_scores(shop, run_id, before, after)
    for name in (*report.record.pictures, *report.record.pages):
        kept = shop.store.find(shop.store.key_of(f"{artifacts}/{PICTURES}/{name}"))
        if kept != (report.path / name).read_bytes():
            tracking.log_picture(run_id, report.path / name)
    tags, description = {**release.tags, DIGEST_TAG: tree.digest}, verdict.reasons
    release = release.model_copy(update={"tags": tags})
    for found in tracking.models():
        if (found.name, found.mlflow_run_id, found.version) == (release.name, run_id, release.version):
            changed = {tag: value for tag, value in found.tags.items() if value != UNFINISHED}
            tags = {**tags, **changed, DIGEST_TAG: tree.digest}
            description = found.description or description
            if (found.tags, found.description, found.source) == (tags, description, target):
                return release
    version = tracking.register(release.name, target, run_id, tags, description)
    return release.model_copy(update={"version": version})


def log_scores(shop: Workshop, mlflow_run_id: str, before: Scorecard, after: Scorecard) -> None:
    """All scores of base and result as MLflow metrics, how far each sees and uses among them; each once."""
    run = shop.tracking.run(mlflow_run_id)
    logged = {} if run is None else run.metrics
    measured = _figures(before.scores, "before") | _figures(after.scores, "after")
    if not measured.items() <= logged.items():
        metrics = score_metrics(before, "before") | score_metrics(after, "after")
        shop.tracking.log_metrics(mlflow_run_id, 0, metrics)


def score_metrics(card: Scorecard, when: str) -> dict[str, float]:
    """{task/tokens/when: value} of a scorecard's scores over all depths; {capacity/uses/when: tokens}."""
    from yarn_ops.evals.gate import with_capacity  # torch: not for a run that only reuses

    return _figures(with_capacity(card).scores, when)


def _figures(scores: Iterable[Score], when: str) -> dict[str, float]:
    return {
        f"{score.task}/{when}"
        if score.task.startswith("capacity/")
        else f"{score.task}/{score.context_tokens}/{when}": score.value
        for score in scores
        if score.depth is None
    }
