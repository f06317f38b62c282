"""Units of a corpus on many machines: Dask's workers make them, object storage keeps them.

    units/<key>/                  a unit's result: its files and, written last, their manifest
    units/tokenizer-<digest>/     what the workers tokenise with

A worker reads its sources from S3 and writes its result there; who asks hears of manifests only. Each worker
takes its keys and its state directory from its own environment, as every process of ours does. A unit whose
worker dies is made by another one. One that is there already is never made again: neither in this run nor in
a later one, of the same corpus or of one that grew.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from yarn_ops.atomic import atomic_write
from yarn_ops.data.files import Files
from yarn_ops.data.fragments import FRAGMENTS, TOKENS, make_unit
from yarn_ops.data.tokenizer import Tokenizer
from yarn_ops.data.units import Unit, UnitOptions, unit_key
from yarn_ops.digests import digest_of, file_digest
from yarn_ops.errors import DataError, SettingsError, StoreError
from yarn_ops.processes import scratch
from yarn_ops.records import Tree
from yarn_ops.settings import Settings, read_settings
from yarn_ops.store import Store, StoreOptions, files_for, open_store, store_options
from yarn_ops.store.damage import Fault, faults_stored, refusal, stored_sizes
from yarn_ops.store.keys import join
from yarn_ops.store.ledger import Ledger
from yarn_ops.store.manifest import MANIFEST, Manifest, parse_manifest
from yarn_ops.store.pull import pull_tree
from yarn_ops.store.sweep import UNITS
from yarn_ops.store.transfer import Transfer
from yarn_ops.store.trees import put_tree, put_tree_at

log = logging.getLogger(__name__)

ANSWER_S = 10
RETRIES = 2
"""of a unit that failed, for example because storage did"""


class ClusterUnits:
    """`Units` (see data/shards.py) made by the workers of the Dask cluster that the settings name."""

    def __init__(self, settings: Settings, folder: Path, owner: Ledger | None = None) -> None:
        """`folder`: for the small files that are read here. `owner`: of what is made of units."""
        self._settings = settings
        self._folder = folder
        self._owner = owner
        self._manifests: dict[str, Manifest] = {}
        self._read: set[Path] = set()
        """what lies here and is what its manifest says"""

    @cached_property
    def _store(self) -> Store:
        return open_store(self._settings.store, store_options(self._settings))

    @property
    def files(self) -> Files:
        return files_for(store_options(self._settings))

    def make(self, units: Mapping[str, Unit], options: UnitOptions, tokenizer: Tokenizer) -> Iterator[str]:
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = _keep_tokenizer(self._store, tokenizer)
        with _client(self._settings) as client:
            from distributed import KilledWorker, as_completed
            from distributed.client import FutureCancelledError

            # Largest first, so that none is left for the end when all others are done.
            ordered = sorted(units.items(), key=lambda item: -item[1].size_bytes)
            url = self._store.url
            keys = {f"{url}/{_place(key, MANIFEST)}": key for key, _ in ordered}  # by Dask's names
            futures = [
                client.submit(make_in_store, keys[name], unit, options, kept, url, key=name, retries=RETRIES)
                for name, (_, unit) in zip(keys, ordered, strict=True)
            ]
            try:
                for future, manifest in as_completed(futures, loop=client.loop, with_results=True):
                    key = keys[future.key]
                    self._manifests[key] = parse_manifest(manifest, future.key)
                    self.file(key, FRAGMENTS)  # fetched while others are made
                    yield key
            except KilledWorker as error:
                source = units[keys[error.task]].sources[0].uri
                raise DataError(
                    f"{source}: worker after worker died of it; give them more memory, or split the file"
                ) from None
            except (OSError, FutureCancelledError):
                raise SettingsError(
                    f"YARN_OPS_CLUSTER: {self._settings.cluster} is gone; start it and run again, "
                    "finished units are kept"
                ) from None

    def file(self, key: str, name: str) -> Path:
        path = self._folder / f"{key}-{name}"
        if path not in self._read:
            sha256 = self._manifests[key].files[name].sha256
            if not path.exists() or file_digest(path) != sha256:
                content = self._store.read(_place(key, name))
                if hashlib.sha256(content).hexdigest() != sha256:
                    where = self._store.uri_of(_place(key, name))
                    raise StoreError(
                        f"{where}: other bytes than were written; run again, and it is made again"
                    )
                with atomic_write(path) as draft:
                    draft.write_bytes(content)
            self._read.add(path)
        return path

    def place(self, results: Mapping[str, str], out: Path) -> Tree | None:
        copies = {
            name: (_place(key, TOKENS), self._manifests[key].files[TOKENS]) for name, key in results.items()
        }
        return put_tree(self._store, out, copies=copies, owner=self._owner)


def workers_of(settings: Settings) -> int:
    """How many workers the cluster has; SettingsError when it cannot be used."""
    with _client(settings) as client:
        return len(client.scheduler_info(n_workers=-1)["workers"])


def make_in_store(key: str, unit: Unit, options: UnitOptions, tokenizer: str, store_url: str) -> bytes:
    """Make a unit on this worker, unless its result is there; the manifest of the result."""
    if unit_key(unit, options) != key:
        raise SettingsError("a worker of the cluster runs another version of yarn-ops; update it")
    settings = read_settings()
    settings.make_home()
    store, files = _opened(store_url, store_options(settings))
    if (made_before := _made_before(store, key)) is not None:
        store.write(_place(key, MANIFEST), made_before)  # in use, so not old
        return made_before
    with scratch() as place:
        made = place / "made"
        make_unit(unit, options, _tokenizer(store, tokenizer, options.vocab_size), files, made)
        return put_tree_at(store, made, f"{UNITS}/{key}", look=False).to_bytes()


def _made_before(store: Store, key: str) -> bytes | None:
    """The manifest of a unit that is there, every byte of it read; one that is damaged is removed."""
    data = store.find(_place(key, MANIFEST))
    if data is None:
        return None
    prefix = f"{UNITS}/{key}"
    try:
        manifest = parse_manifest(data, store.uri_of(prefix))
    except StoreError:
        faults = [Fault(MANIFEST, "one of ours", "none")]
    else:
        faults = faults_stored(store, prefix, manifest, Transfer(manifest.size_bytes, None))
    if not faults:
        return data
    log.warning("%s", refusal(store.uri_of(prefix), faults, "made again"))
    for name in (MANIFEST, *sorted(stored_sizes(store, prefix))):
        store.delete(_place(key, name))
    return None


@cache
def _opened(store_url: str, options: StoreOptions) -> tuple[Store, Files]:
    """Where results and sources are, once a process: making clients takes longer than a small unit does."""
    return open_store(store_url, options), files_for(options)


def _place(key: str, name: str) -> str:
    return join(f"{UNITS}/{key}", name)


def _keep_tokenizer(store: Store, tokenizer: Tokenizer) -> str:
    """The key of the tokenizer's directory in the store."""
    prefix = f"{UNITS}/tokenizer-{digest_of([tokenizer.digest, tokenizer.eos, tokenizer.chat_digest])}"
    with scratch() as place:
        tokenizer.save(place / "tokenizer")
        put_tree_at(store, place / "tokenizer", prefix)
    return prefix


