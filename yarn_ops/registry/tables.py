"""The tables. Times are the database's clock in UTC; a stage's key and every digest are 64 hex digits."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    ColumnElement,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from yarn_ops.registry.columns import AnyText, Items, Sealed, UtcTime

ALL_DEPTHS = -1.0
"""`scores.depth` of a score over all depths: NULLs would escape the unique constraint."""

ON_DEVICE = text("device_since IS NOT NULL")
"""Stages that have their device to themselves; literal SQL as below."""

UNFINISHED = text("status IN ('running', 'failed', 'stopped')")
"""Runs that the next one with the same recipe continues. Literal SQL: the predicate of a partial index."""


class Table(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  SQLAlchemy's declaration
        str: AnyText(),
        datetime: UtcTime(),
        dict[str, Any]: JSON(none_as_null=True),
        dict[str, str]: JSON(),
        int: Integer(),
        float: Float(53),
        bool: Boolean(create_constraint=False),
    }


class IdentityRow(Table):
    """One row: who this registry is among all that use a store (`store/ledger.py`)."""

    __tablename__ = "identity"

    id: Mapped[str] = mapped_column(primary_key=True)


class RunRow(Table):
    """One recipe that was asked for, with all its attempts until it is completed or rejected."""

    __tablename__ = "runs"
    __table_args__ = (
        CheckConstraint("status IN ('running', 'completed', 'failed', 'rejected', 'stopped')", "status"),
        Index(
            "uq_runs_unfinished_recipe",
            "recipe_digest",
            unique=True,
            sqlite_where=UNFINISHED,
            postgresql_where=UNFINISHED,
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str | None]
    """what its person calls it"""
    recipe_digest: Mapped[str]
    recipe: Mapped[dict[str, Any]]
    status: Mapped[str]
    reason: Mapped[str | None]
    attempts: Mapped[int]
    git_commit: Mapped[str | None]
    flow_run_id: Mapped[str | None]
    mlflow_run_id: Mapped[str | None]
    started_at: Mapped[datetime] = mapped_column(index=True)
    finished_at: Mapped[datetime | None]
    planned: Mapped[dict[str, Any] | None]
    """{part of a plan: seconds and dollars}"""
    spent_budget: Mapped[dict[str, Any] | None]
    """the budget that stopped its last attempt"""


class ApprovalRow(Table):
    """A run whose release a person has to promote, and what that person decided."""

    __tablename__ = "approvals"
    __table_args__ = (CheckConstraint("decision IN ('approved', 'rejected')", "decision"),)

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    name: Mapped[str]
    version: Mapped[int]
    """of the registered model"""
    suspended: Mapped[bool]
    """whether a flow run in Prefect waits for it"""
    asked_at: Mapped[datetime]
    decision: Mapped[str | None]
    """NULL: nobody has decided"""
    person: Mapped[str | None]
    note: Mapped[str | None]
    decided_at: Mapped[datetime | None]


class CostRow(Table):
    """What a stage cost in one attempt at a run (`registry.costs.Spending`)."""

    __tablename__ = "costs"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    stage: Mapped[str] = mapped_column(primary_key=True)
    seconds: Mapped[float]
    device_s: Mapped[float]
    joules: Mapped[float | None]
    sent_bytes: Mapped[int] = mapped_column(BigInteger)
    received_bytes: Mapped[int] = mapped_column(BigInteger)
    dollars: Mapped[float]


class StageRunRow(Table):
    """One stage with one input: who computes it, or what it returned."""

    __tablename__ = "stage_runs"
    __table_args__ = (
        CheckConstraint("status IN ('running', 'completed', 'failed', 'stopped')", "status"),
        Index(
            "uq_stage_runs_device", "device", unique=True, sqlite_where=ON_DEVICE, postgresql_where=ON_DEVICE
        ),
    )

    key: Mapped[str] = mapped_column(primary_key=True)
    stage: Mapped[str]
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), index=True)
    """the run that claimed it last"""
    status: Mapped[str]
    attempts: Mapped[int]
    holder: Mapped[str | None]
    fence: Mapped[int] = mapped_column(BigInteger)
    """counts claims; a write that names an older one is refused"""
    lease_expires: Mapped[datetime | None]
    """NULL: nobody holds it"""
    device: Mapped[str | None]
    """what the holder has to itself or waits for, e.g. node-3/cpu"""
    device_since: Mapped[datetime | None]
    """NULL: it waits"""
    device_rank: Mapped[int | None]
    """of those who wait, the lowest is next"""
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    output: Mapped[dict[str, Any] | None] = mapped_column(Sealed())
    error: Mapped[str | None]

    @classmethod
    def is_done(cls) -> ColumnElement[bool]:
        return cls.status == "completed"

    @classmethod
    def is_at_work(cls) -> ColumnElement[bool]:
        return cls.status == "running"


class RunStageRow(Table):
    """A run used a stage's output; `id` gives the order."""

    __tablename__ = "run_stages"
    __table_args__ = (UniqueConstraint("run_id", "key"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    key: Mapped[str] = mapped_column(ForeignKey("stage_runs.key"), index=True)
    reused: Mapped[bool]
    seconds: Mapped[float]


class ArtifactRow(Table):
    """The directory in object storage that a stage made."""

    __tablename__ = "artifacts"

    key: Mapped[str] = mapped_column(ForeignKey("stage_runs.key"), primary_key=True)
    digest: Mapped[str] = mapped_column(index=True)
    kind: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    files: Mapped[int]
    uri: Mapped[str]


class ScoreRow(Table):
    """One cell of an evaluation: one value for one checkpoint measured in one way."""

    __tablename__ = "scores"
    __table_args__ = (
        UniqueConstraint(
            "key", "checkpoint_digest", "task", "context_tokens", "depth", "seed", name="uq_scores_cell"
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(ForeignKey("stage_runs.key"))
    """the evaluation that measured it"""
    checkpoint_digest: Mapped[str] = mapped_column(index=True)
    task: Mapped[str]
    context_tokens: Mapped[int] = mapped_column(BigInteger)
    depth: Mapped[float]
    seed: Mapped[int] = mapped_column(BigInteger)
    value: Mapped[float]
    low: Mapped[float | None]
    high: Mapped[float | None]
    samples: Mapped[int] = mapped_column(BigInteger)


class ReleaseRow(Table):
    """A model version in MLflow; one for one publishing stage."""

    __tablename__ = "releases"

    key: Mapped[str] = mapped_column(ForeignKey("stage_runs.key"), primary_key=True)
    name: Mapped[str]
    version: Mapped[int]
    mlflow_run_id: Mapped[str]
    gate: Mapped[str]
    alias: Mapped[str | None]
    tags: Mapped[dict[str, str]]
    released_at: Mapped[datetime]


class MeasurementRow(Table):
    """One score of a suite: a checkpoint measured outside of any run, each cell once."""

    __tablename__ = "measurements"
    __table_args__ = (
        UniqueConstraint(
            "checkpoint_digest", "protocol", "cell", "cell_tokens", "seed", "task", "context_tokens", "depth",
            name="uq_measurements_score",
        ),
    )  # fmt: skip

    id: Mapped[int] = mapped_column(primary_key=True)
    checkpoint_digest: Mapped[str]
    protocol: Mapped[str]
    """digest of documents, precision and how much was asked"""
    cell: Mapped[str]
    cell_tokens: Mapped[int] = mapped_column(BigInteger)
    seed: Mapped[int] = mapped_column(BigInteger)
    task: Mapped[str]
    context_tokens: Mapped[int] = mapped_column(BigInteger)
    depth: Mapped[float]
    value: Mapped[float]
    low: Mapped[float | None]
    high: Mapped[float | None]
    samples: Mapped[int] = mapped_column(BigInteger)
    items: Mapped[list[float] | None] = mapped_column(Items)
    """what the value sums up, item by item; NULL: only the sum was kept"""
    measured_at: Mapped[datetime]


class CellRow(Table):
    """One cell of a suite: who measures it, or did. Its scores are in `measurements`."""

    __tablename__ = "cells"

    key: Mapped[str] = mapped_column(primary_key=True)
    """digest of the five that tell cells apart, of which these are some"""
    checkpoint_digest: Mapped[str]
    cell: Mapped[str]
    cell_tokens: Mapped[int] = mapped_column(BigInteger)
    holder: Mapped[str]
    fence: Mapped[int] = mapped_column(BigInteger)
    """counts claims; a write that names an older one is refused"""
    lease_expires: Mapped[datetime | None]
    """NULL: nobody holds it"""
    started_at: Mapped[datetime]
    """of the last claim"""
    finished_at: Mapped[datetime | None]
    """NULL: not measured"""

    @classmethod
    def is_done(cls) -> ColumnElement[bool]:
        return cls.finished_at.is_not(None)

    @classmethod
    def is_at_work(cls) -> ColumnElement[bool]:
        return cls.finished_at.is_(None)
