"""What a person is shown of a run, and the version that is registered."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from flows.mlflow_run import git_commit
from flows.run import RunContext
from flows.tasks import StageContext, stage
from yarn_ops.catalogue import APPROVAL_TAG, DIGEST_TAG
from yarn_ops.digests import digest_of
from yarn_ops.errors import ClaimError, ServingError
from yarn_ops.evals import VERSION
from yarn_ops.evals.names import LAST_QUARTER, NEEDLES, RECALL, SEES, USES
from yarn_ops.evals.report.verdict import GLANCE, as_markdown
from yarn_ops.progress import OnProgress
from yarn_ops.recipe import Publish, Recipe
from yarn_ops.records import (
    CARD,
    CLAIM,
    FINGERPRINT,
    Adapter,
    BaseModel,
    Checkpoint,
    PatchedModel,
    Release,
    Report,
    ServingReference,
    ShardSet,
)
from yarn_ops.release import PICTURES
from yarn_ops.scores import BeforeAfter, Scorecard, Verdict
from yarn_ops.store.keys import join
from yarn_ops.store.manifest import Manifest
from yarn_ops.store.trees import compose_tree
from yarn_ops.upkeep import UNFINISHED

CURVES = (LAST_QUARTER, *RECALL, *NEEDLES)
"""scores that MLflow draws over tokens"""
UNREGISTERED = 0
"""version number of a release that MLflow was not told of yet"""


@stage("capacity", version=2)
def chart(context: StageContext, name: str, scores: BeforeAfter[Scorecard]) -> Report:
    """The capacity page and its picture: of the model under test, then of its base."""
    from yarn_ops.evals.capacity import read_capacity
    from yarn_ops.evals.report.write import write_capacity_report

    after, before = context.fetch(scores.after), context.fetch(scores.before)
    models = [read_capacity(after.path, name), read_capacity(before.path, "base")]
    return write_capacity_report(models, context.out)


@stage("report", version=8)
def draw(
    context: StageContext,
    recipe: Recipe,
    base: BaseModel,
    shards: ShardSet,
    patched: PatchedModel,
    adapters: Sequence[Adapter],
    checkpoint: Checkpoint,
    scores: BeforeAfter[Scorecard],
    verdict: Verdict,
    language: str = "en",
) -> Report:
    """Pictures, the capacity page and the model card, whose verdict card is in this language."""
    from yarn_ops.evals.capacity import read_capacity
    from yarn_ops.evals.report.card import Extension
    from yarn_ops.evals.report.write import write_report
    from yarn_ops.train.lora import read_losses

    extension = Extension(
        recipe=recipe,
        language=language,
        base=base,
        shards=shards,
        patched=patched,
        adapters=tuple(adapters),
        checkpoint=checkpoint,
        scores=scores,
        verdict=verdict,
        capacities=BeforeAfter(
            read_capacity(context.fetch(scores.before).path, "base"),
            read_capacity(context.fetch(scores.after).path, recipe.publish.name),
        ),
    )
    losses = [loss for adapter in adapters for loss in read_losses(context.fetch(adapter).path)]
    return write_report(extension, list(enumerate(losses, start=1)), context.out)


@stage("fingerprint", version=2)
def take_fingerprint(context: StageContext, checkpoint: Checkpoint) -> ServingReference:
    """What serve-check compares a server's answers with: of the model, of its faults, of rounded weights."""
    from yarn_ops.serving.measure import make_fingerprint

    model = context.fetch(checkpoint).path
    try:
        with context.alone_on("device"):
            made = make_fingerprint(model, device=context.run.device.kind, report=context.report)
    except ServingError as error:
        raise ServingError(
            f"{error}; set publish.fingerprint=false and run again: all that was trained is kept"
        ) from None
    (context.out / FINGERPRINT).write_bytes(made.to_bytes())
    return ServingReference(texts=len(made.probes), faults=len(made.states) - 1)


@dataclass(frozen=True)
class Publication:
    """What a release is made of."""

    base: BaseModel
    shards: ShardSet
    checkpoint: Checkpoint
    scores: BeforeAfter[Scorecard]
    verdict: Verdict
    report: Report
    reference: ServingReference | None = None


