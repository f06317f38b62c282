"""Pulling a registered model: find it in MLflow, download and verify it, prove its RoPE."""

from __future__ import annotations

import json
from pathlib import Path

from yarn_ops.progress import terminal_progress
from yarn_ops.release import ModelVersion, open_tracking
from yarn_ops.settings import read_settings
from yarn_ops.store import open_store
from yarn_ops.store.pull import pull_tree


def pull_release(
    name: str,
    to: Path,
    *,
    tags: dict[str, str],
    alias: str | None,
    version: int | None,
    include_rejected: bool,
) -> ModelVersion:
    """Download the newest version of `name` that matches into the new directory `to`, and prove its RoPE.

    Every file's sha256 is checked; a broken download goes on where it stopped; `to` appears whole or not
    at all. Raises ReleaseError (nothing matches), StoreError (bytes), ProofError (frequencies).
    """
    settings = read_settings()
    release = open_tracking(settings).find(
        name, tags=tags, alias=alias, version=version, include_rejected=include_rejected
    )
    store = open_store(settings.store, settings.store_options)
    with terminal_progress(f"pull {name} {release.version}") as report:
        pull_tree(store, release.source, to, report=report)
    _prove(to, release)
    return release
