"""Three registries on one store, lost, set back, made again and collected in any order: nothing in use is
ever gone. Real SQLite, a real directory, real leases; time is let pass by ageing what was written."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text, update

from yarn_ops import upkeep
from yarn_ops.errors import StoreError
from yarn_ops.processes import using
from yarn_ops.rebuild import rebuild
from yarn_ops.records import Report, Tree
from yarn_ops.registry import Lease, copies, open_registry, this_process, upgrade
from yarn_ops.registry import upkeep as records
from yarn_ops.registry.tables import StageRunRow
from yarn_ops.settings import Settings
from yarn_ops.store import open_store
from yarn_ops.store.ledger import Ledger
from yarn_ops.store.trees import compose_tree, put_tree, tree_present

MEMBERS = st.integers(0, 2)
KEYS = st.integers(0, 2)
CONTENTS = st.integers(0, 2)
STEPS = st.sampled_from(
    ["finished", "finished", "finished", "stored", "claimed", "failed", "died", "died in between"]
)
DEAD = f"999999999@{this_process().partition('@')[2]}"
LONG = timedelta(days=8)
COUNTS = {"removed": 0, "refused": 0, "rebuilt": 0}


def key_of(number: int) -> str:
    return hashlib.sha256(b"%d" % number).hexdigest()


class Member:
    """One registry after another at one database, and what the test knows of it."""

    def __init__(self, home: Path, template: Path, store: str) -> None:
        self.home, self._template = home, template
        self.settings = Settings(state_dir=home, store_url=store)
        self.store = open_store(store)
        self.finished: dict[str, Tree] = {}
        self.lost: dict[str, Tree] = {}
        """of registries that were here before, and not made again yet"""
        self.at_work: dict[str, tuple[Lease, Tree | None]] = {}
        self.folders: dict[str, ExitStack] = {}
        """of stages at work, held as their processes hold them"""
        self.discarded: set[str] = set()
        """keys whose copies may be given back, though others are known: their directories are whole"""
        self.given_up: set[tuple[str, str]] = set()
        """keys and trees discarded since the backup, which may be collected while it still names them"""
        self.found: list[upkeep.Garbage] = []
        self.backed_up = False
        home.mkdir(parents=True)
        self.begin()

    @property
    def database(self) -> Path:
        return self.home / "registry.db"

    def begin(self) -> None:
        """A new registry, as `yarn-ops db upgrade` makes it."""
        shutil.copyfile(self._template, self.database)
        self.registry = open_registry(self.settings.database)
        with self.registry.begin() as session:
            session.execute(text("UPDATE identity SET id = lower(hex(randomblob(16)))"))
        self.run_id = self.registry.begin_run({"rope": {"method": "yarn"}}, "d" * 64).id
        self.at_work, self.finished, self.found = {}, {}, []

    def leave(self, *keys: str) -> None:
        for key in keys:
            self.folders.pop(key).close()

    def remove(self) -> None:
        self.leave(*list(self.folders))
        self.registry.close()
        for path in self.home.glob("registry.db*"):
            path.unlink()

    def reopen(self) -> None:
        self.registry.close()  # a connection left open would keep its writes out of a copy of the file
        self.registry = open_registry(self.settings.database)
        self.run_id = self.registry.begin_run({"rope": {"method": "yarn"}}, "d" * 64).id
        self.finished = {}
        for key in copies.finished_stages(self.registry):
            tree = Tree(**(self.registry.finished(key) or {})["tree"])
            if (key, tree.digest) not in self.given_up or tree_present(self.store, tree):
                self.finished[key] = tree

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.store, self.registry.id)

    @property
    def in_use(self) -> Iterator[Tree]:
        yield from self.finished.values()
        yield from self.lost.values()
        yield from (tree for _, tree in self.at_work.values() if tree is not None)


class Sharing(RuleBasedStateMachine):
    template: Path

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.root = Path(tempfile.mkdtemp(prefix="gc-machine-", dir=memory if memory.is_dir() else None))
        store = (self.root / "store").as_uri()
        self.store = open_store(store)
        self.members = [Member(self.root / f"home-{number}", self.template, store) for number in range(3)]
        self.released: list[Tree] = []

    def teardown(self) -> None:
        for member in self.members:
            member.leave(*list(member.folders))
            member.registry.close()
        shutil.rmtree(self.root)

    @initialize(stages=st.lists(st.tuples(MEMBERS, KEYS, CONTENTS), min_size=3, max_size=6))
    def fill(self, stages: list[tuple[int, int, int]]) -> None:
        for number, key, content in stages:
            self.compute(number, key, content, "finished")

    # What runs do

    @rule(number=MEMBERS, key=KEYS, content=CONTENTS, through=STEPS)
    def compute(self, number: int, key: int, content: int, through: str) -> None:
        """A stage, as far as that step; or one at work goes on as far."""
        member, name = self.members[number], key_of(key)
        if name not in member.at_work and not self._claim(member, name):
            return
        lease, tree = member.at_work[name]
        if through == "claimed":
            return
        if tree is None:
            tree = put_tree(self.store, self._folder(content), owner=member.ledger)
            member.at_work[name] = (lease, tree)
        if through == "stored":
            return
        del member.at_work[name]
        member.leave(name)
        if through == "failed":
            member.registry.fail(lease, "it failed")
        elif through == "died":
            self._die(member, name)
        else:
            record = Report(tree=tree, pictures=())
            member.ledger.keep_stage(name, copies.copy_stage(member.registry, name, record))
            if through == "died in between":
                self._die(member, name)
                member.discarded.add(name)  # its copy is whole: a rebuild may believe it
                return
            member.registry.complete(lease, record)
            member.finished[name] = tree
            member.discarded.discard(name)
            member.given_up.discard((name, tree.digest))
            member.ledger.keep_run(copies.copy_run(member.registry, member.run_id))

    def _claim(self, member: Member, key: str) -> bool:
        records.free_leases(member.registry)
        member.ledger.sign(member.registry.name)  # as a run begins
        member.ledger.keep_run(copies.copy_run(member.registry, member.run_id))
        lease = member.registry.claim(
            key, stage="report", run_id=member.run_id, holder=this_process(), lease_s=3600
        )
        if lease is None:
            return False
        member.at_work[key] = (lease, None)
        folder = member.home / "work" / key[:16]
        member.folders[key] = ExitStack()
        member.folders[key].enter_context(using(folder))
        (folder / "checkpoint").write_bytes(b"half")
        return True

    def _folder(self, content: int) -> Path:
        folder = self.root / f"content-{content}"
        folder.mkdir(exist_ok=True)
        (folder / "part").write_bytes(b"%d" % content * 100)
        return folder

    def _die(self, member: Member, key: str) -> None:
        with member.registry.begin() as session:
            session.execute(update(StageRunRow).where(StageRunRow.key == key).values(holder=DEAD))

    @rule(number=MEMBERS, key=KEYS)
    def discard(self, number: int, key: int) -> None:
        member = self.members[number]
        record = member.registry.finished(key_of(key))
        if record is not None:
            member.registry.discard(key_of(key), record, "another is wanted")
            member.finished.pop(key_of(key), None)
            member.discarded.add(key_of(key))
            member.given_up.add((key_of(key), record["tree"]["digest"]))

    @rule(number=MEMBERS, key=KEYS)
    def release(self, number: int, key: int) -> None:
        tree = self.members[number].finished.get(key_of(key))
        if tree is not None:
            target = self.store.uri_of(f"mlflow/yarn-ops/{len(self.released)}/artifacts/model")
            self.released += [tree, compose_tree(self.store, tree, {"README.md": b"card"}, target)]

    # What goes wrong

    @rule(number=MEMBERS)
    def lose(self, number: int) -> None:
        member = self.members[number]
        member.lost |= member.finished
        member.remove()
        member.begin()

    @rule(number=MEMBERS)
    def back_up(self, number: int) -> None:
        member = self.members[number]
        if not member.at_work:
            member.registry.close()  # the last connection: what is in the write-ahead log goes into the file
            shutil.copyfile(member.database, member.home / "backup")
            member.backed_up, member.given_up = True, set()

    @precondition(lambda self: any(member.backed_up for member in self.members))
    @rule(number=MEMBERS)
    def set_back(self, number: int) -> None:
        member = self.members[number]
        if member.backed_up and not member.at_work:
            member.lost |= member.finished
            member.remove()
            shutil.copyfile(member.home / "backup", member.database)
            member.reopen()
            had = member.finished.items()
            member.lost = {key: tree for key, tree in member.lost.items() if (key, tree) not in had}
            member.found = []

    @rule(number=MEMBERS)
    def rebuild(self, number: int) -> None:
        member = self.members[number]
        expected = {**member.lost, **member.finished}
        try:
            told = list(rebuild(member.settings))
        except StoreError as error:
            assert "--from" in str(error) and not member.lost
            return
        member.reopen()
        COUNTS["rebuilt"] += bool(member.lost)
        busy = {key: tree for key, tree in member.lost.items() if key in member.at_work}
        for key in expected.keys() - busy.keys():
            given = member.finished.get(key)
            assert given == expected[key] or (given is not None and key in member.discarded), told
        member.lost, member.discarded = busy, set()

    # What collects

    @rule()
    def let_time_pass(self) -> None:
        for path in self.root.rglob("*"):
            moment = path.stat().st_mtime - LONG.total_seconds()
            os.utime(path, (moment, moment))
        for member in self.members:
            with member.registry.begin() as session:
                for row in session.query(StageRunRow).where(StageRunRow.status == "running"):
                    row.started_at -= LONG

    @rule(number=MEMBERS, days=st.sampled_from([0.0, 7.0]))
    def find(self, number: int, days: float) -> None:
        member = self.members[number]
        try:
            member.found = upkeep.find_garbage(
                member.settings, self.store, member.registry, timedelta(days=days)
            )
        except StoreError:
            COUNTS["refused"] += 1
            member.found = []

    @rule(number=MEMBERS, days=st.sampled_from([0.0, 7.0]), aged=st.booleans())
    def collect(self, number: int, days: float, aged: bool) -> None:
        if aged:
            self.let_time_pass()
        self.find(number, days)
        self.remove(number)

    @rule(number=MEMBERS)
    def remove(self, number: int) -> None:
        member = self.members[number]
        for garbage in member.found:
            COUNTS["removed"] += upkeep.remove(self.store, member.registry, garbage)
        member.found = []

    @invariant()
    def nothing_in_use_is_gone(self) -> None:
        used = [*self.released, *(tree for member in self.members for tree in member.in_use)]
        for tree in {tree.uri: tree for tree in used}.values():
            assert tree_present(self.store, tree), tree
        for member in self.members:
            for key in member.at_work:
                assert (member.home / "work" / key[:16] / "checkpoint").exists(), key


def run_machine(tmp_path: Path, examples: int) -> None:
    Sharing.template = tmp_path / "template.db"
    upgrade(f"sqlite:///{Sharing.template}")
    for ending in ("-wal", "-shm"):
        assert not Sharing.template.with_name(f"template.db{ending}").exists()
    COUNTS.update(dict.fromkeys(COUNTS, 0))
    options: Any = settings(
        max_examples=examples, stateful_step_count=40, deadline=None, derandomize=examples < 100,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    run_state_machine_as_test(Sharing, settings=options)
    print(COUNTS)
    assert all(COUNTS.values()), COUNTS  # else nothing was tried


def test_nothing_in_use_is_ever_gone(tmp_path: Path) -> None:
    run_machine(tmp_path, 30)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nothing_in_use_is_ever_gone_in_a_thousand_runs(tmp_path: Path) -> None:
    run_machine(tmp_path, 1000)