def mend_release(run: RunContext, release: Release, section: Publish, *parts: Any) -> Release:
    """A finished publication as store and MLflow have it, with what is missing there made good.

    parts: of a `Publication`, as `publish` takes them.
    What somebody has changed since stays: other tags, another description, an alias that names another
    version, or none while a newer version passed. A run that was deleted in MLflow is replaced by this one.
    """
    if run.services.tracking.run(release.mlflow_run_id) is None:
        tags = {**release.tags, "run": run.id}
        release = release.model_copy(update={"mlflow_run_id": run.mlflow.id, "tags": tags})
    with run.progress.of("publish") as progress:
        made = bring_about(run, release, Publication(*parts), progress)
    versions = [one for one in run.services.tracking.models() if one.name == made.name]
    holder = next((one.version for one in versions if made.alias in one.aliases), None)
    overtaken = any(one.version > made.version and one.passed for one in versions)
    free = holder in (None, release.version) and holder != made.version
    if made.alias is not None and free and not overtaken:
        run.services.tracking.move_alias(made.name, made.alias, made.version)
    return made


@stage("publish", version=1, mend=mend_release)
def publish(
    context: StageContext,
    section: Publish,
    base: BaseModel,
    shards: ShardSet,
    checkpoint: Checkpoint,
    scores: BeforeAfter[Scorecard],
    verdict: Verdict,
    report: Report,
    reference: ServingReference | None = None,
) -> Release:
    """One model version in MLflow; the alias moves only when the gate passed and no person has to approve."""
    run = context.run
    gate: Literal["passed", "failed"] = "passed" if verdict.passed else "failed"
    tags = {
        **section.tags,
        "context_length": str(checkpoint.context_tokens),
        "original_context_length": str(checkpoint.original_context_tokens),
        "rope_method": checkpoint.method,
        "factor": f"{checkpoint.factor:g}",
        "base": base.source,
        "recipe": run.recipe.digest(),
        "run": run.id,
        "gate": gate,
        "git_commit": git_commit() or "unknown",
    }
    if verdict.passed and section.approval:
        tags[APPROVAL_TAG] = "pending"
    asked = Release(
        name=section.name,
        version=UNREGISTERED,
        mlflow_run_id=run.mlflow.id,
        gate=gate,
        alias=section.alias if verdict.passed and not section.approval else None,
        tags=tags,
    )
    parts = Publication(base, shards, checkpoint, scores, verdict, report, reference)
    release = bring_about(run, asked, parts, context.report)
    if release.alias is not None:
        run.services.tracking.move_alias(release.name, release.alias, release.version)
    return release


def bring_about(run: RunContext, release: Release, parts: Publication, progress: OnProgress) -> Release:
    """The release with its directory verified, its figures and pictures in MLflow, and its version there.

    What is there already stays as it is.
    """
    tracking, run_id = run.services.tracking, release.mlflow_run_id
    artifacts = tracking.artifact_uri(run_id)
    verdict, report = parts.verdict, run.fetch(parts.report)
    shown = (CARD, *report.record.pictures, *report.record.pages)
    files = {name: (report.path / name).read_bytes() for name in shown}
    beside = {name: files[name] for name in (CARD, *report.record.pictures) if name != GLANCE}
    if parts.reference is not None:
        beside[FINGERPRINT] = (run.fetch(parts.reference).path / FINGERPRINT).read_bytes()
    target, tree = f"{artifacts}/model", parts.checkpoint.tree
    assert tree is not None
    tree = compose_tree(
        run.services.store, tree, beside, target,
        seal=lambda manifest: _signed(run, release.name, parts, target, manifest), report=progress,
    )  # fmt: skip
    log_scores(run, run_id, parts.scores)
    for name in (*report.record.pictures, *report.record.pages):
        kept = run.services.store.find(run.services.store.key_of(f"{artifacts}/{PICTURES}/{name}"))
        if kept != files[name]:
            tracking.log_picture(run_id, report.path / name)
    tags = {**release.tags, DIGEST_TAG: tree.digest}
    description = verdict.reasons
    if report.record.verdict:
        card = as_markdown(report.record.verdict, run.settings.language)
        description = f"{card}\n\n{run.mlflow.shown_with(run_id)}".rstrip()
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


