"""Model versions in a real MLflow: one a run, found by tag; the same on its SQLite and on its server."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from yarn_ops.catalogue import read_experiment, read_versions
from yarn_ops.errors import ReleaseError
from yarn_ops.release import Tracking

TAGS = {"context_length": "2048", "rope_method": "yarn", "factor": "4", "gate": "passed"}


@pytest.fixture
def name() -> str:
    return f"model-{uuid.uuid4().hex[:8]}"


def model_of(tracking: Tracking) -> tuple[str, str]:
    """(id of a new run, URI of a model directory inside its artifacts)."""
    run_id = tracking.start_run("versions", f"run-{uuid.uuid4().hex[:8]}", {})
    uri = f"{tracking.artifact_uri(run_id)}/model"
    directory = Path(urlsplit(uri).path)
    (directory / "deep").mkdir(parents=True)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    (directory / "deep" / "model.safetensors").write_bytes(b"\x00weights")
    return run_id, uri


def release(tracking: Tracking, name: str, **tags: str) -> int:
    run_id, uri = model_of(tracking)
    return tracking.register(name, uri, run_id, {**TAGS, **tags}, "a card")


def test_registering_again_makes_no_second_version(tracking: Tracking, name: str) -> None:
    run_id, uri = model_of(tracking)
    versions = [tracking.register(name, uri, run_id, TAGS, "a card") for _ in range(3)]
    assert versions == [1, 1, 1]
    assert release(tracking, name) == 2, "another run is another version"


def test_of_versions_registered_at_once_one_stays(tracking: Tracking, name: str) -> None:
    run_id, uri = model_of(tracking)
    with ThreadPoolExecutor(4) as pool:
        versions = set(pool.map(lambda _: tracking.register(name, uri, run_id, TAGS), range(4)))
    assert versions == {tracking.find(name).version}
    assert [found.version for found in tracking.models() if found.name == name] == sorted(versions)


def test_a_half_registered_version_is_completed(tracking: Tracking, name: str) -> None:
    """A crash may leave a model without a version, or a version without all its tags."""
    run_id, uri = model_of(tracking)
    tracking.register(name, uri, run_id, {"gate": "failed"})
    assert tracking.register(name, uri, run_id, TAGS, "a card") == 1
    found = tracking.find(name)
    assert (found.tags, found.description, found.source, found.mlflow_run_id) == (TAGS, "a card", uri, run_id)


def test_the_newest_version_that_matches_is_found(tracking: Tracking, name: str) -> None:
    release(tracking, name, factor="4")
    release(tracking, name, factor="8")
    release(tracking, name, factor="8")
    release(tracking, name, factor="8", gate="failed")
    assert tracking.find(name).version == 3
    assert tracking.find(name, tags={"factor": "8"}).version == 3
    assert tracking.find(name, tags={"factor": "4", "rope_method": "yarn"}).version == 1
    assert tracking.find(name, include_rejected=True).version == 4
    assert tracking.find(name, version=2).version == 2


def test_the_tenth_version_is_newer_than_the_ninth(tracking: Tracking, name: str) -> None:
    run_id, uri = model_of(tracking)
    for number in range(10):
        tracking.register(name, f"{uri}/{number}", run_id, TAGS)
    assert tracking.find(name).version == 10


def test_an_alias_moves(tracking: Tracking, name: str) -> None:
    for version in (release(tracking, name), release(tracking, name)):
        tracking.move_alias(name, "champion", version)
        assert tracking.find(name, alias="champion").version == version
    tracking.move_alias(name, "champion", 1)
    tracking.move_alias(name, "stable", 1)
    assert tracking.find(name, alias="champion").aliases == ("champion", "stable")
    assert [(found.version, found.aliases) for found in tracking.models() if found.name == name] == [
        (2, ()),
        (1, ("champion", "stable")),
    ]


def test_the_quick_list_is_the_clients(tracking: Tracking, name: str) -> None:
    for number in range(3):
        release(tracking, name, factor=str(number))
    tracking.move_alias(name, "champion", 2)
    tracking.move_alias(name, "stable", 2)
    tracking.register(f"{name}-bare", *reversed(model_of(tracking)), {})
    with tracking._mlflow() as client:
        client.delete_model_version(name, "1")
    quick = read_versions(tracking.uri)
    assert quick is not None
    for model, numbers in ((name, [3, 2]), (f"{name}-bare", [1])):
        assert [found.version for found in quick if found.name == model] == numbers
        assert [found for found in quick if found.name == model] == tracking._versions(model)


@pytest.mark.parametrize(
    "uri", ["sqlite:////nowhere/mlflow.db", "http://127.0.0.1:9", f"sqlite:///{__file__}"]
)
def test_what_is_not_sure_is_left_to_mlflows_client(uri: str) -> None:
    assert read_versions(uri) is None
    assert read_experiment(uri, "yarn-ops") is None


def test_an_experiment_is_read_quickly_and_as_it_is(tracking: Tracking, name: str) -> None:
    assert read_experiment(tracking.uri, name) is None
    identity = tracking.ensure_experiment(name)
    found = read_experiment(tracking.uri, name)
    assert found is not None
    assert (found.id, found.stage) == (identity, "active")
    with tracking._mlflow() as client:
        assert client.get_experiment(identity).artifact_location == found.artifact_location
        client.delete_experiment(identity)
    with pytest.raises(ReleaseError, match="deleted in MLflow"):
        tracking.ensure_experiment(name)


def test_a_reference_leads_to_the_directory(tracking: Tracking, name: str) -> None:
    run_id, uri = model_of(tracking)
    version = tracking.register(name, uri, run_id, {"gate": "failed"})
    tracking.move_alias(name, "candidate", version)
    assert tracking.behind(f"models:/{name}@candidate").source == uri
    assert tracking.behind(f"models:/{name}/1").source == uri
    for wrong in (f"models:/{name}", f"models:/{name}@a@b", f"models:/{name}/latest", "runs:/abc/model"):
        with pytest.raises(ReleaseError, match="write models:/name@alias or models:/name/version"):
            tracking.behind(wrong)


def test_models_are_listed_by_tag(tracking: Tracking, name: str) -> None:
    release(tracking, name, base=name)
    release(tracking, f"{name}-b", base=name, factor="8")
    release(tracking, f"{name}-c")
    assert [found.name for found in tracking.models({"base": name})] == [name, f"{name}-b"]
    assert [found.name for found in tracking.models({"base": name, "factor": "8"})] == [f"{name}-b"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"version": 9}, "no version with number 9; there is 2 "),
        ({"alias": "champion"}, "no version with alias champion; there is 2 "),
        (
            {"tags": {"factor": "16"}},
            r"no version with tag factor=16; there is 2 \(factor=4\), 1 \(factor=4\)",
        ),
        ({"tags": {"factor": "' OR 1=1 --"}}, "no version with tag factor=' OR 1=1 --;"),
        ({"version": 2}, "version 2 matches but did not pass its gate"),
    ],
)
def test_what_there_is_instead_is_told(
    tracking: Tracking, name: str, wanted: dict[str, object], message: str
) -> None:
    release(tracking, name, base="x")
    release(tracking, name, gate="failed")
    with pytest.raises(ReleaseError, match=message) as raised:
        tracking.find(name, **wanted)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("unknown", ["nope", "", "no'pe", "a b\n", "x" * 10_000])
def test_an_unknown_model_is_told_with_those_known(tracking: Tracking, name: str, unknown: str) -> None:
    release(tracking, name)
    with pytest.raises(ReleaseError, match=f"not registered at .*; registered: .*{name}"):
        tracking.find(unknown)


def test_plain_mlflow_downloads_a_registered_directory(tracking: Tracking, name: str, tmp_path: Path) -> None:
    version = release(tracking, name)
    subprocess.run(
        [
            *(sys.executable, "-m", "mlflow", "artifacts", "download"),
            *("--artifact-uri", f"models:/{name}/{version}", "--dst-path", tmp_path / "here"),
        ],
        env={**os.environ, "MLFLOW_TRACKING_URI": tracking.uri},
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "here" / "config.json").read_text() == '{"model_type": "llama"}'
    assert (tmp_path / "here" / "deep" / "model.safetensors").read_bytes() == b"\x00weights"
