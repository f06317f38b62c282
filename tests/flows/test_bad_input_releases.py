"""Models and runs that are not there, or not as they were stored: one line, and no directory is left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from person import Person, fails, told

from yarn_ops.store.manifest import MANIFEST
from yarn_ops.store.trees import manifest_of


@pytest.fixture
def released(person: Person, small_recipe: Path) -> Person:
    """Somebody who has released `small` version 1."""
    if not person.model_versions():
        done = person.types("extend", small_recipe)
        assert (done.status, done.complaint) == (0, ""), done.err
    return person


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """An empty directory."""
    path = tmp_path / "empty"
    path.mkdir()
    return path


PULLS = {
    "an unknown model": (["nothing"], ["model 'nothing': not registered at sqlite:///", "registered: small"]),
    "no such tag": (
        ["small", "--tag", "factor=64"],
        ["no version with tag factor=64; there is 1 (champion, factor=2)"],
    ),
    "no such alias": (["small", "--alias", "best"], ["no version with alias best; there is 1 (champion"]),
    "no such version": (["small", "--version", "7"], ["no version with number 7; there is 1 (champion"]),
    "half a tag": (["small", "--tag", "factor"], ["write --tag key=value; see `yarn-ops pull --help`"]),
}


@pytest.mark.parametrize("fault", PULLS)
def test_a_model_that_is_not_there(fault: str, released: Person, empty: Path) -> None:
    arguments, phrases = PULLS[fault]
    fails(released, ["pull", *arguments, "--to", empty / "model"], *phrases)
    assert list(empty.iterdir()) == []


def test_a_directory_that_holds_something_else(released: Person, empty: Path) -> None:
    (empty / "mine.txt").write_text("mine", "utf-8")
    fails(
        released,
        ["pull", "small", "--to", empty],
        "exists and is something else; remove it or choose another",
    )
    assert [path.name for path in empty.iterdir()] == ["mine.txt"]


def test_a_place_where_no_directory_can_be(released: Person) -> None:
    fails(released, ["pull", "small", "--to", "/dev/null/model"], "/dev/null/model: ", "choose another place")


def test_a_damaged_file_in_the_store(released: Person, empty: Path) -> None:
    with damaged(next((released.state / "store" / "mlflow").rglob("model.safetensors"))):
        fails(
            released,
            ["pull", "small", "--to", empty / "model"],
            "damaged: model.safetensors (sha256 differs from the manifest's)",
            "upload it again",
        )
    assert not (empty / "model").exists()
    assert released.types("pull", "small", "--to", empty / "model").status == 0


def test_registry_and_mlflow_have_the_digest_of_what_was_released(released: Person) -> None:
    folder = next((released.state / "store" / "mlflow").rglob("model.safetensors")).parent
    (folder / MANIFEST).rename(kept := folder.parent / MANIFEST)  # the list is not in the digest
    try:
        digest = manifest_of(folder).digest
    finally:
        kept.rename(folder / MANIFEST)
    run = json.loads(released.types("runs", "show", "--last", "--json").out)
    (version,) = json.loads(released.types("models", "--json").out)
    assert version["tags"]["tree_digest"] == run["release"]["tags"]["tree_digest"] == digest


def test_a_release_rewritten_in_the_store_with_its_list(released: Person, empty: Path) -> None:
    folder = next((released.state / "store" / "mlflow").rglob("model.safetensors")).parent
    with damaged(folder / "model.safetensors"), damaged(folder / MANIFEST):
        (folder / MANIFEST).unlink()
        (folder / MANIFEST).write_bytes(manifest_of(folder).to_bytes())
        fails(
            released,
            ["pull", "small", "--to", empty / "model"],
            "small version 1: ",
            "/manifest.json lists other files than were released",
            "nothing was fetched",
        )
    assert list(empty.iterdir()) == []


def test_a_disk_full_of_the_model(released: Person, empty: Path) -> None:
    fails(
        released,
        ["pull", "small", "--to", empty / "model"],
        "model.safetensors: no space left on the disk; free some and run again",
        largest_file_bytes=2_000_000,
    )
    assert not (empty / "model").exists()
    assert released.types("pull", "small", "--to", empty / "model").status == 0


def test_a_run_that_is_not_there(released: Person) -> None:
    fails(released, ["runs", "show", "nothing"], "run 'nothing': not in the registry; see `yarn-ops runs`")
    fails(released, ["runs", "show"], "give a run's id, or --last; see `yarn-ops runs show --help`")


def test_a_gate_that_is_failed(released: Person, small_recipe: Path, empty: Path) -> None:
    setting = ["--set", "gate.max_short_growth=0.01"]
    answer = released.types("extend", small_recipe, *setting)
    told(answer, "small version 2 was rejected: ", "perplexity after / before at 512 tokens")
    assert answer.stages[-1] == "publish"
    fails(released, ["extend", small_recipe, *setting], "small version 2 was rejected")  # the same again
    fails(
        released,
        ["pull", "small", "--version", "2", "--to", empty / "model"],
        "version 2 matches but did not pass its gate; add --any-gate",
    )
    newest = json.loads(released.types("models", "--json").out)[0]
    assert (newest["version"], newest["tags"]["gate"], newest["aliases"]) == (2, "failed", [])


def test_the_good_recipe_is_reused_after_all_of_them(released: Person, small_recipe: Path) -> None:
    versions = released.model_versions()
    answer = released.types("extend", small_recipe)
    assert (answer.status, answer.complaint) == (0, "")
    assert " done " not in answer.err
    assert released.model_versions() == versions
    assert released.half_written() == []


@contextmanager
def damaged(file: Path) -> Iterator[None]:
    """One byte is another; the file's other names keep theirs."""
    sound = file.read_bytes()
    file.unlink()
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    yield
    file.unlink()
    file.write_bytes(sound)
