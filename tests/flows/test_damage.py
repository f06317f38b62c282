"""Bytes that rot where they are kept: seen before they are used, named, made again, and never promoted."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from person import Person, told
from small_recipe import SMALL

from yarn_ops.catalogue import ModelVersion
from yarn_ops.digests import digest_tree
from yarn_ops.registry import open_registry
from yarn_ops.release import Tracking

pytestmark = pytest.mark.timeout(3600)

DATABASES = ("registry.db", "mlflow.db")
ANOTHER_GATE = ("--set", "gate.max_short_growth=1.9")
CARD = "README.md"


class Kept:
    """A finished run's state directory, and how it was: whatever is done to it can be undone."""

    def __init__(self, person: Person, folder: Path) -> None:
        self.person = person
        self.recipe = folder / "small.toml"
        self.recipe.write_text(SMALL, "utf-8")
        done = self.extend()
        assert (done.status, done.complaint) == (0, ""), done.err
        self._copy = folder / "copy"
        self._copy.mkdir()
        shutil.copytree(self.store, self._copy / "store")
        for name in DATABASES:
            _copy_database(person.state / name, self._copy / name)
        self.version = self.versions()[0]
        self.digests = digest_tree(self.release)
        self.run = self._view()

    @property
    def store(self) -> Path:
        return self.person.state / "store"

    @property
    def release(self) -> Path:
        return Path(unquote(urlsplit(self.version.source).path))

    @property
    def tracking(self) -> Tracking:
        return Tracking(f"sqlite:///{self.person.state / 'mlflow.db'}", self.store.as_uri())

    def versions(self) -> list[ModelVersion]:
        return self.tracking.models()

    def extend(self, *arguments: str) -> Any:
        return self.person.types("extend", self.recipe, *arguments)

    def undo(self) -> None:
        """All as it was, the release's hard links included."""
        shutil.rmtree(self.store)
        shutil.copytree(self._copy / "store", self.store)
        for name in ("work", "cache"):
            shutil.rmtree(self.person.state / name, ignore_errors=True)
        for original in self.store.glob("artifacts/*/*"):
            twin = self.release / original.name
            if twin.is_file() and twin.read_bytes() == original.read_bytes():
                twin.unlink()
                os.link(original, twin)
        for name in DATABASES:
            _copy_database(self._copy / name, self.person.state / name)

    def trees(self) -> dict[str, Path]:
        """{stage: the directory that it stored}."""
        found = {}
        for number, stage in enumerate(self.run.stages):
            if tree := (stage.record or {}).get("tree"):
                found[f"{stage.stage} {number}"] = Path(unquote(urlsplit(tree["uri"]).path))
        return found

    def _view(self) -> Any:
        registry = open_registry(f"sqlite:///{self.person.state / 'registry.db'}")
        try:
            return registry.run_view("last")
        finally:
            registry.close()

    def is_served_whole(self, to: Path) -> None:
        """The champion is pulled, and every byte but its card's is the first run's."""
        pulled = self.person.types("pull", "small", "--alias", "champion", "--to", to)
        assert pulled.status == 0, pulled.err
        digests = digest_tree(to)
        for name in (CARD, "manifest.json"):
            digests.pop(name)
        assert digests == {name: self.digests[name] for name in digests}
        assert set(self.digests) - set(digests) == {CARD, "manifest.json"}
        shutil.rmtree(to)


def _copy_database(source: Path, target: Path) -> None:
    """In place: whoever has it open goes on with the new contents."""
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)


