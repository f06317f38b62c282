"""An MLflow server that did what was asked and answers 500: nothing is there twice."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from mlflow_server import MlflowServer
from proxy import Proxy, first, refusal

from yarn_ops.errors import ReleaseError
from yarn_ops.release import Tracking

TAGS = {"gate": "passed"}
DONE_AND_REFUSED = refusal(500, afterwards=True)


@pytest.fixture(autouse=True)
def asks_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's client waits for twice as long before each time that it asks again."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")


def test_a_version_whose_making_seemed_to_fail(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    """The client asks three times more by itself, and makes a version each time; then we ask again."""
    name = f"model-{uuid.uuid4().hex[:8]}"
    with Proxy(
        mlflow_server.uri, first(4, "/model-versions/create", DONE_AND_REFUSED), keep_host=False
    ) as proxy:
        tracking = Tracking(proxy.url, tmp_path.as_uri())
        run = tracking.start_run(name, name, {})
        source = f"{tracking.artifact_uri(run)}/model"
        with pytest.raises(ReleaseError):
            tracking.register(name, source, run, TAGS)
        version = tracking.register(name, source, run, TAGS)
        assert proxy.broken == 4
        assert [found.version for found in tracking.models() if found.name == name] == [version] == [1]


def test_a_run_whose_making_seemed_to_fail(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    name = f"run-{uuid.uuid4().hex[:8]}"
    with Proxy(mlflow_server.uri, first(2, "/runs/create", DONE_AND_REFUSED), keep_host=False) as proxy:
        tracking = Tracking(proxy.url, tmp_path.as_uri())
        run = tracking.start_run(name, name, {})
        assert proxy.broken == 2
        tracking.keep_run(name, name, run)
        experiment = tracking.ensure_experiment(name)
        found = tracking._client.search_runs([experiment], f"tags.run = '{name}'")
        assert [one.info.run_id for one in found] == [run]
