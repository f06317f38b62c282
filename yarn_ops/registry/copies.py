"""Rows as JSON and back: what a store keeps of a registry, so that a lost one can be made again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import select

from yarn_ops.digests import digest_of
from yarn_ops.errors import RegistryError
from yarn_ops.records import Record
from yarn_ops.registry.columns import UtcTime, database_now
from yarn_ops.registry.registry import FACTS, Registry, facts
from yarn_ops.registry.tables import (
    UNFINISHED,
    ApprovalRow,
    ArtifactRow,
    CostRow,
    ReleaseRow,
    RunRow,
    RunStageRow,
    StageRunRow,
    Table,
)

Copy = dict[str, Any]
"""JSON: rows by what they are, each by its columns"""

LOST = "the registry was lost while it ran; run the same recipe again to go on"
FINISHED = {
    "status": "completed", "lease_expires": None, "device": None, "device_since": None, "device_rank": None,
}  # fmt: skip
TABLES: dict[str, type[Table]] = {table.__tablename__: table for table in FACTS}


def copy_stage(registry: Registry, key: str, record: Record | None = None) -> Copy:
    """The rows of a finished stage; with `record`, as they will be once that is kept."""
    with registry.begin() as session:
        row = _plain(session.get_one(StageRunRow, key)) | FINISHED
        rows: Iterable[Table]
        if record is None:
            rows = [one for table in FACTS for one in session.scalars(select(table).where(table.key == key))]
        else:
            row["output"] = record.model_dump(mode="json")
            rows = facts(key, record)
        return {"stage": row, "facts": [[one.__tablename__, _plain(one, "id")] for one in rows]}


def copy_run(registry: Registry, run_id: str) -> Copy:
    """A run in its present state, and the rows of the stages that it used, without their output."""
    with registry.begin() as session:
        used = select(RunStageRow).where(RunStageRow.run_id == run_id).order_by(RunStageRow.id)
        uses = session.scalars(used).all()
        keys = [use.key for use in uses]
        stages = session.scalars(select(StageRunRow).where(StageRunRow.key.in_(keys)))
        told = {stage.key: _plain(stage, "output") for stage in stages}
        for release in session.scalars(select(ReleaseRow).where(ReleaseRow.key.in_(keys))):
            told[release.key]["released_at"] = release.released_at.isoformat()
        run = _plain(session.get_one(RunRow, run_id))
        approval = session.get(ApprovalRow, run_id)
        more = {} if approval is None else {"approval": _plain(approval)}
        costs = session.scalars(select(CostRow).where(CostRow.run_id == run_id)).all()
        return {
            "run": run, "uses": [_plain(use, "id") for use in uses], "stages": told, **more,
            "costs": [_plain(cost) for cost in costs],
        }  # fmt: skip


def finished_stages(registry: Registry) -> dict[str, tuple[int, str | None]]:
    """{key: (fence, digest of its directory)} of every finished stage."""
    finished = (
        select(StageRunRow.key, StageRunRow.fence, ArtifactRow.digest)
        .outerjoin(ArtifactRow, ArtifactRow.key == StageRunRow.key)
        .where(StageRunRow.status == "completed")
    )
    with registry.begin() as session:
        return {key: (fence, digest) for key, fence, digest in session.execute(finished)}


def known_keys(registry: Registry) -> set[str]:
    """The keys of all stages, finished or not."""
    with registry.begin() as session:
        return set(session.scalars(select(StageRunRow.key)))


def restore_run(registry: Registry, copy: Copy) -> bool:
    """Make the run's row; False when it is there. One that was going on is stopped: its processes are gone.

    RegistryError when the copy is none.
    """
    with _reading("run"), registry.begin() as session:
        row = _row(RunRow, copy["run"])
        if session.get(RunRow, row.id) is not None:
            return False
        if row.status == "running":
            row.status, row.reason = "stopped", LOST
        if row.status not in ("completed", "rejected"):
            going_on = select(RunRow.id).where(RunRow.recipe_digest == row.recipe_digest, UNFINISHED)
            if session.scalar(going_on) is not None:  # that one is continued, this one is history
                row.recipe_digest = digest_of([row.recipe_digest, row.id])
        session.add(row)
        session.flush()
        session.add_all(_row(CostRow, cost) for cost in copy.get("costs", ()))
        if "approval" in copy:
            session.add(_row(ApprovalRow, copy["approval"]))
        return True


def restore_stage(registry: Registry, copy: Copy, recorded: Mapping[str, Any]) -> bool:
    """Make a finished stage's rows; False when it is finished already, or a process computes it.

    `recorded`: its row in a run's copy, which was made when it was finished; or nothing. RegistryError when
    the copy is none.
    """
    with _reading("stage"), registry.begin() as session:
        finished = copy["stage"].get("finished_at") or copy["stage"]["started_at"]
        row = _row(StageRunRow, {**copy["stage"], "finished_at": finished, **recorded, **FINISHED})
        known = session.get(StageRunRow, row.key)
        if known is not None and known.status in ("completed", "running"):
            return False
        session.merge(row)
        session.flush()
        released = {"released_at": recorded.get("released_at") or finished}
        for name, values in copy["facts"]:
            session.add(_row(TABLES[name], {**released, **values}))
        return True


def restore_release(registry: Registry, run_id: str, record: Record, when: str) -> None:
    """Make a release whose stage is unknown: as a stage of its run, under a key that no recipe has."""
    key = digest_of(["a release without its stage", run_id, record.model_dump(mode="json")])
    row = {
        "key": key, "stage": "publish", "run_id": run_id, "attempts": 1, "fence": 1, "started_at": when,
        "output": record.model_dump(mode="json"),
    }  # fmt: skip
    told = [[one.__tablename__, _plain(one, "id")] for one in facts(key, record)]
    restore_stage(registry, {"stage": row, "facts": told}, {})
    restore_uses(
        registry,
        {"run": {"id": run_id}, "uses": [{"run_id": run_id, "key": key, "reused": False, "seconds": 0.0}]},
    )


def restore_uses(registry: Registry, copy: Copy) -> None:
    """Make the rows of the run's uses of known stages, in order; existing rows stay."""
    with _reading("run"), registry.begin() as session:
        run_id, keys = copy["run"]["id"], [use["key"] for use in copy["uses"]]
        there = set(session.scalars(select(RunStageRow.key).where(RunStageRow.run_id == run_id)))
        known = set(session.scalars(select(StageRunRow.key).where(StageRunRow.key.in_(keys))))
        for use in copy["uses"]:
            if use["key"] in known - there:
                session.add(_row(RunStageRow, use))
                session.flush()


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RegistryError(f"not the copy of a {what} ({type(error).__name__}: {error})") from None


def _plain(row: Table, *without: str) -> dict[str, Any]:
    """By column, as JSON has it; without what the database is to fill in."""
    values = {column.name: getattr(row, column.name) for column in row.__table__.columns}
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in values.items()
        if name not in without and not isinstance(value, database_now)
    }


def _row(table: type[Table], values: Mapping[str, Any]) -> Any:
    """A row of the columns that this program knows."""
    made = {}
    for column in table.__table__.columns:
        if column.name in values:
            value = values[column.name]
            timed = isinstance(column.type, UtcTime) and value is not None
            made[column.name] = datetime.fromisoformat(value) if timed else value
    return table(**made)
