"""Garbage: what the store, the state directory and MLflow hold that no run will use, and how much of it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from yarn_ops.catalogue import GATE_TAG, PASSED
from yarn_ops.registry import Registry
from yarn_ops.registry import upkeep as records
from yarn_ops.release import Tracking
from yarn_ops.settings import Settings
from yarn_ops.store import Store, sweep
from yarn_ops.store.sweep import Leftover

GRACE = timedelta(days=7)
"""what is younger may belong to a run that goes on"""
UNFINISHED = "unfinished"
"""gate tag of a version whose run never came to record it"""


@dataclass(frozen=True)
class Garbage:
    """One thing to remove. `kind`: upload, tree, unit, work (a stage's working directory) or cache (what was
    fetched)."""

    kind: str
    name: str
    size_bytes: int
    modified: datetime
    leftover: Leftover | None = None
    folder: Path | None = None
    file: Path | None = None


def find_garbage(
    settings: Settings, store: Store, registry: Registry, grace: timedelta = GRACE
) -> list[Garbage]:
    """Everything older than `grace` that nothing refers to, largest first."""
    before = datetime.now(UTC) - grace
    leftovers = [*sweep.unfinished_uploads(store, before)]
    # References are read after the listing began: what was recorded in between is not taken for garbage.
    trees = [*sweep.unreferenced_trees(store, (), before)]
    used = records.referenced_trees(registry)
    leftovers += [tree for tree in trees if tree.name not in used]
    leftovers += sweep.old_units(store, before)
    found = [Garbage(one.kind, one.name, one.size_bytes, one.modified, one) for one in leftovers]
    found += _work_folders(settings.home / "work", records.completed_keys(registry), before)
    found += _cached_files(settings.home / "cache", before)
    found += _cached_folders(settings.home / "cache", before)
    return sorted(found, key=lambda one: one.size_bytes, reverse=True)


def remove(store: Store, garbage: Garbage) -> None:
    """StoreError when the store refuses."""
    if garbage.leftover is not None:
        sweep.remove(store, garbage.leftover)
    if garbage.folder is not None:
        shutil.rmtree(garbage.folder, ignore_errors=True)
    if garbage.file is not None:
        garbage.file.unlink(missing_ok=True)


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


def _work_folders(root: Path, completed: set[str], before: datetime) -> Iterator[Garbage]:
    """Of stages that another machine has finished, or that nobody has gone on with."""
    done = {key[:16] for key in completed}
    for folder in root.glob("*"):
        if not folder.is_dir() or folder.name == "observations":
            continue
        files = [path for path in folder.rglob("*") if path.is_file()]
        facts = [path.stat() for path in files] or [folder.stat()]
        modified = datetime.fromtimestamp(max(fact.st_mtime for fact in facts), UTC)
        if modified < before or (folder.name in done and modified < datetime.now(UTC) - timedelta(hours=1)):
            size = sum(fact.st_size for fact in facts) if files else 0
            yield Garbage("work", folder.name, size, modified, folder=folder)


def _cached_folders(cache: Path, before: datetime) -> Iterator[Garbage]:
    """Fetched directories that no run has come to use for long; what they have alone goes with them."""
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
        if facts.st_nlink == 1 and modified < before:
            yield Garbage("cache", path.name, 512 * facts.st_blocks, modified, file=path)
