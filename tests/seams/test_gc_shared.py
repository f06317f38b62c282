"""Whose is what in a store: strangers are refused, registries that share one leave each other's, releases and
model versions keep their parts, and what a stage is at stays, whatever is asked."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from collecting import ELSEWHERE, Make, age, refused
from small_recipe import asked
from sqlalchemy import text
from stores import make_tree

from yarn_ops import references, upkeep
from yarn_ops.errors import RegistryError, StoreError
from yarn_ops.rebuild import rebuild
from yarn_ops.registry import copies, open_registry, this_process, upgrade
from yarn_ops.release import open_tracking
from yarn_ops.store import Store, sweep
from yarn_ops.store.s3 import S3Store
from yarn_ops.store.trees import compose_tree, put_tree, put_tree_at, tree_present

LOCAL_BY_DEFAULT = pytest.mark.parametrize(
    "store", ["local", pytest.param("s3", marks=pytest.mark.slow)], indirect=True
)
"""for bytes that are read alike from wherever they come"""


def test_a_stranger_removes_nothing(service: Make) -> None:
    owner, stranger = service("owner"), service("stranger")
    tree = owner.finish("a", b"in use")
    refused(
        stranger, "belongs to registry", owner.registry.id, "owner/registry.db", "last seen",
        "collect with that one's settings", "run `yarn-ops db rebuild`",
    )  # fmt: skip
    assert owner.collect() == [] and tree_present(owner.store, tree)


def test_a_lost_registry_removes_nothing_and_is_made_again(service: Make) -> None:
    owner = service("owner")
    tree, lost_id = owner.finish("a", b"in use"), owner.registry.id
    owner.registry.finish_run(owner.begin(), "completed")
    owner.ledger.keep_run(copies.copy_run(owner.registry, owner.registry.run_view().id))
    before = owner.registry.run_view()
    owner.lose()
    refused(owner, lost_id, "run `yarn-ops db rebuild`")
    told = list(rebuild(owner.settings))
    assert "1 run and 1 finished stage got back" in told[0], told
    again = owner.registry.run_view()
    assert again.model_dump(exclude={"stages"}) == before.model_dump(exclude={"stages"})
    assert [stage.record for stage in again.stages] == [stage.record for stage in before.stages]
    assert owner.registry.finished("a" * 64) is not None
    assert owner.collect() == [] and tree_present(owner.store, tree)
    assert next(rebuild(owner.settings)).endswith("0 runs and 0 finished stages got back")
    assert not [*owner.store.list(f"registries/{lost_id}/")]


def test_of_registries_lost_one_after_the_other_the_latest_is_believed(service: Make) -> None:
    """Each finished the same stage with other bytes."""
    one = service("one")
    for number in range(5):
        tree = one.finish("a", b"%d" % number)
        one.lose()
        if isinstance(one.store, S3Store):
            time.sleep(1.1)  # it counts in whole seconds
    told = next(rebuild(one.settings))
    assert told.endswith("5 runs and 1 finished stage got back")
    assert (one.registry.finished("a" * 64) or {})["tree"]["digest"] == tree.digest


def test_three_share_a_store_and_each_collects_its_own(store: Store, service: Make) -> None:
    one, two, three = (service(name) for name in ("one", "two", "three"))
    both, only = one.finish("a", b"both"), two.finish("b", b"only two")
    assert two.finish("c", b"both") == both
    garbage = three.put(b"of a stage that failed")
    three.begin()
    assert [each.collect() for each in (one, two, three)] == [[], [], []]  # young: somebody may be at it
    if not store.url.startswith("file:"):
        return
    age(store)
    assert one.collect() == two.collect() == []
    assert three.collect() == [("tree", garbage.digest)]
    one.registry.discard("a" * 64, one.registry.finished("a" * 64) or {}, "another is wanted")
    age(store)
    assert one.collect() == [("claim", both.digest), ("copy", f"{'a' * 64}-1")]
    assert tree_present(store, both) and tree_present(store, only)
    two.registry.discard("c" * 64, two.registry.finished("c" * 64) or {}, "another is wanted")
    assert two.collect() == [("copy", f"{'c' * 64}-1"), ("tree", both.digest)]
    assert not tree_present(store, both) and tree_present(store, only)


def test_a_store_of_an_earlier_program(store: Store, service: Make) -> None:
    """Without claims: it is the registry's that knows every directory, else a person has to say so."""
    one = service("one")
    tree = one.finish("a", b"known")
    for key in [info.key for below in ("claims/", "registries/") for info in store.list(below)]:
        store.delete(key)
    assert one.collect() == []
    assert [*store.list(f"claims/{tree.digest}/")] and [*store.list(f"registries/{one.registry.id}/stages/")]
    folder = make_tree(one.home / "unclaimed", {"a": b"whose is it"})
    unclaimed = put_tree(store, folder)
    for each in (one, service("new")):
        refused(each, "no registry claims" if each is one else "belongs to registry")
    refused(one, "1 directory", unclaimed.digest[:12], "gc --dry-run", "db rebuild", "gc --adopt")
    assert references.adopt(store, one.registry, sweep.trees(store).keys()) == 1
    assert one.collect(timedelta(days=7)) == []
    assert one.collect() == [("tree", unclaimed.digest)]


