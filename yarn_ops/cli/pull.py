"""Pulling a registered model: find it in MLflow, download and verify it, prove its RoPE."""

from __future__ import annotations

from pathlib import Path

from yarn_ops.bars import Bars
from yarn_ops.catalogue import ModelVersion
from yarn_ops.model_files import read_config
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.services import try_mlflow
from yarn_ops.settings import read_settings
from yarn_ops.store import open_store, store_options
from yarn_ops.store.local import LocalStore
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
    release = try_mlflow(settings).find(
        name, tags=tags, alias=alias, version=version, include_rejected=include_rejected
    )
    store = open_store(settings.store, store_options(settings))
    with Bars() as bars:
        # A store on this machine is as near as the cache would be.
        cache = None if isinstance(store, LocalStore) else settings.home / "cache"
        pull_tree(store, release.source, to, cache=cache, report=bars.of(f"{name} {release.version}"))
    from yarn_ops.rope.patch import prove_directory  # torch: seconds that a pull of nothing need not wait

    prove_directory(to, rope_spec_of(read_config(to)))
    return release
