"""What the registry shows of its runs: frozen views, and the queries that fill them."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, computed_field
from sqlalchemy import select
from sqlalchemy.orm import Session

from yarn_ops.errors import RegistryError
from yarn_ops.records import BaseModel as BaseRecord
from yarn_ops.records import Checkpoint, Record
from yarn_ops.registry.columns import BROKEN
from yarn_ops.registry.tables import (
    ALL_DEPTHS,
    ApprovalRow,
    CostRow,
    ReleaseRow,
    RunRow,
    RunStageRow,
    ScoreRow,
    StageRunRow,
)
from yarn_ops.scores import Scorecard

WAITS = "waits for approval"
"""outcome of a run whose release passed its gate, and that a person has to promote"""


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, from_attributes=True)


class ReleaseView(_View):
    """A model version in MLflow."""

    name: str
    version: int
    mlflow_run_id: str
    gate: str
    alias: str | None
    tags: dict[str, str]
    released_at: datetime


class StageAtWork(_View):
    """A stage that is being computed, as `runs` tells it."""

    stage: str
    device: str | None
    """what it has to itself or waits for"""
    waits: bool


class ApprovalView(_View):
    """What a run asks a person for: to promote a model version; and what was decided."""

    name: str
    version: int
    suspended: bool
    """whether a flow run in Prefect waits for it"""
    asked_at: datetime
    decision: str | None
    """approved or rejected; None: nobody has decided"""
    person: str | None
    note: str | None
    decided_at: datetime | None


class RunSummary(_View):
    """A run as one line of a list. Times are UTC."""

    id: str
    name: str | None = None
    """what its person calls it"""
    recipe: dict[str, Any]
    recipe_digest: str
    status: str
    """running, completed, failed, rejected or stopped"""
    reason: str | None
    attempts: int
    git_commit: str | None
    flow_run_id: str | None
    mlflow_run_id: str | None
    started_at: datetime
    """of the first attempt"""
    finished_at: datetime | None
    release: ReleaseView | None = None
    approval: ApprovalView | None = None
    at_work: tuple[StageAtWork, ...] = ()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def kind(self) -> str:
        """extend, compare, fit or reevaluate: what was done with the recipe."""
        beside = self.recipe.get("compare") or {}
        if "methods" in beside:
            return "compare"
        return next((kind for kind in ("fit", "reevaluate") if kind in beside), "extend")

    @property
    def outcome(self) -> str:
        """The status; of an extension that passed its gate, promoted, or waits for approval."""
        if self.status == "stopped" and self.approval is not None and self.approval.decision is None:
            return WAITS
        promoted = self.status == "completed" and self.kind == "extend"
        return "promoted" if promoted else self.status


class StageView(_View):
    """A stage as a run used it, or as the run's last attempt left it."""

    stage: str
    key: str
    status: str
    """running, completed, failed or stopped"""
    reused: bool | None = None
    """None: this run did not come to use its output"""
    seconds: float | None = None
    """what it cost this run"""
    attempts: int
    """claims by all runs, ever"""
    holder: str | None
    started_at: datetime
    finished_at: datetime | None
    record: dict[str, Any] | None = None
    error: str | None


class ScoreView(_View):
    """One cell of an evaluation; `depth` None: over all depths; `low`, `high`: 95 % interval."""

    stage: str = ""
    checkpoint_digest: str
    task: str
    context_tokens: int
    depth: float | None
    seed: int
    value: float
    low: float | None
    high: float | None
    samples: int


class CostView(_View):
    """What a stage cost in one attempt (`registry.costs.Spending`)."""

    attempt: int
    stage: str
    seconds: float
    device_s: float
    joules: float | None
    sent_bytes: int
    received_bytes: int
    dollars: float


