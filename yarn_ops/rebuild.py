"""A registry that was lost, damaged or set back, made again from what the store keeps and MLflow knows."""

from __future__ import annotations

import ast
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from yarn_ops import references, registry, servers
from yarn_ops.catalogue import ModelVersion
from yarn_ops.digests import digest_of
from yarn_ops.errors import RegistryError, ReleaseError, StoreError, YarnOpsError
from yarn_ops.recipe import recorded_recipe
from yarn_ops.records import Release, Tree
from yarn_ops.registry import Registry, copies, database
from yarn_ops.registry import upkeep as recorded
from yarn_ops.release import Tracking, open_tracking
from yarn_ops.settings import Settings
from yarn_ops.shown import counted
from yarn_ops.store import Store, open_store, store_options
from yarn_ops.store.ledger import Ledger, LedgerEntry, read_ledgers
from yarn_ops.store.sweep import ARTIFACTS
from yarn_ops.store.trees import tree_present

CHECK_S = 120.0
SHOWN = 20
LONG_AGO = datetime.min.replace(tzinfo=UTC)
NOWHERE = (
    "answers of suites asked outside of runs are kept nowhere else: they are measured again when asked for"
)


@dataclass
class Found:
    """What came back, and what did not."""

    runs: int = 0
    stages: int = 0
    lost: list[str] = field(default_factory=list)
    left: set[str] = field(default_factory=set)
    """registries of which a stage is being computed again, so that theirs could not be taken in"""


def rebuild(settings: Settings, *, source: str | None = None) -> Iterator[str]:
    """Make the registry of these settings again, and tell what could and what could not be got back.

    What it has stays as it is, so this can be repeated. A damaged SQLite file is moved aside, never deleted.
    `source`: the id of the lost registry, where several use the store and none was at this database. What
    that one had written into the store becomes this one's. RegistryError, StoreError.
    """
    settings.make_home()
    aside = move_aside(settings)
    if aside is not None:
        yield f"damaged: moved to {aside}"
    registry.upgrade(settings.database)
    made = registry.open_registry(settings.database)
    recorded.free_leases(made)
    store, tracking = open_store(settings.store, store_options(settings)), open_tracking(settings)
    entries = read_ledgers(store)
    taken = _taken(store, made, entries, source)
    found = Found()
    for entry in taken:
        _restore(store, made, Ledger(store, entry.id), entry, found)
    try:
        _from_mlflow(store, made, tracking, {run for entry in entries.values() for run in entry.runs}, found)
    except ReleaseError as error:
        found.lost.append(f"what only MLflow knows: {error}; then run this again")
    _take_over(store, made, taken, found.left)
    released = sorted(recorded.released(made))
    made.close()
    got_back = f"{counted(found.runs, 'run')} and {counted(found.stages, 'finished stage')}"
    yield f"registry {made.name}: {got_back} got back"
    yield "releases: " + (", ".join(f"{name} {version}" for name, version in released) or "none")
    yield from (f"could not be got back: {what}" for what in found.lost[:SHOWN])
    if len(found.lost) > SHOWN:
        yield f"could not be got back: {len(found.lost) - SHOWN} more"
    yield NOWHERE


def move_aside(settings: Settings) -> Path | None:
    """Where a damaged SQLite file of the registry is now; None when there is none, or it is not damaged.

    RegistryError while the service uses it.
    """
    path = database.sqlite_file(settings.database)
    damage = None if path is None else database.sqlite_damage(path, CHECK_S)
    if path is None or damage is None:
        return None
    if "not a database" in damage and settings.database_url is not None:
        return None  # it may be anybody's: opening it tells
    if servers.running_service(settings) is not None:
        raise RegistryError(f"{path}: damaged ({damage}), and `yarn-ops up` uses it; stop that first")
    name = f"{path.name}.damaged-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    for ending in ("", "-wal", "-shm"):
        part = path.with_name(path.name + ending)
        if part.exists():
            part.rename(path.with_name(name + ending))
    return path.with_name(name)


