"""Queries for maintenance: leases whose holder has ended, open runs, trees and releases in use."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select

from yarn_ops.registry.holder import has_ended, runs_here
from yarn_ops.registry.leases import is_free
from yarn_ops.registry.registry import Registry
from yarn_ops.registry.tables import ArtifactRow, ReleaseRow, RunRow, StageRunRow


@dataclass(frozen=True)
class OpenStage:
    """A stage that counts as being computed."""

    key: str
    stage: str
    run_id: str
    holder: str
    started_at: datetime


@dataclass(frozen=True)
class OpenRun:
    """A run that counts as going on."""

    id: str
    flow_run_id: str | None
    started_at: datetime


def free_leases(registry: Registry) -> list[OpenStage]:
    """Give back every lease that has expired or whose holder has ended; the stages.

    One that has run out while its holder runs on this machine stays: the clock was set, or the holder stood
    still, and will renew it. Whoever needs the stage may claim it all the same.
    """
    freed = []
    for stage, at_work in _running(registry):
        if not at_work:
            registry.take_from(stage.key, stage.holder, if_expired=not has_ended(stage.holder))
            freed.append(stage)
    return freed


def stages_at_work(registry: Registry) -> list[OpenStage]:
    """Every stage that a process may be computing now, on any machine: those that `free_leases` leaves."""
    return [stage for stage, at_work in _running(registry) if at_work]


def _running(registry: Registry) -> list[tuple[OpenStage, bool]]:
    """Every stage with the status running, and whether its holder may still be at it."""
    with registry.begin() as session:
        rows = session.execute(
            select(StageRunRow, is_free(StageRunRow).label("expired")).where(StageRunRow.status == "running")
        ).all()
    found = []
    for row, expired in rows:
        holder = row.holder or ""
        at_work = not has_ended(holder) and (not expired or runs_here(holder))
        found.append((OpenStage(row.key, row.stage, row.run_id, holder, row.started_at), at_work))
    return found


def open_runs(registry: Registry) -> list[OpenRun]:
    """Runs with the status running, oldest first."""
    with registry.begin() as session:
        rows = session.scalars(select(RunRow).where(RunRow.status == "running").order_by(RunRow.started_at))
        return [OpenRun(row.id, row.flow_run_id, row.started_at) for row in rows]


def referenced_trees(registry: Registry) -> set[str]:
    """The digests of all directories that finished stages have stored."""
    with registry.begin() as session:
        return set(session.scalars(select(ArtifactRow.digest).distinct()))


def released(registry: Registry) -> set[tuple[str, int]]:
    """(name, version) of every release that a finished stage has recorded."""
    with registry.begin() as session:
        return set(session.execute(select(ReleaseRow.name, ReleaseRow.version)).tuples())


def known_runs(registry: Registry) -> dict[str, str]:
    """{id: status} of every run."""
    with registry.begin() as session:
        return dict(session.execute(select(RunRow.id, RunRow.status)).tuples().all())
