"""Services that share one store, each with a registry of its own, and what each of them collects."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from stores import make_tree

from yarn_ops import upkeep
from yarn_ops.errors import StoreError
from yarn_ops.records import Report, Tree
from yarn_ops.registry import Registry, copies, open_registry, upgrade
from yarn_ops.settings import Settings
from yarn_ops.store import Store
from yarn_ops.store.ledger import Ledger
from yarn_ops.store.s3 import S3Store
from yarn_ops.store.trees import put_tree

NOW = timedelta(seconds=-5)  # S3 counts in whole seconds
ELSEWHERE = "1@elsewhere/0/0"


class Service:
    """One registry on the store, with a state directory of its own."""

    def __init__(self, home: Path, store: Store) -> None:
        s3 = {}
        if isinstance(store, S3Store):
            options = store._options
            s3 = {
                "s3_endpoint_url": options.endpoint_url, "s3_access_key": options.access_key,
                "s3_secret_key": options.secret_key, "s3_region": options.region,
            }  # fmt: skip
        self.settings = Settings.model_validate({"state_dir": home, "store_url": store.url, **s3})
        self.store, self.home = store, home
        self.open()

    def open(self) -> None:
        self.settings.make_home()
        upgrade(self.settings.database)
        self.registry: Registry = open_registry(self.settings.database)
        self.ledger = Ledger(self.store, self.registry.id)

    def begin(self) -> str:
        """As a run begins."""
        run_id = self.registry.begin_run({"rope": {"method": "yarn"}}, "d" * 64).id
        self.ledger.sign(self.registry.name)
        self.ledger.keep_run(copies.copy_run(self.registry, run_id))
        return run_id

    def put(self, data: bytes) -> Tree:
        folder = make_tree(self.home / f"made-{data.hex()[:8]}", {"a": data, "below/b": data * 2})
        return put_tree(self.store, folder, owner=self.ledger)

    def finish(self, key: str, data: bytes) -> Tree:
        """As a stage is finished by a run."""
        run_id = self.begin()
        lease = self.registry.claim(key * 64, stage="report", run_id=run_id, holder="me", lease_s=60)
        assert lease is not None
        record = Report(tree=self.put(data), pictures=())
        self.ledger.keep_stage(lease.key, copies.copy_stage(self.registry, lease.key, record))
        self.registry.complete(lease, record)
        assert record.tree is not None
        return record.tree

    def find(self, grace: timedelta = NOW) -> list[upkeep.Garbage]:
        return upkeep.find_garbage(self.settings, self.store, self.registry, grace)

    def collect(self, grace: timedelta = NOW) -> list[tuple[str, str]]:
        found = self.find(grace)
        gone = [one for one in found if upkeep.remove(self.store, self.registry, one)]
        return sorted((one.kind, one.name) for one in gone)

    def lose(self) -> None:
        self.registry.close()
        for path in self.home.glob("registry.db*"):
            path.unlink()
        self.open()


@pytest.fixture
def service(store: Store, tmp_path: Path) -> Iterator[Callable[[str], Service]]:
    made: list[Service] = []

    def make(name: str) -> Service:
        made.append(Service(tmp_path / name, store))
        return made[-1]

    yield make
    for one in made:
        one.registry.close()


Make = Callable[[str], Service]


def refused(service: Service, *phrases: str) -> None:
    before = {info.key: info.version for info in service.store.list("")}
    with pytest.raises(StoreError) as raised:
        service.find()
    told = str(raised.value)
    for phrase in phrases:
        assert phrase in told, told
        told = told.partition(phrase)[2]
    assert {info.key: info.version for info in service.store.list("")} == before


def age(store: Store, days: int = 8) -> None:
    """Only of a local directory."""
    for path in Path(store.url.removeprefix("file://")).rglob("*"):
        moment = path.stat().st_mtime - days * 86_400
        os.utime(path, (moment, moment))
