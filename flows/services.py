"""The services that a run uses, opened from the settings when they are first needed."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

from yarn_ops.data.files import Files
from yarn_ops.data.shards import LocalUnits, Units
from yarn_ops.registry import Registry
from yarn_ops.release import Tracking, open_tracking
from yarn_ops.settings import Settings
from yarn_ops.store import Store, StoreOptions, files_for, open_store, store_options
from yarn_ops.store.ledger import Ledger


class Services:
    """Object storage, files to read documents from, MLflow, and where documents are prepared."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._settings = settings
        self._registry = registry

    @cached_property
    def store_options(self) -> StoreOptions:
        return store_options(self._settings)

    @cached_property
    def store(self) -> Store:
        return open_store(self._settings.store, self.store_options)

    @cached_property
    def ledger(self) -> Ledger:
        """What this registry writes of itself into the store."""
        return Ledger(self.store, self._registry.id)

    @cached_property
    def files(self) -> Files:
        return files_for(self.store_options)

    @cached_property
    def tracking(self) -> Tracking:
        return open_tracking(self._settings)

    def units(self, work: Path) -> Units:
        """Where documents are prepared: in this process, or on the cluster that the settings name."""
        if self._settings.cluster is None:
            return LocalUnits(work / "units", self.files, os.cpu_count() or 1)
        from yarn_ops.cluster import ClusterUnits  # Dask

        return ClusterUnits(self._settings, work / "units", self.ledger)
