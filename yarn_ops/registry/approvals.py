"""Runs that a person has to promote: asked for once a run, decided once, by whom and why."""

from __future__ import annotations

from sqlalchemy import select, update

from yarn_ops.errors import RegistryError
from yarn_ops.registry.columns import database_now
from yarn_ops.registry.registry import Registry
from yarn_ops.registry.tables import ApprovalRow, RunRow
from yarn_ops.registry.views import ApprovalView


def ask(registry: Registry, run_id: str, name: str, version: int, *, suspended: bool) -> None:
    """A person has to promote this version. suspended: the run waits as a flow run in Prefect."""
    asked = registry.database.insert(ApprovalRow).values(
        run_id=run_id, name=name, version=version, suspended=suspended, asked_at=database_now()
    )
    again = {"name": name, "version": version, "suspended": suspended}
    statement = asked.on_conflict_do_update(
        index_elements=["run_id"], set_=again, where=ApprovalRow.decision.is_(None)
    )
    with registry.begin() as session:
        session.execute(statement)


def find(registry: Registry, run_id: str) -> ApprovalView | None:
    """What was asked of this run, and what was decided; None where nothing was asked."""
    with registry.begin() as session:
        row = session.get(ApprovalRow, run_id)
        return None if row is None else ApprovalView.model_validate(row)


def decide(registry: Registry, run_id: str, *, approved: bool, person: str, note: str) -> ApprovalView:
    """Keep a decision. RegistryError where the run asks for none, or somebody has decided otherwise."""
    decision = "approved" if approved else "rejected"
    with registry.begin() as session:
        session.execute(
            update(ApprovalRow)
            .where(ApprovalRow.run_id == run_id, ApprovalRow.decision.is_(None))
            .values(decision=decision, person=person, note=note, decided_at=database_now())
        )
    found = find(registry, run_id)
    if found is None:
        raise RegistryError(f"run {run_id!r}: waits for no approval; `yarn-ops runs` tells which do")
    if found.decision != decision:
        raise RegistryError(f"run {run_id!r}: was {found.decision} by {found.person}; that stays")
    return found


def decided(registry: Registry) -> list[tuple[str, str]]:
    """(run, flow run) of all that wait in Prefect for what was decided here."""
    asked = (
        select(RunRow.id, RunRow.flow_run_id)
        .join(ApprovalRow, ApprovalRow.run_id == RunRow.id)
        .where(ApprovalRow.decision.is_not(None), ApprovalRow.suspended, RunRow.status == "stopped")
    )
    with registry.begin() as session:
        return [(run, flow_run) for run, flow_run in session.execute(asked) if flow_run is not None]