@pytest.fixture(scope="module")
def finished(person: Person, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept(person, tmp_path_factory.mktemp("kept"))


@pytest.fixture
def kept(finished: Kept) -> Kept:
    finished.undo()
    return finished


# Damages: each to a file, in place (as a disk's) or to this one of its names


def flipped(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def emptied(data: bytes, draw: random.Random) -> bytes:
    return b""


def grown(data: bytes, draw: random.Random) -> bytes:
    return data + bytes([draw.randrange(256)])


CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flipped,
    flipped,
    flipped,
    cut,
    emptied,
    grown,
)


def damage_file(path: Path, draw: random.Random) -> str:
    """Do something to a file; what, in words."""
    how = draw.choice(["changed", "changed", "changed", "removed", "swapped"])
    others = [other for other in path.parent.iterdir() if other != path and other.is_file()]
    if how == "removed":
        path.unlink()
    elif how == "swapped" and others:
        other = draw.choice(others)
        swapped = path.with_name("swapped")
        path.rename(swapped)
        other.rename(path)
        swapped.rename(other)
        return f"{path} swapped with {other.name}"
    else:
        change = draw.choice(CHANGES)
        data, mode = path.read_bytes(), path.stat()
        if not draw.randrange(2):
            path.unlink()  # the file's other names keep theirs
        path.write_bytes(change(data, draw) if data else b"x")
        os.utime(path, ns=(mode.st_atime_ns, mode.st_mtime_ns))  # a disk's fault leaves no other time
        how = change.__name__
    return f"{path} {how}"


def damage_record(state: Path, draw: random.Random) -> str:
    """One byte of a finished stage's record in the registry."""
    with closing(sqlite3.connect(state / "registry.db")) as database:
        rows = database.execute("SELECT key, stage, CAST(output AS BLOB) FROM stage_runs").fetchall()
        key, stage, output = draw.choice(rows)
        damaged = flipped(output, draw)
        database.execute("UPDATE stage_runs SET output = CAST(? AS TEXT) WHERE key = ?", (damaged, key))
        database.commit()
    return f"record of {stage}: {output!r} is now {damaged!r}"


def damage_something(kept: Kept, draw: random.Random) -> str:
    """A draw among everything that is kept: directories of stages, release, pictures, records."""
    folders = {**kept.trees(), "release": kept.release, "pictures": kept.release.parent / "pictures"}
    kind = draw.choice(["record", "release", *folders])
    if kind == "record":
        return damage_record(kept.person.state, draw)
    files = sorted(path for path in folders[kind].rglob("*") if path.is_file())
    return f"{kind}: {damage_file(draw.choice(files), draw)}"


def survives(kept: Kept, draw: random.Random, to: Path) -> str:
    """Damage something, run the recipe or one with another gate, and pull: what was damaged."""
    what = damage_something(kept, draw)
    arguments = ANOTHER_GATE if draw.randrange(2) else ()
    answer = kept.extend(*arguments)
    if answer.status != 0:  # noticed and refused: the next run puts it right
        assert "damaged" in answer.complaint, f"{what}: {answer.err}"
        told(answer)
        answer = kept.extend(*arguments)
    assert answer.status == 0, f"{what}: {answer.err}"
    assert "Traceback" not in answer.err, f"{what}: {answer.err}"
    kept.is_served_whole(to)
    assert kept.person.half_written() == [], what
    return what


@pytest.mark.parametrize("seed", range(2))
def test_damage_is_seen_and_never_promoted(kept: Kept, tmp_path: Path, seed: int) -> None:
    survives(kept, random.Random(seed), tmp_path / "pulled")


@pytest.mark.slow
def test_two_hundred_damages(finished: Kept, tmp_path: Path) -> None:
    for seed in range(200):
        finished.undo()
        what = survives(finished, random.Random(1000 + seed), tmp_path / "pulled")
        print(seed, what[:200], flush=True)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)  # in place: every name of the file


def tree_of(kept: Kept, stage: str) -> Path:
    return next(path for name, path in kept.trees().items() if name.startswith(stage))


def test_a_damaged_checkpoint_is_merged_again_in_the_same_run(kept: Kept, tmp_path: Path) -> None:
    flip(tree_of(kept, "merge") / "model.safetensors")
    answer = kept.extend(*ANOTHER_GATE)
    assert answer.status == 0, answer.err
    newest = kept.versions()[0]
    assert (newest.version, newest.aliases) == (2, ("champion",))
    assert answer.stages.count("merge") == 2, "reused, then found damaged and made again"
    kept.is_served_whole(tmp_path / "pulled")


