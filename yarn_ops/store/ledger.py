"""What every registry writes of itself into a store that it uses, so that none takes what another one needs.

    claims/<digest>/<id>                       it made, or uses, artifacts/<digest>/; before the first byte
    registries/<id>/registry.json              its database, its machine, when it was last seen
    registries/<id>/stages/<key>-<fence>.json  a finished stage, before its row is: what makes the row again
    registries/<id>/runs/<run>.json            a run, as far as it came

A registry writes under its own id alone, so nobody has to be asked, and no write has to be conditional.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from yarn_ops.digests import canonical_json
from yarn_ops.errors import StoreError
from yarn_ops.store import Store

CLAIMS = "claims"
REGISTRIES = "registries"
CLAIM = re.compile(rf"{CLAIMS}/(?P<digest>[0-9a-f]{{64}})/(?P<id>[0-9a-f]{{32}})")
PART = re.compile(
    rf"{REGISTRIES}/(?P<id>[0-9a-f]{{32}})/(?:registry\.json"
    r"|stages/(?P<key>[0-9a-f]{64})-(?P<fence>\d{1,18})\.json|runs/(?P<run>[^/]+)\.json)"
)


@dataclass(frozen=True)
class LedgerEntry:
    """What one registry has in the store, by the names of its objects; each with the time of its writing."""

    id: str
    trees: dict[str, datetime] = field(default_factory=dict)
    """by digest"""
    stages: dict[tuple[str, int], datetime] = field(default_factory=dict)
    """by key and fence"""
    runs: dict[str, datetime] = field(default_factory=dict)


def read_ledgers(store: Store) -> dict[str, LedgerEntry]:
    """Every registry that has written itself into the store, by its id.

    StoreError for an object that none of ours wrote there: what it stands for cannot be told.
    """
    entries: dict[str, LedgerEntry] = {}
    for pattern, below in ((CLAIM, CLAIMS), (PART, REGISTRIES)):
        for info in store.list(f"{below}/"):
            named = pattern.fullmatch(info.key)
            if named is None:
                raise StoreError(
                    f"{store.uri_of(info.key)}: nothing that a yarn-ops of this version writes there; "
                    "update this one, or move the object away"
                )
            told = named.groupdict()
            entry = entries.setdefault(told["id"], LedgerEntry(told["id"]))
            if told.get("digest"):
                entry.trees[told["digest"]] = info.modified
            elif told["key"]:
                entry.stages[told["key"], int(told["fence"])] = info.modified
            elif told["run"]:
                entry.runs[told["run"]] = info.modified
    return entries


def claims_on(store: Store, digest: str) -> dict[str, datetime]:
    """Which registries claim the directory now: {id: when they did so last}."""
    found = store.list(f"{CLAIMS}/{digest}/")
    return {info.key.rpartition("/")[2]: info.modified for info in found}


class Ledger:
    """One registry's part of the store. StoreError from every method when the store fails."""

    def __init__(self, store: Store, registry_id: str) -> None:
        self.store = store
        self.id = registry_id

    def sign(self, database: str) -> None:
        """Write registry.json. database: the registry's URL without its password."""
        told = {
            "registry": self.id, "database": database, "host": platform.node(),
            "last_seen": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        self._write("registry.json", told)

    def signature(self) -> dict[str, str]:
        """Its registry.json: database, host and last_seen; each `unknown` where it cannot be read."""
        told = self._read("registry.json") or {}
        return {name: str(told.get(name, "unknown"))[:200] for name in ("database", "host", "last_seen")}

    def in_words(self) -> str:
        """The registry in words, for messages."""
        told = self.signature()
        return f"{self.id} ({told['database']} on {told['host']}, last seen {told['last_seen']})"

    def claim(self, digest: str) -> None:
        """Say that artifacts/<digest>/ is used; before its first byte is written."""
        self.store.write(f"{CLAIMS}/{digest}/{self.id}", b"")

    def give_up(self, digest: str) -> None:
        """The directory is not used any more."""
        self.store.delete(f"{CLAIMS}/{digest}/{self.id}")

    def keep_stage(self, key: str, copy: Mapping[str, Any]) -> None:
        self._write(f"stages/{key}-{copy['stage']['fence']}.json", copy)

    def stage(self, key: str, fence: int) -> dict[str, Any] | None:
        """The copy; None when it is gone or damaged."""
        return self._read(f"stages/{key}-{fence}.json")

    def forget_stage(self, key: str, fence: int) -> None:
        self.store.delete(self._key(f"stages/{key}-{fence}.json"))

    def keep_run(self, copy: Mapping[str, Any]) -> None:
        self._write(f"runs/{copy['run']['id']}.json", copy)

    def run(self, run_id: str) -> dict[str, Any] | None:
        """The copy; None when it is gone or damaged."""
        return self._read(f"runs/{run_id}.json")

    def remove(self, entry: LedgerEntry) -> None:
        """Take everything of this registry away; `entry`: what that is."""
        for digest in entry.trees:
            self.give_up(digest)
        for key in [info.key for info in self.store.list(self._key(""))]:
            self.store.delete(key)

    def _write(self, name: str, told: Mapping[str, Any]) -> None:
        self.store.write(self._key(name), canonical_json(told).encode())

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            told = json.loads(self.store.find(self._key(name)) or b"")
        except ValueError:
            return None
        return told if isinstance(told, dict) else None

    def _key(self, name: str) -> str:
        return f"{REGISTRIES}/{self.id}/{name}"