def _taken(
    store: Store, made: Registry, entries: Mapping[str, LedgerEntry], source: str | None
) -> list[LedgerEntry]:
    """Whose records are taken in: this registry's own, and those of the ones that were lost.

    Of several that finished the same stage one after the other the latest comes first, and is believed.
    """
    if source is not None and source not in entries:
        raise StoreError(f"--from {source}: not a registry of {store.url}; {_choice(store, entries)}")
    here = {"database": made.name}
    if made.name.startswith("sqlite"):
        here["host"] = platform.node()
    lost = {
        name
        for name in entries
        if name == source or (source is None and here.items() <= Ledger(store, name).signature().items())
    }
    chosen = [entry for name, entry in entries.items() if name in lost | {made.id}]
    if not chosen and entries:
        raise StoreError(f"{made.name}: no registry of {store.url} was there; {_choice(store, entries)}")
    return sorted(chosen, key=lambda entry: max(entry.stages.values(), default=LONG_AGO), reverse=True)


def _choice(store: Store, entries: Mapping[str, LedgerEntry]) -> str:
    known = ", ".join(Ledger(store, name).in_words() for name in entries)
    return f"name the lost one by --from ID: {known or 'there is none'}"


def _restore(store: Store, made: Registry, ledger: Ledger, entry: LedgerEntry, found: Found) -> None:
    runs = {}
    for name in sorted(entry.runs):
        copy = ledger.run(name)
        try:
            if copy is None or not isinstance(copy.get("stages"), dict) or copy["run"]["id"] != name:
                raise RegistryError("its copy in the store is damaged")
            found.runs += copies.restore_run(made, copy)
            runs[name] = copy
        except RegistryError as error:
            found.lost.append(f"run {name}: {error}")
    rows = [row for copy in runs.values() for row in copy["stages"].values() if isinstance(row, dict)]
    told = {(row.get("key"), row.get("fence")): row for row in rows}
    fences: dict[str, list[int]] = {}
    for key, fence in sorted(entry.stages, reverse=True):
        fences.setdefault(key, []).append(fence)
    for key, newest_first in fences.items():
        faults = []
        for fence in newest_first:
            try:
                copy = _whole(store, ledger.stage(key, fence), key, fence)
                _have_run(made, copy)
                found.stages += copies.restore_stage(made, copy, told.get((key, fence), {}))
                if made.finished(key) is None:
                    found.left.add(ledger.id)
                    found.lost.append(f"stage {key[:12]}: it is being computed; run this again afterwards")
                break
            except YarnOpsError as error:
                faults.append(str(error))
                ledger.forget_stage(key, fence)  # its bytes are gone, or it is unreadable
        else:
            found.lost.append(f"stage {key[:12]}: {faults[0]}")
    for name, copy in runs.items():
        try:
            copies.restore_uses(made, copy)
        except RegistryError as error:
            found.lost.append(f"what run {name} used: {error}")


def _whole(store: Store, copy: dict[str, Any] | None, key: str, fence: int) -> dict[str, Any]:
    """The copy of a stage, its directory named where it lies now; StoreError unless that is complete."""
    try:
        if copy is None:
            raise ValueError
        row = copy["stage"]
        if (row["key"], row["fence"]) != (key, fence) or {fact["key"] for _, fact in copy["facts"]} - {key}:
            raise ValueError
        if (output := row["output"])["tree"] is not None:
            tree = Tree.model_validate(output["tree"])
            here = tree
            if not here.uri.startswith(f"{store.url}/"):  # the store was moved since
                here = tree.model_copy(update={"uri": store.uri_of(f"{ARTIFACTS}/{tree.digest}")})
            if not tree_present(store, here):
                raise StoreError(
                    f"{row['stage']} of run {row['run_id']}: its directory is gone from the store"
                )
            moved = {name: value | {"uri": here.uri} for name, value in copy["facts"] if name == "artifacts"}
            facts = [[name, moved.get(name, value)] for name, value in copy["facts"]]
            output = output | {"tree": here.model_dump()}
            copy = copy | {"stage": row | {"output": output}, "facts": facts}
        return copy
    except (ValueError, KeyError, TypeError):
        raise StoreError("its copy in the store is damaged") from None


