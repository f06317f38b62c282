"""What suites have measured, cell by cell, so that no cell of a checkpoint is measured twice.

Any number of processes, on any number of machines, may measure the cells of one suite: each claims a cell
under a lease with a fencing number, as stages are claimed, and its scores are written under that number.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from sqlalchemy import select

from yarn_ops.digests import digest_of
from yarn_ops.registry.columns import database_now
from yarn_ops.registry.database import Database, open_database
from yarn_ops.registry.holder import this_process
from yarn_ops.registry.leases import Lease, claim, give_back, renewed, write
from yarn_ops.registry.registry import Registry
from yarn_ops.registry.tables import ALL_DEPTHS, CellRow, MeasurementRow, RunRow, ScoreRow, StageRunRow
from yarn_ops.scores import CellKey, SameCell, Score, Scorecard

SCORE = ("task", "context_tokens", "seed", "value", "low", "high", "samples", "items")
LEASE_S = 60.0

Keep = Callable[[tuple[Score, ...]], None]


class Measurements:
    """Of all checkpoints: a suite's journal. RegistryError from every method when the database fails."""

    def __init__(self, database: Database, lease_s: float, holder: str) -> None:
        self._database = database
        self._lease_s = lease_s
        self._holder = holder

    def close(self) -> None:
        self._database.close()

    def known(self, key: CellKey) -> tuple[Score, ...] | None:
        """The scores of a cell in the order they were kept; None while it is not measured."""
        rows = (
            select(MeasurementRow)
            .where(*(getattr(MeasurementRow, name) == value for name, value in _columns(key).items()))
            .order_by(MeasurementRow.id)
        )
        with self._database.begin() as session:
            found = tuple(map(_score, session.scalars(rows)))
            if not found and not session.scalar(select(CellRow.finished_at).where(CellRow.key == _key(key))):
                return None
        return found

    @contextmanager
    def claimed(self, key: CellKey) -> Iterator[Keep | None]:
        """Claim a cell for the block; yields the function that keeps its scores.

        None: another process is at it, or has been. Keeping raises LeaseLost when another has
        taken the cell over: nothing is written.
        """
        asked_at = time.monotonic()
        told = {
            "checkpoint_digest": key.checkpoint_digest,
            "cell": key.cell,
            "cell_tokens": key.context_tokens,
        }
        lease = claim(
            self._database, CellRow, _key(key), f"{key.cell} at {key.context_tokens}",
            holder=self._holder, life_s=self._lease_s, first=told,
        )  # fmt: skip
        if lease is None:
            yield None
            return
        try:
            with renewed(self._database, lease, asked_at) as renewal:
                yield lambda scores: renewal.last(lambda: self._keep(key, lease, scores))
        finally:
            give_back(self._database, lease)

    def _keep(self, key: CellKey, lease: Lease, scores: tuple[Score, ...]) -> None:
        """All scores or none, with the end of the lease."""
        rows = [
            {
                **_columns(key),
                **{name: getattr(score, name) for name in SCORE},
                "depth": ALL_DEPTHS if score.depth is None else score.depth,
                "measured_at": database_now(),
            }
            for score in scores
        ]
        with self._database.begin() as session:
            write(session, lease, lease_expires=None, finished_at=database_now())
            if rows:
                session.execute(self._database.insert(MeasurementRow).values(rows).on_conflict_do_nothing())


def open_measurements(url: str, lease_s: float = LEASE_S, holder: str | None = None) -> Measurements:
    """Open the measurements in the database at `url`; RegistryError when it cannot be used.

    `holder`: who claims cells; left out, this process.
    """
    return Measurements(open_database(url), lease_s, holder or this_process())


def scores_by_cell(registry: Registry, checkpoint_digest: str) -> dict[SameCell, Score]:
    """Every score that runs have of a checkpoint, by what was asked; how far it sees and uses left out.

    A score whose protocol is not sure, since the registry knows several that fit, is left out. One that was
    made from other scores has the protocols of these; where the registry has lost the cells, its protocol is
    that of the recipe's evaluation on its documents.
    """
    cards = (
        select(StageRunRow.output, RunRow.recipe)
        .join(RunRow, RunRow.id == StageRunRow.run_id)
        .where(
            StageRunRow.key.in_(select(ScoreRow.key).where(ScoreRow.checkpoint_digest == checkpoint_digest))
        )
        .order_by(StageRunRow.finished_at)
    )
    asked: defaultdict[tuple[str, int, int], list[MeasurementRow]] = defaultdict(list)
    found: dict[SameCell, Score] = {}
    with registry.begin() as session:
        measured = select(MeasurementRow).where(MeasurementRow.checkpoint_digest == checkpoint_digest)
        for row in session.scalars(measured):
            asked[row.task, row.context_tokens, row.seed].append(row)
        for output, recipe in session.execute(cards):
            card = Scorecard.model_validate(output)
            whole = digest_of([recipe.get("evaluate"), card.parents[1:]])
            sure = {score: _protocols(score, asked) for score in card.scores}
            for score, protocols in sure.items():
                if _family(score) == "capacity":
                    continue
                if not protocols:
                    beside = [
                        sure[one] for one in sure
                        if (_family(one), one.context_tokens) == (_family(score), score.context_tokens)
                    ]  # fmt: skip
                    made_of = sorted(set().union(*beside))
                    protocols = {digest_of(made_of) if made_of else whole}
                if len(protocols) == 1:
                    where = (score.task, score.context_tokens, score.depth, score.seed)
                    found[SameCell(next(iter(protocols)), *where)] = score
    return found


def _family(score: Score) -> str:
    return score.task.partition("/")[0]


def _protocols(score: Score, asked: dict[tuple[str, int, int], list[MeasurementRow]]) -> set[str]:
    """The protocols of the cells that the score may be of: of several, those with its value or samples; one
    of all of them where it is made of all."""
    rows = asked.get((score.task, score.context_tokens, score.seed), ())
    protocols = {row.protocol for row in rows}
    if len(protocols) < 2:
        return protocols
    depth = ALL_DEPTHS if score.depth is None else score.depth
    blocks = [row for row in rows if row.depth == depth]

    def fits(blocks: Sequence[MeasurementRow]) -> bool:
        if len(blocks) == 1:
            return blocks[0].value == score.value
        return sum(block.samples for block in blocks) == score.samples

    if sure := {one for one in protocols if fits([row for row in blocks if row.protocol == one])}:
        return sure
    return {digest_of(sorted(protocols))} if fits(blocks) else set()


def _key(key: CellKey) -> str:
    return digest_of(asdict(key))


def _columns(key: CellKey) -> dict[str, str | int]:
    columns = asdict(key)
    columns["cell_tokens"] = columns.pop("context_tokens")  # a score of the cell may be of another length
    return columns


def _score(row: Any) -> Score:
    return Score(
        depth=None if row.depth == ALL_DEPTHS else row.depth, **{name: getattr(row, name) for name in SCORE}
    )
