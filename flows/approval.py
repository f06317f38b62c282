"""A release that a person promotes: the run waits until somebody decides, in Prefect or by a command.

What is waited for lies in the registry, and in Prefect where the run came from a deployment: no process
waits. A run that goes on promotes what was measured; nothing before that is looked at again.
"""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from prefect import runtime
from prefect.flow_runs import resume_flow_run, suspend_flow_run
from prefect.input import RunInput
from pydantic import Field

from flows.run import RunContext
from flows.stages.releasing import Publication, bring_about
from yarn_ops.catalogue import APPROVAL_TAG
from yarn_ops.errors import AwaitsApproval, GateFailed
from yarn_ops.evals.report.verdict import as_markdown
from yarn_ops.records import BaseModel, Checkpoint, Release, Report, ServingReference, ShardSet
from yarn_ops.registry import RunView, StageView, approvals
from yarn_ops.registry.views import ApprovalView, cards_of
from yarn_ops.scores import BeforeAfter, Verdict
from yarn_ops.shown import one_line


class Decision(RunInput):  # type: ignore[misc]
    """The form in Prefect."""

    decision: Literal["approve", "reject"] = Field(title="Decision")
    person: str = Field(title="Who decides", min_length=1, max_length=200)
    note: str = Field("", title="Why", max_length=2000)


def wait_for(run: RunContext, release: Release) -> None:
    """Ask for the promotion of this release, and wait (`promote`)."""
    suspended = runtime.deployment.id is not None
    approvals.ask(run.registry, run.id, release.name, release.version, suspended=suspended)
    promote(run)


def promote(run: RunContext) -> None:
    """Move the alias once somebody has approved. GateFailed where the release was rejected by a person.

    Until then the flow run is suspended with a form; one that Prefect cannot start again ends by
    AwaitsApproval. Every byte of the release is read again before the alias moves.
    """
    view = run.registry.run_view(run.id)
    approval = view.approval
    assert approval is not None
    if approval.decision is None and runtime.deployment.id is not None:
        form = Decision.with_initial_data(description=as_markdown(view.verdict_card, run.settings.language))
        answer = suspend_flow_run(wait_for_input=form, key=f"approval-{run.id}")
        approval = decide(run, answer)
    told = f"{approval.name} version {approval.version}"
    if approval.decision is None:
        raise AwaitsApproval(f"{told} passed its gate; promote it with `yarn-ops approve {run.id}`")
    _settle(run, view, approval)
    if approval.decision == "rejected":
        raise GateFailed(f"{told} was rejected by {approval.person}: {approval.note or 'no reason given'}")


def decide(run: RunContext, answer: Decision) -> ApprovalView:
    """Keep what the form says."""
    return approvals.decide(
        run.registry, run.id,
        approved=answer.decision == "approve", person=one_line(answer.person), note=one_line(answer.note),
    )  # fmt: skip


def resume(flow_run_id: str, approval: ApprovalView) -> None:
    """Let a suspended flow run go on by what was decided elsewhere."""
    decision = "approve" if approval.decision == "approved" else "reject"
    answer = {"decision": decision, "person": approval.person, "note": approval.note}
    resume_flow_run(UUID(flow_run_id), run_input=answer)


def _settle(run: RunContext, view: RunView, approval: ApprovalView) -> None:
    """The version's tag, its alias if it was approved, and the registry's record of both."""
    newest: dict[str, StageView] = {stage.stage: stage for stage in view.stages if stage.record is not None}
    published = newest["publish"]
    release = Release.model_validate(published.record)
    reference = newest["fingerprint"].record if run.recipe.publish.fingerprint else None
    before, after = cards_of(view)
    parts = Publication(
        base=BaseModel.model_validate(newest["base"].record),
        shards=ShardSet.model_validate(newest["shards"].record),
        checkpoint=Checkpoint.model_validate(newest["merge"].record),
        scores=BeforeAfter(before, after),
        verdict=Verdict.model_validate(newest["gate"].record),
        report=Report.model_validate(newest["report"].record),
        reference=None if reference is None else ServingReference.model_validate(reference),
    )
    tracking, tags = run.services.tracking, {**release.tags, APPROVAL_TAG: str(approval.decision)}
    with run.progress.of("publish") as progress:
        made = bring_about(run, release, parts, progress).model_copy(update={"tags": tags})
    tracking.set_tag(made.name, made.version, APPROVAL_TAG, str(approval.decision))
    if approval.decision == "approved":
        alias = run.recipe.publish.alias
        tracking.move_alias(made.name, alias, made.version)
        made = made.model_copy(update={"alias": alias})
    run.registry.replace(published.key, release, made)
