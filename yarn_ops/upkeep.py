"""Garbage: what the store, the state directory and MLflow hold that no run will use, and how much of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from yarn_ops import references
from yarn_ops.catalogue import GATE_TAG, PASSED
from yarn_ops.processes import is_used, remove_unused
from yarn_ops.registry import Registry, copies
from yarn_ops.registry import upkeep as records
from yarn_ops.release import Tracking, open_tracking
from yarn_ops.settings import Settings
from yarn_ops.store import Store, sweep
from yarn_ops.store.ledger import Ledger, claims_on
from yarn_ops.store.sweep import Leftover

GRACE = timedelta(days=7)
"""what is younger may belong to a run that goes on"""
CLOCKS = timedelta(minutes=10)
"""by which the clocks of database, store and this machine may differ"""
OBSERVATIONS = "observations"
"""the folder, below the working directories, in which runs look at what is outside, each in one of its own"""
UNFINISHED = "unfinished"
"""gate tag of a version whose run never came to record it"""


@dataclass(frozen=True)
class Garbage:
    """One thing to remove. `kind`: upload, tree, claim (on a tree that others use, or that is not there),
    copy (of a stage's row that is no more), unit, work (a stage's working directory) or cache (what was
    fetched)."""

    kind: str
    name: str
    size_bytes: int
    modified: datetime
    leftover: Leftover | None = None
    claimed: datetime | None = None
    """when this registry claimed the tree last"""
    folder: Path | None = None
    file: Path | None = None


def find_garbage(
    settings: Settings, store: Store, registry: Registry, grace: timedelta = GRACE
) -> list[Garbage]:
    """Everything older than `grace` that nothing refers to, largest first.

    What belongs to a stage at work stays, whatever `grace` is. StoreError where the store may hold what
    another registry needs (`references.examine`).
    """
    found = [*stored_garbage(settings, store, registry, grace), *local_garbage(settings, registry, grace)]
    return sorted(found, key=lambda one: one.size_bytes, reverse=True)


def stored_garbage(
    settings: Settings, store: Store, registry: Registry, grace: timedelta = GRACE
) -> list[Garbage]:
    """Of `find_garbage`, what lies in the store."""
    # In this order: what is begun, stored and recorded meanwhile is young, or known when it comes to it.
    before, working = _horizon(registry, grace)
    listed = sweep.trees(store)
    holdings = references.examine(store, registry, listed.keys())
    if holdings.others:  # their stages at work are not known here
        before = min(before, datetime.now(UTC) - GRACE)
    given_up = {
        digest: when
        for digest, when in holdings.own.trees.items()
        if when < before and digest not in holdings.used
    }
    trees = {
        digest
        for digest in given_up.keys() & listed.keys()
        if not holdings.shared(digest) and listed[digest].modified < before
    }
    trees -= references.kept_by_releases(store, trees)
    trees -= references.kept_by_versions(store, open_tracking(settings), trees)
    leftovers = [listed[digest] for digest in trees]
    leftovers += sweep.unfinished_uploads(store, before)
    if not working:  # one that prepares documents needs units of any age
        leftovers += [unit for unit in sweep.units(store) if unit.modified < before]
    found = [
        Garbage(one.kind, one.name, one.size_bytes, one.modified, one, given_up.get(one.name))
        for one in leftovers
    ]
    for digest, when in given_up.items():
        if digest not in listed or holdings.shared(digest):
            found.append(Garbage("claim", digest, 0, when, claimed=when))
    for (key, fence), when in holdings.own.stages.items():
        if when < before and holdings.finished.get(key, (0, None))[0] != fence:
            found.append(Garbage("copy", f"{key}-{fence}", 0, when))
    return found


def local_garbage(settings: Settings, registry: Registry, grace: timedelta = GRACE) -> list[Garbage]:
    """Of `find_garbage`, what lies on this machine."""
    before, working = _horizon(registry, grace)
    cache, work = settings.home / "cache", settings.home / "work"
    looking = any(is_used(folder) for folder in work.glob(f"{OBSERVATIONS}/*"))
    if looking:  # at a base in the cache, it may be, without a stage's lease
        before = min(before, datetime.now(UTC) - GRACE)
    return [
        *_work_folders(work, registry, working, datetime.now(UTC) - grace),
        *_cached_files(cache, before),
        *_cached_folders(cache, before),
    ]


def remove(store: Store, registry: Registry, garbage: Garbage) -> bool:
    """Remove it, unless it has been put to use since; whether it is gone. StoreError, RegistryError."""
    ledger = Ledger(store, registry.id)

    def taken_up() -> bool:
        return claims_on(store, garbage.name) != {
            registry.id: garbage.claimed
        } or garbage.name in records.referenced_trees(registry)

    if garbage.kind == "claim":
        claimed = claims_on(store, garbage.name).get(registry.id)
        if claimed != garbage.claimed or garbage.name in records.referenced_trees(registry):
            return False
        ledger.give_up(garbage.name)
    elif garbage.kind == "copy":
        key, fence = garbage.name.split("-")
        if copies.finished_stages(registry).get(key, (0, None))[0] == int(fence):
            return False
        ledger.forget_stage(key, int(fence))
    elif garbage.kind == "tree" and garbage.leftover is not None:
        if not sweep.remove_directory(store, garbage.leftover, taken_up):
            return False
        ledger.give_up(garbage.name)
    elif garbage.kind == "unit" and garbage.leftover is not None:
        return sweep.remove_directory(store, garbage.leftover, lambda: False)
    elif garbage.leftover is not None:
        sweep.give_up_upload(store, garbage.leftover)
    if garbage.folder is not None:
        return remove_unused(garbage.folder)
    if garbage.file is not None:
        garbage.file.unlink(missing_ok=True)
    return True


def _horizon(registry: Registry, grace: timedelta) -> tuple[datetime, set[str]]:
    """(what is younger stays, the keys of the stages at work): whatever is asked, their things are young."""
    working = records.stages_at_work(registry)
    before = datetime.now(UTC) - grace
    if working:
        before = min(before, min(stage.started_at for stage in working) - CLOCKS)
    return before, {stage.key for stage in working}


def half_registered(registry: Registry, tracking: Tracking) -> list[tuple[str, int]]:
    """Model versions that a run of ours made and did not come to record; none while that run goes on.

    They are marked so that nobody pulls them. The run, asked for again, finishes the same version.
    """
    runs, released = records.known_runs(registry), records.released(registry)
    found = []
    for version in tracking.models():
        status = runs.get(version.tags.get("run", ""))
        if status in (None, "running") or (version.name, version.version) in released:
            continue
        if version.tags.get(GATE_TAG) == PASSED:
            tracking.set_tag(version.name, version.version, GATE_TAG, UNFINISHED)
            found.append((version.name, version.version))
    return found


def _work_folders(root: Path, registry: Registry, working: set[str], before: datetime) -> Iterator[Garbage]:
    """Working folders of stages that another machine finished or that were abandoned, and of observations."""
    done = {key[:16] for key in copies.finished_stages(registry)}
    at_work = {key[:16] for key in working} | {OBSERVATIONS}
    for folder in (*root.glob("*"), *root.glob(f"{OBSERVATIONS}/*")):
        used = is_used(folder)
        if not folder.is_dir() or folder.name in at_work or used:
            continue
        try:
            files = [path for path in folder.rglob("*") if path.is_file()]
            facts = [path.stat() for path in files] or [folder.stat()]
        except FileNotFoundError:  # somebody removes it, or works there
            continue
        modified = datetime.fromtimestamp(max(fact.st_mtime for fact in facts), UTC)
        now = datetime.now(UTC)
        old = before if used is not None else min(before, now - GRACE)  # None: nobody can tell
        if modified < old or (folder.name in done and modified < now - timedelta(hours=1)):
            size = sum(fact.st_size for fact in facts) if files else 0
            yield Garbage("work", folder.name, size, modified, folder=folder)


def _cached_folders(cache: Path, before: datetime) -> Iterator[Garbage]:
    """Fetched directories that no run has used since `before`; files that only they link to go with them."""
    for folder in (*cache.glob("*"), *cache.glob("bases/*")):
        if not re.fullmatch("[0-9a-f]{64}", folder.name):
            continue
        modified = datetime.fromtimestamp(folder.stat().st_mtime, UTC)
        if modified < before:
            size = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
            yield Garbage("cache", folder.name, size, modified, folder=folder)


def _cached_files(cache: Path, before: datetime) -> Iterator[Garbage]:
    """Pulled files that no directory links to any more, and pulls that were broken off and not taken up."""
    for path in cache.glob("files/*"):
        try:
            facts = path.stat()
        except FileNotFoundError:  # it has just arrived under its own name
            continue
        modified = datetime.fromtimestamp(facts.st_ctime, UTC)  # also when a link was made or removed
        if facts.st_nlink == 1 and modified < before and not is_used(path):
            yield Garbage("cache", path.name, 512 * facts.st_blocks, modified, file=path)