def test_a_damaged_adapter_is_trained_again(kept: Kept, tmp_path: Path) -> None:
    flip(tree_of(kept, "train") / "adapter_model.safetensors")
    answer = kept.extend(*ANOTHER_GATE)
    assert (answer.status, answer.stages.count("train")) == (0, 2), answer.err
    kept.is_served_whole(tmp_path / "pulled")


@pytest.mark.slow
def test_what_is_made_again_with_other_bytes_ends_the_run(kept: Kept) -> None:
    """As on a GPU; here two processes train what one had: their sums differ in the last digits."""
    adapter = tree_of(kept, "train")
    flip(adapter / "adapter_model.safetensors")
    answer = kept.person.types("extend", kept.recipe, *ANOTHER_GATE, YARN_OPS_PROCESSES="2")
    told(answer, adapter.name, "adapter_model.safetensors (sha256", "it was made again, with other bytes")
    assert [version.version for version in kept.versions()] == [1]
    answer = kept.extend(*ANOTHER_GATE)
    assert (answer.status, answer.stages.count("merge")) == (0, 1), answer.err
    assert kept.versions()[0].aliases == ("champion",)


def test_a_release_whose_files_are_gone_is_composed_again(kept: Kept, tmp_path: Path) -> None:
    shutil.rmtree(kept.release)
    shutil.rmtree(kept.release.parent / "pictures")
    answer = kept.extend()
    assert answer.status == 0, answer.err
    assert [version.version for version in kept.versions()] == [1]
    assert digest_tree(kept.release) == kept.digests
    assert list((kept.release.parent / "pictures").glob("*.png"))
    kept.is_served_whole(tmp_path / "pulled")


def test_tags_figures_and_alias_are_put_back(kept: Kept) -> None:
    with closing(sqlite3.connect(kept.person.state / "mlflow.db")) as mlflow:
        mlflow.execute("DELETE FROM model_version_tags WHERE key IN ('context_length', 'base')")
        mlflow.execute("UPDATE model_version_tags SET value = 'unfinished' WHERE key = 'gate'")
        mlflow.execute("DELETE FROM registered_model_aliases")
        mlflow.execute("DELETE FROM latest_metrics WHERE key LIKE 'recall%'")
        mlflow.commit()
    assert kept.extend().status == 0
    (version,) = kept.versions()
    assert (version.tags, version.aliases) == (kept.version.tags, ("champion",))
    run = kept.tracking.run(version.mlflow_run_id)
    assert run is not None and any(name.startswith("recall") for name in run.metrics)


def test_what_a_person_changed_stays(kept: Kept) -> None:
    assert kept.extend(*ANOTHER_GATE).status == 0  # version 2 is champion now
    kept.tracking.set_tag("small", 1, "gate", "withdrawn")
    kept.tracking.set_tag("small", 1, "note", "mine")
    assert kept.extend().status == 0
    two, one = kept.versions()
    assert (two.aliases, one.aliases) == (("champion",), ())
    assert (one.tags["gate"], one.tags["note"]) == ("withdrawn", "mine")


def test_an_alias_that_was_taken_from_a_newer_version_is_not_given_to_an_older(kept: Kept) -> None:
    assert kept.extend(*ANOTHER_GATE).status == 0
    with closing(sqlite3.connect(kept.person.state / "mlflow.db")) as mlflow:
        mlflow.execute("DELETE FROM registered_model_aliases")
        mlflow.commit()
    assert kept.extend().status == 0
    assert [version.aliases for version in kept.versions()] == [(), ()]


@pytest.mark.parametrize("what", ["version", "run", "everything"])
def test_what_mlflow_lost_is_registered_again(kept: Kept, tmp_path: Path, what: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(kept.tracking.uri, kept.tracking.uri)
    if what in ("version", "everything"):
        client.delete_model_version("small", "1")
    if what in ("run", "everything"):
        client.delete_run(kept.version.mlflow_run_id)
    for _ in range(2):
        assert kept.extend().status == 0
        newest = kept.versions()[0]
        assert (newest.aliases, newest.tags["gate"]) == (("champion",), "passed")
    assert len(kept.versions()) == (2 if what == "run" else 1)
    kept.is_served_whole(tmp_path / "pulled")