def _have_run(made: Registry, copy: Mapping[str, Any]) -> None:
    """Make the run of a stage whose own copy is lost: of it nothing is known but this stage."""
    row = copy["stage"]
    run = {
        "id": row["run_id"], "recipe_digest": digest_of([row["run_id"]]), "recipe": {}, "status": "stopped",
        "reason": copies.LOST, "attempts": 1, "started_at": row["started_at"],
    }  # fmt: skip
    copies.restore_run(made, {"run": run})


def _from_mlflow(store: Store, made: Registry, tracking: Tracking, runs: set[str], found: Found) -> None:
    """Releases of runs that no registry has written into the store, and those that MLflow has lost."""
    known, released = recorded.known_runs(made), recorded.released(made)
    versions = tracking.models()
    for name, number in sorted(released - {(one.name, one.version) for one in versions}):
        found.lost.append(f"release {name} {number} in MLflow: run its recipe again")
    for version in versions:
        run_id = version.tags.get("run", "")
        if (
            not run_id
            or run_id in runs
            or run_id in known
            or version.tags["gate"] not in ("passed", "failed")
        ):
            continue
        try:
            store.key_of(version.source)
            when = version.created_at.isoformat()
            run = {
                "id": run_id, "recipe_digest": version.tags.get("recipe", ""), "attempts": 1,
                "recipe": _recipe_of(tracking, version), "mlflow_run_id": version.mlflow_run_id,
                "git_commit": version.tags.get("git_commit"), "started_at": when, "finished_at": when,
                "status": "completed" if version.passed else "rejected",
            }  # fmt: skip
            found.runs += copies.restore_run(made, {"run": run})
            copies.restore_release(made, run_id, _release_of(version), when)
        except StoreError:
            continue  # of another store
        except YarnOpsError as error:
            found.lost.append(f"release {version.name} {version.version}: {error}")


def _release_of(version: ModelVersion) -> Release:
    return Release(
        name=version.name,
        version=version.version,
        mlflow_run_id=version.mlflow_run_id,
        gate="passed" if version.passed else "failed",
        alias=next(iter(version.aliases), None),
        tags=version.tags,
    )


def _recipe_of(tracking: Tracking, version: ModelVersion) -> dict[str, Any]:
    """The recipe as MLflow's parameters have it where they are whole, by its digest; else what tags say."""
    sections: dict[str, dict[str, Any]] = {}
    for name, text in tracking.params(version.mlflow_run_id).items():
        section, _, key = name.partition(".")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = text
        if value is not None:
            sections.setdefault(section, {})[key] = value
    try:
        recipe = recorded_recipe(sections, version.name)
        if recipe.digest() == version.tags.get("recipe"):
            return recipe.model_dump(mode="json")
    except (YarnOpsError, ValidationError):
        pass
    return {
        "base": {"model": version.tags.get("base", "unknown")},
        "rope": {"method": version.tags.get("rope_method", "unknown")},
        "publish": {"name": version.name},
    }


def _take_over(store: Store, made: Registry, taken: list[LedgerEntry], left: set[str]) -> None:
    """Write all of it under this registry's own id, and then take the lost ones' away, but for `left`."""
    own, now = Ledger(store, made.id), read_ledgers(store).get(made.id, LedgerEntry(made.id))
    references.publish(own, made, references.Holdings(now, {}, copies.finished_stages(made)))
    for entry in taken:
        if entry.id != made.id:
            for digest in entry.trees:
                own.claim(digest)
            if entry.id not in left:
                Ledger(store, entry.id).remove(entry)
