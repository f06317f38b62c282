"""`yarn-ops gc`: what the store and the work folder hold that nothing refers to."""

from __future__ import annotations

from datetime import timedelta

from yarn_ops import upkeep
from yarn_ops.services import open_run_registry
from yarn_ops.settings import Settings
from yarn_ops.store import open_store, store_options
from yarn_ops.upkeep import Garbage


def collect(settings: Settings, *, older_than_days: float, dry_run: bool) -> list[Garbage]:
    """Find garbage and, unless `dry_run`, remove it; what was found, largest first."""
    registry = open_run_registry(settings)
    store = open_store(settings.store, store_options(settings))
    found = upkeep.find_garbage(settings, store, registry, timedelta(days=older_than_days))
    if not dry_run:
        for garbage in found:
            upkeep.remove(store, garbage)
    registry.close()
    return found