_TOKENIZERS: dict[str, Tokenizer] = {}


def _tokenizer(store: Store, prefix: str, vocab_size: int) -> Tokenizer:
    """Fetched once a process."""
    if prefix not in _TOKENIZERS:
        with scratch() as place:
            pull_tree(store, store.uri_of(prefix), place / "tokenizer")
            _TOKENIZERS[prefix] = Tokenizer(place / "tokenizer", vocab_size)
    return _TOKENIZERS[prefix]


@contextmanager
def _client(settings: Settings) -> Iterator[Any]:
    """A connection to the cluster; SettingsError in one line when there is none to be had."""
    if importlib.util.find_spec("distributed") is None:
        raise SettingsError("YARN_OPS_CLUSTER: needs Dask; pip install 'yarn-ops[cluster]'")
    if not settings.store.startswith("s3://"):
        raise SettingsError(
            "YARN_OPS_CLUSTER: its workers share object storage alone; set YARN_OPS_STORE_URL to s3://…"
        )
    from distributed import Client

    try:
        client = Client(settings.cluster, timeout=ANSWER_S, set_as_default=False)
    except (OSError, ValueError):
        raise SettingsError(
            f"YARN_OPS_CLUSTER: no Dask scheduler at {settings.cluster}; start one: `dask scheduler`"
        ) from None
    with client:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            raise SettingsError(
                f"YARN_OPS_CLUSTER: {settings.cluster} has no worker; start `dask worker {settings.cluster}`"
            )
        yield client