class RunView(RunSummary):
    stages: tuple[StageView, ...]
    """in the order of their first use, then those that were not finished"""
    scores: tuple[ScoreView, ...]
    costs: tuple[CostView, ...] = ()
    planned: dict[str, dict[str, float]] | None = None
    """{part of a plan: seconds and dollars}"""

    def records(self, name: str) -> list[dict[str, Any]]:
        """What its stages of this name made, in order."""
        return [stage.record for stage in self.stages if stage.stage == name and stage.record]

    @property
    def verdict_card(self) -> tuple[tuple[str, str], ...]:
        """Of the newest report, as rows (label, text); nothing before there is one."""
        reports = self.records("report")
        return tuple((label, text) for label, text in reports[-1].get("verdict", ())) if reports else ()


def cards_of(run: RunView) -> list[Scorecard]:
    """The scorecards of the base and of the result, in this order, as far as they are measured.

    The first model that a run made or fetched is its base, the last one its result. Earlier versions measured
    a model in two stages, evaluate and suite.
    """
    made: dict[str, type[Record]] = {"base": BaseRecord, "merge": Checkpoint}
    cards: dict[str, Scorecard] = {}
    models: list[str] = []
    for stage in run.stages:
        if stage.record is None:
            continue
        if stage.stage in made:
            models.append(made[stage.stage].model_validate(stage.record).digest)
        elif stage.stage in ("evaluate", "suite"):
            card = Scorecard.model_validate(stage.record)
            if stage.stage == "suite" and (known := cards.get(card.model_digest)):
                tasks = {score.task for score in known.scores}
                more = tuple(score for score in card.scores if score.task not in tasks)
                card = known.model_copy(update={"scores": known.scores + more})
            cards[card.model_digest] = card
    ends = dict.fromkeys((models[0], models[-1])) if models else {}
    return [cards[digest] for digest in ends if digest in cards]


def stage_names(run: RunView) -> list[str]:
    """Of each stage, its name and what tells it from others of that name, as its task in Prefect has them but
    for the base, which is called so: evaluate base; evaluate yarn ×4, trained; train 2,048 tokens."""
    models: dict[str, str] = {}
    names = []
    for stage in run.stages:
        record, told = stage.record or {}, ""
        if stage.stage == "base" and record:
            models[BaseRecord.model_validate(record).digest] = "base"
        elif stage.stage in ("patch", "merge") and "factor" in record:
            told = f"{record['method']} ×{record['factor']:g}"
            how = "trained" if stage.stage == "merge" else "zero-shot"
            models[(record.get("tree") or {}).get("digest", "")] = f"{told}, {how}"
        elif stage.stage == "train" and "window_tokens" in record:
            told = f"{record['window_tokens']:,} tokens"
        elif stage.stage == "evaluate":
            read = (models[parent] for parent in reversed(record.get("parents", ())) if parent in models)
            told = next(read, "")  # the config that it is read by comes behind the model
        names.append(f"{stage.stage} {told}".rstrip())
    return names


def read_runs(session: Session, limit: int) -> list[RunSummary]:
    """The newest runs, newest first, each with its release."""
    newest = select(RunRow).order_by(RunRow.started_at.desc(), RunRow.id.desc()).limit(limit)
    rows = session.scalars(newest).all()
    releases = _releases(session, [row.id for row in rows])
    approvals = _approvals(session, [row.id for row in rows])
    at_work = _at_work(session, [row.id for row in rows if row.status == "running"])
    return [
        RunSummary.model_validate(row).model_copy(
            update={
                "release": releases.get(row.id),
                "approval": approvals.get(row.id),
                "at_work": tuple(at_work[row.id]),
            }
        )
        for row in rows
    ]


