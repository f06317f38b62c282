"""Experiments and runs in a real MLflow: the same on its SQLite and on its server."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from math import isnan
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from yarn_ops.catalogue import read_run
from yarn_ops.errors import ReleaseError
from yarn_ops.release import Tracking

PNG = b"\x89PNG\r\n\x1a\n"


def client(tracking: Tracking):  # type: ignore[no-untyped-def]
    from mlflow import MlflowClient

    return MlflowClient(tracking.uri, tracking.uri)


def test_an_experiment_is_made_once_below_the_store(tracking: Tracking) -> None:
    name = f"experiment-{uuid.uuid4().hex[:8]}"
    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(lambda _: tracking.ensure_experiment(name), range(4)))
    assert len(ids) == 1
    uri = tracking.artifact_uri(tracking.start_run(name, "a run", {}))
    assert uri.startswith("file:///") and f"/mlflow/{name}/" in uri


def test_an_experiment_outside_the_store_is_refused(tracking: Tracking, tmp_path: Path) -> None:
    name = f"elsewhere-{uuid.uuid4().hex[:8]}"
    client(tracking).create_experiment(name, artifact_location=tmp_path.as_uri())
    with pytest.raises(ReleaseError, match=r"outside .*; choose another publish\.experiment"):
        tracking.ensure_experiment(name)


def test_a_deleted_experiment_is_told(tracking: Tracking) -> None:
    name = f"deleted-{uuid.uuid4().hex[:8]}"
    client(tracking).delete_experiment(tracking.ensure_experiment(name))
    with pytest.raises(ReleaseError, match="deleted in MLflow"):
        tracking.start_run(name, "a run", {})


def test_a_run_of_the_same_name_is_found_again(tracking: Tracking) -> None:
    name = uuid.uuid4().hex
    run_id = tracking.start_run("runs", name, {"recipe": "abc"})
    assert tracking.start_run("runs", name, {"recipe": "abc"}) == run_id
    assert tracking.start_run("runs", uuid.uuid4().hex, {}) != run_id
    assert tracking.start_run("other-runs", name, {}) != run_id


def test_a_run_keeps_what_was_logged(tracking: Tracking, tmp_path: Path) -> None:
    picture = tmp_path / "loss.png"
    picture.write_bytes(PNG)
    run_id = tracking.start_run("runs", "demo", {"recipe": "abc"})
    params = {f"train.option_{number}": number for number in range(150)}
    tracking.log_params(run_id, params)
    tracking.log_params(run_id, params)
    for step in range(3):
        tracking.log_metrics(run_id, step, {"loss": 2.0 / (step + 1), "learning_rate": 5e-4})
    tracking.log_picture(run_id, picture)
    tracking.finish(run_id, "completed", "promoted")

    run = client(tracking).get_run(run_id)
    assert (run.info.run_name, run.info.status, run.data.tags["recipe"]) == ("demo", "FINISHED", "abc")
    assert run.data.params == {name: str(value) for name, value in params.items()}
    history = client(tracking).get_metric_history(run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 2.0), (1, 1.0), (2, 2.0 / 3)]
    assert (tracking.last_step(run_id, "loss"), tracking.last_step(run_id, "accuracy")) == (2, 0)
    artifacts = Path(urlsplit(tracking.artifact_uri(run_id)).path)
    assert (artifacts / "pictures" / "loss.png").read_bytes() == PNG


def test_a_run_is_told_until_it_is_deleted(tracking: Tracking) -> None:
    run_id = tracking.start_run("told", "a run", {})
    tracking.log_metrics(run_id, 0, {"recall": 0.5, "broken": float("nan")})
    tracking.log_metrics(run_id, 1, {"recall": 0.25})
    quick = read_run(tracking.uri, run_id)
    found = tracking.run(run_id)
    assert quick is not None and found is not None
    assert quick.artifact_uri == found.artifact_uri == client(tracking).get_run(run_id).info.artifact_uri
    assert found.metrics["recall"] == 0.25 and isnan(found.metrics["broken"])
    client(tracking).delete_run(run_id)
    assert (read_run(tracking.uri, run_id), tracking.run(run_id), tracking.run("0" * 32)) == (
        None,
        None,
        None,
    )
    with pytest.raises(ReleaseError, match=f"run {run_id} is gone; restore it there"):
        tracking.artifact_uri(run_id)


@pytest.mark.parametrize(
    ("status", "kept"),
    [("completed", "FINISHED"), ("rejected", "KILLED"), ("failed", "FAILED"), ("stopped", "KILLED")],
)
def test_every_end_has_its_status(tracking: Tracking, status: str, kept: str) -> None:
    run_id = tracking.start_run("ends", status, {})
    tracking.finish(run_id, status, status)  # type: ignore[arg-type]
    assert client(tracking).get_run(run_id).info.status == kept


def test_a_parameter_that_changed_is_refused_in_one_line(tracking: Tracking) -> None:
    run_id = tracking.start_run("runs", "demo", {})
    tracking.log_params(run_id, {"steps": 50})
    with pytest.raises(ReleaseError, match="steps") as raised:
        tracking.log_params(run_id, {"steps": 51})
    assert "\n" not in str(raised.value)


def test_an_unknown_run_is_refused_in_one_line(tracking: Tracking) -> None:
    with pytest.raises(ReleaseError, match="not found"):
        tracking.finish("0" * 32, "completed", "completed")
