"""Where a model comes from: what each stage made, and of what, read from the registry's rows and records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from yarn_ops.catalogue import DIGEST_TAG
from yarn_ops.digests import digest_of
from yarn_ops.errors import RegistryError
from yarn_ops.registry import views
from yarn_ops.registry.registry import Registry
from yarn_ops.registry.tables import ArtifactRow, ReleaseRow, RunStageRow, StageRunRow
from yarn_ops.shown import counted, duration, one_line, size

RELEASE, CLAIM, PULLED, EXPORT = "release", "claim", "pulled", "export"
KINDS = {
    "patch": "patched",
    "rehearse": "rehearsal",
    "train": "adapter",
    "merge": "merged",
    "evaluate": "scores",
    "gate": "verdict",
    "leg-gate": "leg verdict",
    "capacity": "report",
    "publish": RELEASE,
    "compare": "comparison",
}
"""what a stage makes, where it is not called as the stage"""

NAMES = {
    "base": "{source}",
    "patch": "{method} ×{factor:g}",
    "merge": "{context_tokens:,} tokens",
    "evaluate": "of {measured}",
    "publish": "{name} version {version}",
}
"""what tells a record from others of its kind"""
COUNTS = {
    "documents": ("files", "file"),
    "shards": ("train_tokens", "token"),
    "train": ("steps", "step"),
    "fingerprint": ("texts", "text"),
}
"""of those that are told by how much they hold: the record's count, of what"""


@dataclass(frozen=True)
class LineageNode:
    """One thing on the way from documents to a served file."""

    id: str
    """the key of the stage that made it; of a file or a directory, what it is and its digest"""
    kind: str
    name: str
    digest: str
    """of its files; of its facts where it has none"""
    parents: tuple[str, ...]
    """ids of what it was made from"""
    size_bytes: int | None = None
    seconds: float | None = None
    """that making it took"""
    finished_at: datetime | None = None
    run: str | None = None
    """that made it"""
    uri: str | None = None

    @property
    def size_and_time(self) -> tuple[str, str]:
        """As people read them; nothing of what is not known."""
        return (
            "" if self.size_bytes is None else size(self.size_bytes),
            "" if self.seconds is None else duration(self.seconds),
        )

    @property
    def made(self) -> str:
        return "" if self.finished_at is None else f"{self.finished_at:%Y-%m-%d %H:%M}"


def run_of_release(registry: Registry, name: str, version: int) -> str:
    """The run that published a model version; RegistryError where none here did."""
    with registry.begin() as session:
        found = session.scalar(
            select(StageRunRow.run_id)
            .join(ReleaseRow, ReleaseRow.key == StageRunRow.key)
            .where(ReleaseRow.name == name, ReleaseRow.version == version)
            .order_by(ReleaseRow.released_at.desc())
        )
    if found is None:
        raise RegistryError(
            f"{name} version {version}: no run of this registry made it; ask the one that did"
        )
    return found


def read_lineage(registry: Registry, run_id: str) -> list[LineageNode]:
    """What a run's release was made from, or all that the run made; parents before children.

    A base that was itself merged here brings along what it was made from. RegistryError: no such run.
    """
    nodes: dict[str, LineageNode] = {}
    with registry.begin() as session:
        _add_run(session, run_id, nodes, set())
    releases = [node for node in nodes.values() if node.kind == RELEASE]
    return ancestry(nodes.values(), releases[-1].id) if releases else list(nodes.values())


def ancestry(nodes: Iterable[LineageNode], node_id: str) -> list[LineageNode]:
    """A node and all that it was made from, in the order of `nodes`."""
    every = list(nodes)
    wanted = {node_id}
    for node in reversed(every):  # parents stand before children
        if node.id in wanted:
            wanted.update(node.parents)
    return [node for node in every if node.id in wanted]


def nearest_parents(nodes: Iterable[LineageNode]) -> dict[str, list[str]]:
    """{id of a node: its parents that are not parents of another parent as well, at any distance}."""
    above: dict[str, set[str]] = {}
    nearest = {}
    for node in nodes:
        known = [parent for parent in dict.fromkeys(node.parents) if parent in above]
        farther = {far for parent in known for far in above[parent]}
        nearest[node.id] = [parent for parent in known if parent not in farther]
        above[node.id] = {*known, *farther}
    return nearest


def _add_run(session: Session, run_id: str, nodes: dict[str, LineageNode], seen: set[str]) -> None:
    seen.add(run_id)
    stages = [stage for stage in views.read_run(session, run_id).stages if stage.record is not None]
    makers = select(RunStageRow.key, RunStageRow.run_id, RunStageRow.seconds).where(
        RunStageRow.key.in_([stage.key for stage in stages]), RunStageRow.reused.is_(False)
    )
    made = {key: (run, seconds) for key, run, seconds in session.execute(makers.order_by(RunStageRow.id))}
    by_digest: dict[str, str] = {}
    for stage in stages:
        record: dict[str, Any] = dict(stage.record or {})
        parents = [by_digest[digest] for digest in record["parents"] if digest in by_digest]
        tree, facts = record.get("tree") or {}, {**record}
        del facts["tree"], facts["parents"]
        digest = tree.get("digest") or digest_of(facts)
        if stage.stage == "base":
            parents += _merged_as(session, digest, nodes, seen)
            by_digest.setdefault(digest_of([digest, record["context_tokens"]]), stage.key)  # as BaseModel's
        else:
            by_digest.setdefault(digest, stage.key)
        run, seconds = made.get(stage.key, (None, None))
        nodes.setdefault(
            stage.key,
            LineageNode(
                id=stage.key,
                kind=KINDS.get(stage.stage, stage.stage),
                name=_name(stage.stage, record, nodes.get(by_digest.get(record.get("model_digest", ""), ""))),
                digest=(record.get("tags") or {}).get(DIGEST_TAG) or digest,
                size_bytes=record.get("size_bytes", tree.get("size_bytes")),  # a corpus: of its documents
                seconds=seconds,
                finished_at=stage.finished_at,
                run=run,
                uri=tree.get("uri"),
                parents=tuple(dict.fromkeys(parents)),
            ),
        )


def _merged_as(session: Session, digest: str, nodes: dict[str, LineageNode], seen: set[str]) -> list[str]:
    """The stage that merged these files, its run added to `nodes`; nothing where they come from elsewhere."""
    found = session.execute(
        select(StageRunRow.key, StageRunRow.run_id)
        .join(ArtifactRow, ArtifactRow.key == StageRunRow.key)
        .where(ArtifactRow.digest == digest, ArtifactRow.kind == "Checkpoint")
    ).first()
    if found is None:
        return []
    key, run_id = found
    if run_id not in seen:
        earlier: dict[str, LineageNode] = {}
        _add_run(session, run_id, earlier, seen)
        nodes.update((node.id, node) for node in ancestry(earlier.values(), key))
    return [key] if key in nodes else []


def _name(stage: str, record: dict[str, Any], measured: LineageNode | None) -> str:
    """What tells it from others of its kind, in a few words; nothing of a record of an older version."""
    if "passed" in record:
        return "passed" if record["passed"] else "failed"
    try:
        if stage in COUNTS:
            count, noun = COUNTS[stage]
            return counted(record[count], noun)
        return one_line(NAMES.get(stage, "").format(measured=measured.kind if measured else "?", **record))
    except (KeyError, ValueError, TypeError):
        return ""
