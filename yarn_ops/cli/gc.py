"""`yarn-ops gc`: what the store and the work folder hold that nothing refers to."""

from __future__ import annotations

from datetime import timedelta

from yarn_ops import references, upkeep
from yarn_ops.services import open_run_registry
from yarn_ops.settings import Settings
from yarn_ops.store import open_store, store_options, sweep
from yarn_ops.upkeep import Garbage


def collect(settings: Settings, *, older_than_days: float, dry_run: bool) -> list[Garbage]:
    """Find garbage and remove it; what is gone, or with `dry_run` what would be, largest first."""
    registry = open_run_registry(settings)
    store = open_store(settings.store, store_options(settings))
    found = upkeep.find_garbage(settings, store, registry, timedelta(days=older_than_days))
    if not dry_run:
        found = [garbage for garbage in found if upkeep.remove(store, registry, garbage)]
    registry.close()
    return found


def adopt(settings: Settings) -> int:
    """Take every directory of the store that no registry claims for this one's; how many."""
    registry = open_run_registry(settings)
    store = open_store(settings.store, store_options(settings))
    adopted = references.adopt(store, registry, sweep.trees(store).keys())
    registry.close()
    return adopted
