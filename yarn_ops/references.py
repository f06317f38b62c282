"""What of a store is in use, and by which registry: nothing is removed that another one may need.

Registries that share a store each write down there which directories they use (`store/ledger.py`). A
directory may go when the registry at hand is the only one that claims it, and neither its rows nor a release
need it. Whatever nobody claims has an owner who is not known here: then nothing is removed at all.
"""

from __future__ import annotations

from collections.abc import Collection, Set
from dataclasses import dataclass

from yarn_ops.errors import StoreError
from yarn_ops.registry import Registry, copies, upkeep
from yarn_ops.release import Tracking
from yarn_ops.shown import counted
from yarn_ops.store import Store
from yarn_ops.store.keys import join
from yarn_ops.store.ledger import Ledger, LedgerEntry, read_ledgers
from yarn_ops.store.manifest import MANIFEST, Manifest, parse_manifest
from yarn_ops.store.sweep import ARTIFACTS

RELEASES = "mlflow"


@dataclass(frozen=True)
class Holdings:
    """Who uses what. `others`: every other registry in the store, by its id."""

    own: LedgerEntry
    others: dict[str, LedgerEntry]
    finished: dict[str, tuple[int, str | None]]
    """of this registry: {key: (fence, digest of its directory)}"""

    @property
    def used(self) -> set[str]:
        """The directories of this registry's finished stages."""
        return {digest for _, digest in self.finished.values() if digest is not None}

    def shared(self, digest: str) -> bool:
        """Whether another registry claims the directory."""
        return any(digest in other.trees for other in self.others.values())


def examine(store: Store, registry: Registry, trees: Set[str]) -> Holdings:
    """Who uses the store; what this registry has not yet written there of itself is written.

    `trees`: the directories in artifacts/, listed before. StoreError, before anything is written, where this
    registry has no say: it is a stranger, it was set back, or somebody unknown owns some of it.
    """
    entries, finished = read_ledgers(store), copies.finished_stages(registry)
    own = entries.pop(registry.id, None)
    holdings = Holdings(own or LedgerEntry(registry.id), entries, finished)
    if own is None and entries and not holdings.used & trees:
        _, *more = others = [Ledger(store, name).in_words() for name in entries]
        raise StoreError(
            f"{store.url}: belongs to registry {others[0]}{f' and {len(more)} more' if more else ''}; "
            f"{registry.name} has nothing in it: collect with that one's settings, or, if it is lost, run "
            "`yarn-ops db rebuild` first"
        )
    unknown = {key for key, _ in holdings.own.stages} - copies.known_keys(registry)
    if unknown:
        raise StoreError(
            f"{registry.name}: {store.url} has {len(unknown)} finished stages of it that it does not know, "
            "so it was set back or copied; run `yarn-ops db rebuild`, which takes them in"
        )
    if nobodys := unclaimed(holdings, trees):
        raise StoreError(
            f"{store.url}: no registry claims {counted(len(nobodys), 'directory')} "
            f"(artifacts/{min(nobodys)[:12]}…); run `yarn-ops gc --dry-run` once with each other registry "
            "that uses this store, `yarn-ops db rebuild` if this one was lost, or `yarn-ops gc --adopt` if "
            "nobody else uses it"
        )
    publish(Ledger(store, registry.id), registry, holdings)
    return holdings


def unclaimed(holdings: Holdings, trees: Set[str]) -> set[str]:
    """The directories that no registry claims, and this one does not use."""
    claimed = {digest for entry in (holdings.own, *holdings.others.values()) for digest in entry.trees}
    return set(trees) - claimed - holdings.used


def adopt(store: Store, registry: Registry, trees: Set[str]) -> int:
    """Claim for this registry every directory that no registry claims; how many."""
    entries = read_ledgers(store)
    holdings = Holdings(
        entries.pop(registry.id, LedgerEntry(registry.id)), entries, copies.finished_stages(registry)
    )
    ledger, nobodys = Ledger(store, registry.id), unclaimed(holdings, trees)
    for digest in nobodys:
        ledger.claim(digest)
    ledger.sign(registry.name)
    return len(nobodys)


def publish(ledger: Ledger, registry: Registry, holdings: Holdings) -> None:
    """Write into the store what the registry's rows say and the store does not have yet."""
    if holdings.finished or holdings.own.trees:
        ledger.sign(registry.name)
    for digest in holdings.used - holdings.own.trees.keys():
        ledger.claim(digest)
    for key, (fence, _) in holdings.finished.items():
        if (key, fence) not in holdings.own.stages:
            ledger.keep_stage(key, copies.copy_stage(registry, key))
    for run_id, status in upkeep.known_runs(registry).items():
        if status != "running" and run_id not in holdings.own.runs:
            ledger.keep_run(copies.copy_run(registry, run_id))


def kept_by_releases(store: Store, trees: Collection[str]) -> set[str]:
    """Of these directories, those whose files are all part of one release of the store."""
    parts = {digest: files for digest in trees if (files := _files(store, digest)) is not None}
    kept: set[str] = set()
    for info in store.list(f"{RELEASES}/") if parts else ():
        if info.key.endswith(f"/{MANIFEST}"):
            released = _release(store, info.key)
            kept |= {digest for digest, files in parts.items() if files <= released}
    return kept


def kept_by_versions(store: Store, tracking: Tracking, trees: Collection[str]) -> set[str]:
    """Of these directories, those that a model version in MLflow names as its source."""
    kept = set()
    for source in tracking.sources() if trees else ():
        try:
            key = store.key_of(source)
        except StoreError:  # somewhere else
            continue
        kept |= {digest for digest in trees if f"{key}/".startswith(f"{ARTIFACTS}/{digest}/")}
    return kept


def _files(store: Store, digest: str) -> set[tuple[str, str]] | None:
    """(name, sha256) of a directory's files; None when it is not complete."""
    key = join(f"{ARTIFACTS}/{digest}", MANIFEST)
    data = store.find(key)
    try:
        return None if data is None else _entries(parse_manifest(data, key))
    except StoreError:
        return None


def _release(store: Store, key: str) -> set[tuple[str, str]]:
    data = store.find(key)
    try:
        return set() if data is None else _entries(parse_manifest(data, key))
    except StoreError:
        if not key.endswith(f"/model/{MANIFEST}"):  # another program's
            return set()
        raise StoreError(
            f"{store.uri_of(key)}: a damaged release, whose parts cannot be told; put its manifest back, or "
            "remove the directory, and collect then"
        ) from None


def _entries(manifest: Manifest) -> set[tuple[str, str]]:
    return {(name, entry.sha256) for name, entry in manifest.files.items()}