def test_a_store_of_an_earlier_program_and_a_new_registry(store: Store, service: Make) -> None:
    put_tree(store, make_tree(service("earlier").home / "made", {"a": b"in use"}))
    refused(service("new"), "no registry claims 1 directory", "db rebuild", "gc --adopt")


@LOCAL_BY_DEFAULT
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b'{"database": ["x"]}'])
def test_a_signature_that_cannot_be_read_is_one_all_the_same(service: Make, content: bytes) -> None:
    owner, stranger = service("owner"), service("stranger")
    owner.finish("a", b"in use")
    owner.store.write(f"registries/{owner.registry.id}/registry.json", content)
    refused(stranger, "belongs to registry", owner.registry.id)
    assert owner.collect() == []
    told = json.loads(owner.store.read(f"registries/{owner.registry.id}/registry.json"))
    assert told["database"] == owner.registry.name


@LOCAL_BY_DEFAULT
@pytest.mark.parametrize(
    "key", ["registries/someone/registry.json", "registries/x", "claims/" + "0" * 64 + "/new kind"]
)
def test_what_cannot_be_told_is_refused(service: Make, key: str) -> None:
    owner = service("owner")
    owner.finish("a", b"in use")
    owner.store.write(key, b"of a newer yarn-ops")
    refused(owner, key.rpartition("/")[0], "update this one, or move the object away")


def test_the_signature_names_no_password(store: Store, service: Make) -> None:
    one = service("one")
    one.registry.database = type(one.registry.database)(
        one.registry.database.engine, "postgresql://me:***@host/runs"
    )
    one.ledger.sign(one.registry.name)
    assert one.ledger.signature()["database"] == "postgresql://me:***@host/runs"


@LOCAL_BY_DEFAULT
@pytest.mark.parametrize("damage", ["stages", "runs"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"stage": 1, "run": 2}', b'{"stage": {"key": "x"}, "stages": []}']
)
def test_a_damaged_copy_costs_what_it_is_of(service: Make, damage: str, content: bytes) -> None:
    """Damaged or moved: it is named, and what is whole comes back."""
    one = service("one")
    kept, hurt = one.finish("a", b"whole"), one.finish("b", b"damaged")
    for info in [*one.store.list(f"registries/{one.registry.id}/{damage}/")]:
        if damage == "runs" or info.key.split("/")[-1].startswith("b" * 64):
            one.store.write(info.key, content)
    one.lose()
    told = [line for line in rebuild(one.settings) if line.startswith("could not be got back")]
    assert len(told) == 1 and "damaged" in told[0], told
    assert one.registry.finished("a" * 64) is not None
    assert (one.registry.finished("b" * 64) is None) == (damage == "stages")
    one.registry.runs()
    one.collect()
    assert tree_present(one.store, kept) and tree_present(one.store, hurt) == (damage == "runs")


def test_releases_that_only_mlflow_knows(store: Store, service: Make) -> None:
    """Of a store of an earlier program: with their recipe where MLflow has it whole."""
    one = service("one")
    recipe = asked(rope={"factor": 4}, publish={"name": "whole"})
    sections = recipe.model_dump(mode="json")
    whole = {f"{name}.{key}": str(value) for name, of in sections.items() for key, value in of.items()}
    tracking = open_tracking(one.settings)
    for name, params in (("whole", whole), ("partly", {"rope.factor": "4"})):
        run = tracking.start_run(name, name, {})
        tracking.log_params(run, params)
        tags = {"gate": "passed", "run": f"20260101-000000-{name}", "recipe": recipe.digest(), "base": "b"}
        tracking.register(name, f"{tracking.artifact_uri(run)}/model", run, tags)
        tracking.move_alias(name, "champion", 1)
    told = list(rebuild(one.settings))
    assert "2 runs" in told[0] and told[1] == "releases: partly 1, whole 1", told
    assert upkeep.half_registered(one.registry, tracking) == []
    assert tracking.find("whole", alias="champion").version == 1
    runs = {run.release.name: run for run in one.registry.runs() if run.release is not None}
    assert runs["whole"].recipe == sections and runs["partly"].recipe["base"] == {"model": "b"}
    assert one.registry.came_to_its_end(recipe.digest())
    assert "0 runs" in next(rebuild(one.settings))


def test_a_database_that_was_set_back_is_made_whole_first(service: Make) -> None:
    one = service("one")
    one.finish("a", b"early")
    one.registry.close()
    backup = (one.home / "registry.db").read_bytes()
    one.open()
    late = one.finish("b", b"late")
    one.registry.close()
    for path in one.home.glob("registry.db-*"):
        path.unlink()
    (one.home / "registry.db").write_bytes(backup)
    one.open()
    refused(one, "1 finished stages of it that it does not know", "run `yarn-ops db rebuild`")
    list(rebuild(one.settings))
    assert one.registry.finished("b" * 64) is not None
    assert one.collect() == [] and tree_present(one.store, late)


