"""The registry's writes: runs begin and finish, stages are claimed, completed and used.

Every method is one transaction of its own and makes no call but to the database.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from yarn_ops.errors import RegistryError
from yarn_ops.records import Record, Release
from yarn_ops.registry import leases, views
from yarn_ops.registry.columns import database_now
from yarn_ops.registry.database import Database, open_database
from yarn_ops.registry.leases import Lease
from yarn_ops.registry.tables import (
    ALL_DEPTHS,
    UNFINISHED,
    ArtifactRow,
    IdentityRow,
    ReleaseRow,
    RunRow,
    RunStageRow,
    ScoreRow,
    StageRunRow,
    Table,
)
from yarn_ops.scores import Scorecard

FACTS = (ArtifactRow, ScoreRow, ReleaseRow)
"""the tables that a stage's record fills"""

NO_DEVICE = {"device": None, "device_since": None, "device_rank": None}

RunEnd = Literal["completed", "failed", "rejected", "stopped"]


@dataclass(frozen=True)
class Run:
    id: str
    """sortable by its beginning, e.g. 20261123-180642-3fa29c"""
    attempts: int
    mlflow_run_id: str | None


def open_registry(url: str) -> Registry:
    """The registry at sqlite:///file or postgresql://…; RegistryError when it cannot be used as it is."""
    return Registry(open_database(url))


