"""What runs cost: rows of every attempt's stages, their sums, and the tables that show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import delete, select, update

from yarn_ops.registry.registry import Registry
from yarn_ops.registry.tables import CostRow, RunRow
from yarn_ops.registry.views import CostView, RunView
from yarn_ops.shown import duration, size

BETWEEN = "between stages"
"""what an attempt does outside of its stages"""
PHASE = ": "
"""between a stage and one of its phases, which has a row of its own"""
PHASES = ("", "process", "layout", "model", "windows", "proof", "first step", "end")
"""of training, in their order, behind the row of the stage itself"""
PARTS = {
    "documents": ("documents", "shards"),
    "training": ("rehearse", "train"),
    "evaluation": ("evaluate", "fingerprint", "fit"),
}
"""stages of the parts of a plan; the others belong to its model files"""
FILES = "model files"
HOUR_S = 3600.0
KWH_J = 3.6e6
HEADS = ("stage", "took", "on device", "kWh", "sent", "received", "$")
PLAN_HEADS = ("part", "planned h", "actual h", "planned $", "actual $")


@dataclass
class Spending:
    """Of one stage, or of many."""

    seconds: float = 0.0
    """without what was waited for a device"""
    device_s: float = 0.0
    """of it, with the device"""
    joules: float | None = None
    """that the GPUs took meanwhile; None: nothing tells it"""
    sent_bytes: int = 0
    received_bytes: int = 0
    """to and from the store"""
    dollars: float = 0.0


def keep(registry: Registry, run_id: str, attempt: int, spent: Mapping[str, Spending]) -> None:
    """Replace what is kept of these stages of an attempt."""
    rows = [
        CostRow(run_id=run_id, attempt=attempt, stage=stage, **asdict(cost)) for stage, cost in spent.items()
    ]
    with registry.begin() as session:
        session.execute(
            delete(CostRow).where(
                CostRow.run_id == run_id, CostRow.attempt == attempt, CostRow.stage.in_(spent)
            )
        )
        session.add_all(rows)


def spent_elsewhere(registry: Registry, run_id: str, attempt: int, stages: Iterable[str]) -> Spending:
    """What all but these stages of this attempt cost: earlier attempts, and helpers."""
    ours = set(stages)
    with registry.begin() as session:
        rows = session.scalars(select(CostRow).where(CostRow.run_id == run_id)).all()
        return total(CostView.model_validate(row) for row in rows
                     if row.attempt != attempt or row.stage not in ours)  # fmt: skip


def spent_budget(registry: Registry, run_id: str) -> dict[str, Any] | None:
    """The budget by which the run was stopped last."""
    with registry.begin() as session:
        return session.scalar(select(RunRow.spent_budget).where(RunRow.id == run_id))


def note(registry: Registry, run_id: str, **facts: dict[str, Any]) -> None:
    """Keep of a run what is `planned`, or its `spent_budget`."""
    with registry.begin() as session:
        session.execute(update(RunRow).where(RunRow.id == run_id).values(**facts))


def total(costs: Iterable[Spending | CostView]) -> Spending:
    found = Spending()
    for cost in costs:
        found.seconds += cost.seconds
        found.device_s += cost.device_s
        found.sent_bytes += cost.sent_bytes
        found.received_bytes += cost.received_bytes
        found.dollars += cost.dollars
        if cost.joules is not None:
            found.joules = (found.joules or 0.0) + cost.joules
    return found


def stage_table(run: RunView) -> list[tuple[str, ...]]:
    """`HEADS`, a row for each stage with all its attempts, one for each of its phases, of which the stage's
    holds the sum, and the sum of all stages; nothing before anything cost."""
    stages = [*dict.fromkeys(stage.stage for stage in run.stages)]

    def place(name: str) -> tuple[int, int, str]:
        stage, _, phase = name.partition(PHASE)
        within = PHASES.index(phase) if phase in PHASES else len(PHASES)
        return stages.index(stage) if stage in stages else len(stages), within, name

    costing = {cost.stage for cost in run.costs}
    names = sorted(costing | {name.partition(PHASE)[0] for name in costing}, key=place)
    rows = [
        (name, total(cost for cost in run.costs if name in (cost.stage, cost.stage.partition(PHASE)[0])))
        for name in names
    ]
    rows.append(("in all", total(run.costs)))
    return [HEADS, *(_cells(*row) for row in rows)] if run.costs else []


def _cells(stage: str, cost: Spending) -> tuple[str, ...]:
    return (
        stage, duration(cost.seconds), duration(cost.device_s) if cost.device_s else "",
        "" if cost.joules is None else f"{cost.joules / KWH_J:.4f}",
        *(size(count) if count else "" for count in (cost.sent_bytes, cost.received_bytes)),
        f"{cost.dollars:,.4f}",
    )  # fmt: skip


def plan_table(run: RunView) -> list[tuple[str, ...]]:
    """`PLAN_HEADS`, and each part of the plan beside what it came to; nothing where nothing was planned."""
    if run.planned is None:
        return []
    part_of = {stage: part for part, stages in PARTS.items() for stage in stages}
    rows: list[tuple[str, ...]] = [PLAN_HEADS]
    for part, plan in run.planned.items():
        cost = total(cost for cost in run.costs if part_of.get(cost.stage.partition(PHASE)[0], FILES) == part)
        figures = (plan["seconds"] / HOUR_S, cost.seconds / HOUR_S, plan["dollars"], cost.dollars)
        rows.append((part, *(f"{figure:,.3f}" for figure in figures)))
    return rows