def _signed(
    run: RunContext, name: str, parts: Publication, target: str, manifest: Manifest
) -> dict[str, bytes]:
    """The release's claim, where the settings name a key. One that is there already, and fits, stays."""
    store, path = run.services.store, run.settings.signing_key
    there = store.find(join(store.key_of(target), CLAIM))
    if path is None and there is None:
        return {}
    from yarn_ops import claim as claims

    key = None if path is None else claims.read_signing_key(path)
    files = {name: entry.sha256 for name, entry in manifest.files.items()}
    if there is not None:
        with suppress(ClaimError):
            claims.require_signed_files(
                claims.read_claim(there, None if key is None else key.public_key(), target), files, target
            )
            return {CLAIM: there}
    if key is None:
        return {}
    from yarn_ops.evals.gate import with_capacity

    after, checkpoint = with_capacity(parts.scores.after), parts.checkpoint
    sees, uses = (
        next((claims.Reached.of(score) for score in after.by_length(task)[-1:]), None)
        for task in (SEES, USES)
    )
    claim = claims.Claim(
        model=name,
        base=parts.base.source,
        method=checkpoint.method,
        factor=checkpoint.factor,
        original_context_tokens=checkpoint.original_context_tokens,
        target_context_tokens=checkpoint.context_tokens,
        sees=sees,
        uses=uses,
        evaluation_version=VERSION,
        suite=run.recipe.evaluate.suite,
        protocol=digest_of(run.recipe.evaluate.model_dump(mode="json")),
        data=parts.shards.digest,
        passed=parts.verdict.passed,
        checks=parts.verdict.checks,
    )
    return {CLAIM: claims.sign_claim(key, claim, files)}


def log_scores(run: RunContext, mlflow_run_id: str, scores: BeforeAfter[Scorecard]) -> None:
    """In MLflow: five figures at a glance, curves over tokens, and every score in scores.json; each once."""
    from yarn_ops.evals.gate import with_capacity  # torch: not for a run that only reuses

    there = run.services.tracking.run(mlflow_run_id)
    logged = {} if there is None else there.metrics
    if curves(scores)[0].items() <= logged.items():
        return
    before, after = map(with_capacity, scores)
    points = curves(BeforeAfter(before, after))[1]
    tracking = run.services.tracking
    for tokens, values in points.items():
        tracking.log_metrics(mlflow_run_id, tokens, values)
    tracking.log_metrics(mlflow_run_id, 0, headline(before, after))
    rows = {name: [score.model_dump(mode="json", exclude={"items"}) for score in card.scores]
            for name, card in (("before", before), ("after", after))}  # fmt: skip
    tracking.log_text(mlflow_run_id, json.dumps(rows, indent=1), "scores.json")


def curves(scores: BeforeAfter[Scorecard]) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
    """Perplexity and found answers by length: {name: its value at the longest}, {tokens: {name: value}}."""
    latest: dict[str, float] = {}
    points: defaultdict[int, dict[str, float]] = defaultdict(dict)
    for when, card in scores._asdict().items():
        for task in CURVES:
            for score in card.by_length(task):
                latest[f"{task}/{when}"] = points[score.context_tokens][f"{task}/{when}"] = score.value
    return latest, points


def headline(before: Scorecard, after: Scorecard) -> dict[str, float]:
    """Of the result: how far it sees and uses, its perplexity at the longest length and its best recall
    there; and its perplexity / the base's at the original context."""
    sees, uses, far = ([*after.by_length(task)][-1:] for task in (SEES, USES, LAST_QUARTER))
    recalls = [score.value for task in RECALL for score in after.by_length(task)[-1:]]
    original = after.original_context_tokens
    short = [card.value(LAST_QUARTER, original) for card in (before, after)]
    found = {
        "sees_tokens": sees[0].value if sees else None,
        "uses_tokens": uses[0].value if uses else None,
        "perplexity_at_longest": far[0].value if far else None,
        "recall_at_longest": max(recalls, default=None),
        "short_perplexity_ratio": short[1] / short[0] if short[0] and short[1] else None,
    }
    return {name: value for name, value in found.items() if value is not None}