def read_run(session: Session, run_id: str) -> RunView:
    """One run by its id, or the newest as `last`; RegistryError when there is none."""
    runs = select(RunRow).order_by(RunRow.started_at.desc(), RunRow.id.desc()).limit(1)
    row = session.scalar(runs if run_id == "last" else runs.where(RunRow.id == run_id))
    if row is None:
        what = "no run yet; `yarn-ops extend RECIPE` makes one"
        raise RegistryError(
            what if run_id == "last" else f"run {run_id!r}: not in the registry; see `yarn-ops runs`"
        )
    costs = select(CostRow).where(CostRow.run_id == row.id).order_by(CostRow.attempt, CostRow.stage)
    return RunView(
        **RunSummary.model_validate(row).model_dump(exclude={"release", "approval", "at_work"}),
        release=_releases(session, [row.id]).get(row.id),
        approval=_approvals(session, [row.id]).get(row.id),
        at_work=tuple(_at_work(session, [row.id])[row.id]),
        stages=(*_used_stages(session, row.id), *_open_stages(session, row.id)),
        scores=tuple(_scores(session, row.id)),
        costs=tuple(map(CostView.model_validate, session.scalars(costs))),
        planned=row.planned,
    )


def _releases(session: Session, run_ids: list[str]) -> dict[str, ReleaseView]:
    """The release that each run published or reused."""
    rows = session.execute(
        select(RunStageRow.run_id, ReleaseRow)
        .join(ReleaseRow, ReleaseRow.key == RunStageRow.key)
        .where(RunStageRow.run_id.in_(run_ids))
        .order_by(RunStageRow.id)
    )
    return {run_id: ReleaseView.model_validate(release) for run_id, release in rows}


def _approvals(session: Session, run_ids: list[str]) -> dict[str, ApprovalView]:
    """What each run asks a person for."""
    rows = session.scalars(select(ApprovalRow).where(ApprovalRow.run_id.in_(run_ids)))
    return {row.run_id: ApprovalView.model_validate(row) for row in rows}


def _at_work(session: Session, run_ids: list[str]) -> defaultdict[str, list[StageAtWork]]:
    """The stages that each run computes or waits with."""
    found: defaultdict[str, list[StageAtWork]] = defaultdict(list)
    rows = session.scalars(
        select(StageRunRow)
        .where(StageRunRow.status == "running", StageRunRow.run_id.in_(run_ids))
        .order_by(StageRunRow.started_at)
    )
    for row in rows if run_ids else ():
        waits = row.device is not None and row.device_since is None
        found[row.run_id].append(StageAtWork(stage=row.stage, device=row.device, waits=waits))
    return found


def _used_stages(session: Session, run_id: str) -> list[StageView]:
    rows = session.execute(
        select(StageRunRow, RunStageRow.reused, RunStageRow.seconds)
        .join(RunStageRow, RunStageRow.key == StageRunRow.key)
        .where(RunStageRow.run_id == run_id)
        .order_by(RunStageRow.id)
    )
    return [_stage_view(stage, reused=reused, seconds=seconds) for stage, reused, seconds in rows]


def _open_stages(session: Session, run_id: str) -> list[StageView]:
    """Stages that this run claimed last and has not come to use: running, failed or stopped."""
    used = select(RunStageRow.key).where(RunStageRow.run_id == run_id)
    rows = session.scalars(
        select(StageRunRow)
        .where(StageRunRow.run_id == run_id, StageRunRow.key.not_in(used))
        .order_by(StageRunRow.started_at)
    )
    return [_stage_view(stage) for stage in rows]


def _stage_view(stage: StageRunRow, reused: bool | None = None, seconds: float | None = None) -> StageView:
    record = None if stage.output == BROKEN else stage.output
    told = {"reused": reused, "seconds": seconds, "record": record}
    return StageView.model_validate(stage).model_copy(update=told)


def _scores(session: Session, run_id: str) -> list[ScoreView]:
    rows = session.execute(
        select(StageRunRow.stage, ScoreRow)
        .join(ScoreRow, ScoreRow.key == StageRunRow.key)
        .join(RunStageRow, RunStageRow.key == StageRunRow.key)
        .where(RunStageRow.run_id == run_id)
        .order_by(RunStageRow.id, ScoreRow.id)
    )
    return [
        ScoreView.model_validate(score).model_copy(
            update={"stage": stage, "depth": None if score.depth == ALL_DEPTHS else score.depth}
        )
        for stage, score in rows
    ]