def test_releases_and_model_versions_keep_their_parts(store: Store, service: Make) -> None:
    one = service("one")
    one.begin()
    released, named, lost = one.put(b"released"), one.put(b"named by MLflow"), one.put(b"lost")
    compose_tree(store, released, {"README.md": b"card"}, f"{store.url}/mlflow/yarn-ops/1/artifacts/model")
    tracking = open_tracking(one.settings)
    run = tracking.start_run("theirs", "run", {})
    source = named.uri
    if store.url.startswith("file:"):  # MLflow takes no local source outside of the run's artifacts
        source = f"{tracking.artifact_uri(run)}/model"
        tracking.register("theirs", source, run, {})
        import sqlite3

        with sqlite3.connect(one.home / "mlflow.db") as database:
            database.execute("UPDATE model_versions SET source = ?", (named.uri,))
    else:
        tracking.register("theirs", source, run, {})
    assert one.collect() == [("tree", lost.digest)]
    assert tree_present(store, released) and tree_present(store, named)


def test_a_damaged_release_stops_the_collection(store: Store, service: Make) -> None:
    one = service("one")
    one.begin()
    one.put(b"garbage, or part of that release")
    store.write("mlflow/yarn-ops/1/artifacts/model/manifest.json", b"{")
    with pytest.raises(StoreError, match="a damaged release, whose parts cannot be told"):
        one.find()


def test_what_is_taken_up_between_finding_and_removing_stays(store: Store, service: Make) -> None:
    one = service("one")
    one.begin()
    tree = one.put(b"found as garbage")
    (found,) = one.find()
    assert one.finish("a", b"found as garbage") == tree  # what is there already is not sent again
    assert not upkeep.remove(store, one.registry, found)
    assert tree_present(store, tree)


def test_another_registry_takes_it_up_while_it_is_removed(
    store: Store, service: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right when the manifest is deleted."""
    one, two = service("one"), service("two")
    one.begin()
    tree = one.put(b"found as garbage")
    (found,) = one.find()
    delete = type(store).delete

    def then_claimed(self: Store, key: str) -> None:
        delete(self, key)  # type: ignore[arg-type]
        two.ledger.claim(tree.digest)

    monkeypatch.setattr(type(store), "delete", then_claimed)
    assert not upkeep.remove(store, one.registry, found)
    assert tree_present(store, tree)


@pytest.mark.parametrize(
    ("holder", "lease_s"),
    [(ELSEWHERE, 60), (this_process(), 60), (this_process(), 0.01)],
    ids=["elsewhere", "here", "here, its lease run out"],
)
def test_what_belongs_to_a_stage_at_work_stays(service: Make, holder: str, lease_s: float) -> None:
    """Also of one on another machine, and one here whose lease has run out while its process runs."""
    one = service("one")
    run_id, key = one.begin(), "e" * 64
    assert one.registry.claim(key, stage="train", run_id=run_id, holder=holder, lease_s=lease_s)
    work = make_tree(one.home / "work" / key[:16], {"checkpoint": b"1" * 40})
    kept = make_tree(one.home / "cache" / ("f" * 64), {"base": b"2" * 40})
    tree = one.put(b"stored, not recorded yet")
    put_tree_at(one.store, make_tree(one.home / "unit", {"a": b"3"}), "units/key")
    time.sleep(0.05)
    assert one.collect() == one.collect(timedelta(0)) == []
    assert work.exists() and kept.exists() and tree_present(one.store, tree)
    one.registry.take_from(key, holder)
    assert {kind for kind, _ in one.collect()} == {"work", "cache", "tree", "unit"}
    assert not work.exists() and not kept.exists()


def test_a_folder_that_a_process_uses_stays_and_is_collected_when_it_has_ended(service: Make) -> None:
    """Without a lease: an observation, a trainer whose parent is gone, a stage of another registry."""
    one = service("one")
    folders = [one.home / "work" / "observations" / "tmp1", one.home / "work" / ("c" * 16)]
    program = (
        "import sys; from pathlib import Path; from contextlib import ExitStack; "
        "from yarn_ops.processes import using\n"
        "with ExitStack() as stack:\n"
        "    for name in sys.argv[1:]: stack.enter_context(using(Path(name)))\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, folders)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        left = make_tree(one.home / "work" / "observations" / "tmp0", {"out/a": b"1" * 10})
        assert one.collect() == [("work", "tmp0")]
        assert not left.exists() and all(folder.exists() for folder in folders)
    finally:
        holder.kill()
        holder.communicate()
    assert one.collect() == [("work", "c" * 16), ("work", "tmp1")]
    assert not any(folder.exists() for folder in folders)
    assert (one.home / "work" / "observations").exists()


def test_eight_make_one_identity(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"

    def identity(_: int) -> str:
        upgrade(url)
        return open_registry(url).id

    with ThreadPoolExecutor(8) as pool:
        (one,) = set(pool.map(identity, range(8)))
    assert len(one) == 32


def test_a_registry_without_identity_says_so(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    upgrade(url)
    registry = open_registry(url)
    with registry.begin() as session:
        session.execute(text("DELETE FROM identity"))
    with pytest.raises(RegistryError, match="no identity"):
        _ = registry.id
