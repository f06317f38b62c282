"""Thirty-two submissions at once on PostgreSQL: the identical ones join, the different ones all finish."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

import pytest
from postgres import PostgresCluster
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_API_URL, temporary_settings
from small_recipe import asked

from flows.run import open_run
from flows.tasks import StageContext, stage
from yarn_ops.recipe import Data, Publish, Recipe
from yarn_ops.records import Adapter, Release
from yarn_ops.registry import Registry, open_registry, upgrade
from yarn_ops.release import open_tracking
from yarn_ops.settings import Settings

IDENTICAL, DIFFERENT = 16, 16


@pytest.fixture
def settings(postgres: PostgresCluster, tmp_path: Path, mlflow_database: str) -> Settings:
    url = postgres.create_database()
    upgrade(url)
    return Settings(
        state_dir=tmp_path, database_url=url, mlflow_uri=mlflow_database, lease_s=20, device="cpu"
    )


@pytest.fixture
def registry(settings: Settings) -> Iterator[Registry]:
    registry = open_registry(settings.database)
    yield registry
    registry.close()


def recipe(name: str) -> Recipe:
    return asked(rope={"factor": 2}, data={"text_field": name}, publish={"name": name})


def test_identical_submissions_join_and_different_ones_finish(
    settings: Settings, registry: Registry, prefect_api: str
) -> None:
    trained: Counter[str] = Counter()
    counting = threading.Lock()

    @stage("train", version=1)
    def train(context: StageContext, data: Data) -> Adapter:
        with counting:
            trained[data.text_field] += 1
        time.sleep(0.5)  # long enough for everybody to ask
        (context.out / "weights").write_text(data.text_field)
        return Adapter(
            method="lora", steps=1, window_tokens=1, tokens_seen=1, trainable_parameters=1,
            first_loss=1.0, final_loss=1.0, seconds=0.5,
        )  # fmt: skip

    @stage("publish", version=1)
    def publish(context: StageContext, section: Publish, adapter: Adapter) -> Release:
        context.fetch(adapter)
        tracking, run_id = context.run.services.tracking, context.run.mlflow.id
        source = f"{tracking.artifact_uri(run_id)}/model"
        version = tracking.register(section.name, source, run_id, {"gate": "passed", "run": context.run.id})
        return Release(
            name=section.name, version=version, mlflow_run_id=run_id, gate="passed", alias=None, tags={}
        )  # fmt: skip

    def submit(name: str) -> tuple[str, int]:
        asked = recipe(name)
        with open_run(settings, asked) as run:
            release = publish.fn(asked.publish, train.fn(asked.data))
            return run.id, release.version

    names = ["same"] * IDENTICAL + [f"different-{number}" for number in range(DIFFERENT)]
    with (
        temporary_settings({PREFECT_API_URL: prefect_api}),
        disable_run_logger(),
        ThreadPoolExecutor(len(names)) as crowd,
    ):
        submissions = [crowd.submit(copy_context().run, submit, name) for name in names]
        results = [submission.result() for submission in submissions]

    assert trained == Counter(set(names))
    assert {version for _, version in results} == {1}
    runs = registry.runs(100)
    assert {run.status for run in runs} == {"completed"}
    assert Counter(run.release.name for run in runs if run.release) >= Counter(set(names))
    assert {run for run, _ in results[IDENTICAL:]} <= {run.id for run in runs}
    tracking = open_tracking(settings)
    assert [(one.name, one.version) for one in tracking.models() if one.name in names] == [
        (name, 1) for name in sorted(set(names))
    ]