class Registry:
    """Safe to share between threads. RegistryError from every method when the database fails."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def __repr__(self) -> str:
        return f"Registry({self.name!r})"

    @property
    def name(self) -> str:
        """Its database's URL without password and options."""
        return self.database.name

    @cached_property
    def id(self) -> str:
        """32 hex digits, made with its tables, that identify it among the registries that use a store."""
        with self.database.begin() as session:
            found = session.scalars(select(IdentityRow.id)).all()
        if len(found) != 1:
            raise RegistryError(f"{self.name}: no identity, or several; restore a backup of the database")
        return found[0]

    def close(self) -> None:
        self.database.close()

    def begin(self) -> AbstractContextManager[Session]:
        """One transaction, for the package's own queries."""
        return self.database.begin()

    # Runs

    def begin_run(
        self,
        recipe: Mapping[str, Any],
        recipe_digest: str,
        *,
        name: str | None = None,
        git_commit: str | None = None,
        flow_run_id: str | None = None,
    ) -> Run:
        """One more attempt at this recipe's run that is neither completed nor rejected, else a new run."""
        attempt = {"status": "running", "reason": None, "git_commit": git_commit, "flow_run_id": flow_run_id}
        if name is not None:
            attempt["name"] = name
        statement = (
            self.database.insert(RunRow)
            .values(
                id=f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}",
                recipe=dict(recipe),
                recipe_digest=recipe_digest,
                attempts=1,
                started_at=database_now(),
                **attempt,
            )
            .on_conflict_do_update(
                index_elements=["recipe_digest"],
                index_where=UNFINISHED,
                set_={
                    **attempt,
                    "recipe": dict(recipe),
                    "attempts": RunRow.attempts + 1,
                    "finished_at": None,
                },
            )
            .returning(RunRow.id, RunRow.attempts, RunRow.mlflow_run_id)
        )
        with self.database.begin() as session:
            return Run(*session.execute(statement).one())

    def finish_run(self, run_id: str, status: RunEnd, reason: str | None = None) -> None:
        """Record how the run ended. A run that is completed or rejected already stays so."""
        with self.database.begin() as session:
            _must_exist(session, run_id)
            session.execute(
                update(RunRow)
                .where(RunRow.id == run_id, UNFINISHED)
                .values(status=status, reason=reason, finished_at=database_now())
            )

    def set_mlflow_run(self, run_id: str, mlflow_run_id: str) -> str:
        """Tie the run to an MLflow run, once; returns the one that the first caller tied it to."""
        with self.database.begin() as session:
            _must_exist(session, run_id)
            tied = session.scalar(
                update(RunRow)
                .where(RunRow.id == run_id)
                .values(mlflow_run_id=func.coalesce(RunRow.mlflow_run_id, mlflow_run_id))
                .returning(RunRow.mlflow_run_id)
            )
        assert tied is not None
        return tied

    def came_to_its_end(self, recipe_digest: str) -> bool:
        """Whether a run of this recipe was completed or rejected before."""
        with self.database.begin() as session:
            ended = RunRow.status.in_(("completed", "rejected"))
            asked = select(RunRow.id).where(RunRow.recipe_digest == recipe_digest, ended)
            return session.scalar(asked.limit(1)) is not None

    def runs(self, limit: int = 20) -> list[views.RunSummary]:
        """The newest runs, newest first."""
        with self.database.begin() as session:
            return views.read_runs(session, limit)

    def run_view(self, run_id: str = "last") -> views.RunView:
        """Everything about one run; `last` is the newest. RegistryError when there is none."""
        with self.database.begin() as session:
            return views.read_run(session, run_id)

    # Stages

    def finished(self, key: str) -> dict[str, Any] | None:
        """The record that the stage with this key returned, as JSON; None while it is not completed.

        Something that is no record where the database holds other bytes than were written.
        """
        with self.database.begin() as session:
            return session.scalar(
                select(StageRunRow.output).where(StageRunRow.key == key, StageRunRow.status == "completed")
            )

    def claim(self, key: str, *, stage: str, run_id: str, holder: str, lease_s: float) -> Lease | None:
        """Claim the lease of a stage; None while another holder's lives, or when the stage is completed."""
        return leases.claim(
            self.database,
            StageRunRow,
            key,
            f"stage {stage} ({key[:12]})",
            holder=holder,
            life_s=lease_s,
            first={"attempts": 1},
            again={"attempts": StageRunRow.attempts + 1, "finished_at": None, "error": None},
            always={"stage": stage, "run_id": run_id, "status": "running", **NO_DEVICE},
        )

    def holder(self, key: str) -> str | None:
        """The holder of the stage's lease; None when the stage is free to claim, or finished."""
        with self.database.begin() as session:
            return session.scalar(
                select(StageRunRow.holder).where(
                    StageRunRow.key == key,
                    StageRunRow.status == "running",
                    StageRunRow.lease_expires >= database_now(),
                )
            )

    def take_from(self, key: str, holder: str, *, if_expired: bool = False) -> None:
        """Let anybody claim the stage of a holder that is known to have ended; nothing if it has another.

        `if_expired`: nothing is known but that its lease had run out; nothing if it was renewed since.
        """
        taken = update(StageRunRow).where(
            StageRunRow.key == key, StageRunRow.holder == holder, StageRunRow.status == "running"
        )
        if if_expired:
            taken = taken.where(leases.is_free(StageRunRow))
        with self.database.begin() as session:
            session.execute(taken.values(status="stopped", **_ended()))

    def complete(self, lease: Lease, record: Record) -> None:
        """Keep the stage's record, with its artifact, scores and release in their tables: all or nothing.

        LeaseLost when another process has claimed the stage: then nothing is written.
        """
        output = record.model_dump(mode="json")
        with self.database.begin() as session:
            leases.write(session, lease, status="completed", output=output, **_ended())
            session.add_all(facts(lease.key, record))

    def fail(self, lease: Lease, error: str) -> None:
        """Keep why the stage failed; anybody may claim it at once. LeaseLost as `complete`."""
        with self.database.begin() as session:
            leases.write(session, lease, status="failed", error=error, **_ended())

    def release(self, lease: Lease) -> None:
        """Give the stage back undone; anybody may claim it at once. Does nothing when the lease is lost."""
        leases.give_back(self.database, lease, status="stopped", **_ended())

    def discard(self, key: str, record: Mapping[str, Any], reason: str) -> None:
        """Forget a finished stage's record, artifact, scores and release: its output no longer verifies.

        Nothing happens when it has been computed again since, i.e. is not finished with `record` any more.
        """
        with self.database.begin() as session:
            row = session.get(StageRunRow, key, with_for_update=True)
            if row is not None and row.status == "completed" and row.output == dict(record):
                row.status, row.error, row.output = "failed", reason, None
                for table in FACTS:
                    session.execute(delete(table).where(table.key == key))

    def replace(self, key: str, record: Record, mended: Record) -> None:
        """Keep another record of a finished stage; nothing happens when it has another than `record` now."""
        with self.database.begin() as session:
            row = session.get(StageRunRow, key, with_for_update=True)
            if row is not None and row.output == record.model_dump(mode="json"):
                row.output = mended.model_dump(mode="json")
                for table in FACTS:
                    session.execute(delete(table).where(table.key == key))
                session.add_all(facts(key, mended))

    def note_use(self, run_id: str, key: str, *, reused: bool, seconds: float) -> None:
        """The run used a stage's output. What one attempt computed counts as computed in later ones too."""
        note = self.database.insert(RunStageRow).values(
            run_id=run_id, key=key, reused=reused, seconds=seconds
        )
        statement = note.on_conflict_do_update(
            index_elements=["run_id", "key"],
            set_={"reused": note.excluded.reused, "seconds": note.excluded.seconds},
            where=note.excluded.reused.is_(False),
        )
        with self.database.begin() as session:
            session.execute(statement)


def facts(key: str, record: Record) -> Iterator[Table]:
    """What a stage's record tells the other tables."""
    if record.tree is not None:
        yield ArtifactRow(key=key, kind=type(record).__name__, **record.tree.model_dump())
    if isinstance(record, Scorecard):
        for score in record.scores:
            cell = score.model_dump(exclude={"items", "error", "stopped"}) | {
                "depth": ALL_DEPTHS if score.depth is None else score.depth
            }
            yield ScoreRow(key=key, checkpoint_digest=record.model_digest, **cell)
    if isinstance(record, Release):
        yield ReleaseRow(
            key=key, released_at=database_now(), **record.model_dump(exclude={"tree", "parents"})
        )


def _must_exist(session: Session, run_id: str) -> None:
    if session.get(RunRow, run_id) is None:
        raise RegistryError(f"run {run_id!r}: not in the registry; `yarn-ops runs` lists them")


def _ended() -> dict[str, Any]:
    return {"lease_expires": None, "finished_at": database_now(), **NO_DEVICE}
