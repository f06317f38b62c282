import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from collecting import service  # noqa: F401
from mlflow_server import mlflow_database, mlflow_server, tracking  # noqa: F401
from postgres import postgres  # noqa: F401
from registries import database_url, registry, run_id  # noqa: F401
from stores import bucket, s3, store, swift  # noqa: F401


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What a test or the product puts into the environment is gone afterwards."""
    before = dict(os.environ)
    monkeypatch.setenv("YARN_OPS_STATE_DIR", str(tmp_path / "state"))
    yield
    os.environ.clear()
    os.environ.update(before)
