"""Runs: continued until completed, seen whole; the same on SQLite and PostgreSQL."""

from __future__ import annotations

import gc
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError
from registries import RECIPE
from sqlalchemy import text

from yarn_ops.errors import RegistryError
from yarn_ops.records import Checkpoint, Record, Release, Tree
from yarn_ops.registry import Registry, Run
from yarn_ops.registry.database import open_database
from yarn_ops.registry.tables import RunRow
from yarn_ops.scores import Score, Scorecard

DIGEST = "e" * 64
CHECKPOINT = Checkpoint(
    tree=Tree(uri="s3://bucket/checkpoint", digest="f" * 64, files=5, size_bytes=16 << 30),
    method="yarn",
    factor=4.0,
    original_context_tokens=8192,
    context_tokens=32768,
    parameters=8_000_000_000,
    merge_difference=0.01,
)
SCORECARD = Scorecard(
    model_digest="f" * 64,
    original_context_tokens=8192,
    scores=(
        Score(task="recall/code", context_tokens=32768, value=0.96, low=0.92, high=0.99, samples=96, seed=0),
        Score(task="recall/code", context_tokens=32768, depth=0.25, value=0.9, samples=24, seed=0),
        Score(
            task="perplexity/single-pass", context_tokens=8192, value=5.123456789012345, samples=16, seed=0
        ),
    ),
)
RELEASE = Release(
    name="llama-long",
    version=3,
    mlflow_run_id="m" * 32,
    gate="passed",
    alias="champion",
    tags={"context_length": "32768"},
)


def finish_stage(registry: Registry, run_id: str, stage: str, record: Record, seconds: float) -> None:
    key = stage.ljust(64, "0")
    lease = registry.claim(key, stage=stage, run_id=run_id, holder="a process", lease_s=60)
    assert lease is not None
    registry.complete(lease, record)
    registry.note_use(run_id, key, reused=False, seconds=seconds)


def fill_with_finished_runs(url: str, runs: int) -> None:
    database = open_database(url)
    started_at = datetime.now(UTC) - timedelta(days=1)
    with database.begin() as session:
        for number in range(runs):
            session.add(
                RunRow(
                    id=f"run-{number}",
                    recipe=RECIPE,
                    recipe_digest=f"{number:064}",
                    status="completed",
                    attempts=1,
                    started_at=started_at + timedelta(seconds=number),
                )
            )
    database.close()


def test_an_unfinished_run_is_continued(registry: Registry) -> None:
    first = registry.begin_run(RECIPE, DIGEST, git_commit="abc")
    assert first.attempts == 1
    registry.set_mlflow_run(first.id, "m1")
    assert registry.begin_run(RECIPE, DIGEST) == Run(first.id, 2, "m1"), "as after SIGKILL"
    for attempt, status in enumerate(("failed", "stopped"), start=3):
        registry.finish_run(first.id, status, "for a reason")  # type: ignore[arg-type]
        assert registry.begin_run(RECIPE, DIGEST) == Run(first.id, attempt, "m1")
    view = registry.run_view(first.id)
    assert (view.status, view.reason, view.finished_at) == ("running", None, None)


@pytest.mark.parametrize("status", ["completed", "rejected"])
def test_a_finished_run_is_not_continued_and_stays_so(registry: Registry, status: str) -> None:
    first = registry.begin_run(RECIPE, DIGEST)
    registry.finish_run(first.id, status, "a reason")  # type: ignore[arg-type]
    registry.finish_run(first.id, "failed", "a second process at the same run, late")
    second = registry.begin_run(RECIPE, DIGEST)
    assert second.id != first.id
    view = registry.run_view(first.id)
    assert (view.status, view.reason) == (status, "a reason")


def test_other_recipes_are_other_runs(registry: Registry) -> None:
    assert registry.begin_run(RECIPE, DIGEST).id != registry.begin_run(RECIPE, "0" * 64).id


def test_16_threads_begin_one_run(registry: Registry) -> None:
    start = threading.Barrier(16)

    def begin(_: int) -> Run:
        start.wait()
        return registry.begin_run(RECIPE, DIGEST)

    with ThreadPoolExecutor(16) as pool:
        runs = list(pool.map(begin, range(16)))
    assert len({run.id for run in runs}) == 1
    assert sorted(run.attempts for run in runs) == list(range(1, 17))


def test_one_mlflow_run_for_16_threads(registry: Registry, run_id: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        tied = set(pool.map(lambda n: registry.set_mlflow_run(run_id, f"m{n}"), range(16)))
    assert tied == {registry.run_view(run_id).mlflow_run_id}


def test_a_run_is_seen_whole(registry: Registry) -> None:
    run = registry.begin_run(RECIPE, DIGEST, git_commit="abc", flow_run_id="flow")
    finish_stage(registry, run.id, "merge", CHECKPOINT, 12.5)
    finish_stage(registry, run.id, "evaluate", SCORECARD, 30.25)
    finish_stage(registry, run.id, "publish", RELEASE, 1.0)
    registry.finish_run(run.id, "completed")

    view = registry.run_view("last")
    assert (view.id, view.status, view.recipe, view.git_commit) == (run.id, "completed", RECIPE, "abc")
    assert [(stage.stage, stage.reused, stage.seconds) for stage in view.stages] == [
        ("merge", False, 12.5),
        ("evaluate", False, 30.25),
        ("publish", False, 1.0),
    ]
    assert Checkpoint.model_validate(view.stages[0].record) == CHECKPOINT
    assert view.release is not None
    assert (view.release.name, view.release.version, view.release.tags) == ("llama-long", 3, RELEASE.tags)
    assert [(score.task, score.depth, score.value) for score in view.scores] == [
        ("recall/code", None, 0.96),
        ("recall/code", 0.25, 0.9),
        ("perplexity/single-pass", None, 5.123456789012345),
    ]
    assert json.loads(view.model_dump_json())["scores"][0]["samples"] == 96


def test_times_are_utc_and_of_now(registry: Registry, run_id: str) -> None:
    started_at = registry.run_view(run_id).started_at
    assert started_at.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - started_at) < timedelta(seconds=30)


def test_a_second_run_reuses(registry: Registry) -> None:
    first = registry.begin_run(RECIPE, DIGEST)
    finish_stage(registry, first.id, "evaluate", SCORECARD, 30.0)
    finish_stage(registry, first.id, "publish", RELEASE, 1.0)
    registry.finish_run(first.id, "completed")
    second = registry.begin_run(RECIPE, DIGEST)
    for stage in ("evaluate", "publish"):
        registry.note_use(second.id, stage.ljust(64, "0"), reused=True, seconds=0.1)
    view = registry.run_view(second.id)
    assert [stage.reused for stage in view.stages] == [True, True]
    assert len(view.scores) == 3
    assert view.release == registry.run_view(first.id).release


def test_what_an_attempt_computed_stays_computed(registry: Registry, run_id: str) -> None:
    finish_stage(registry, run_id, "merge", CHECKPOINT, 12.5)
    key = "merge".ljust(64, "0")
    registry.note_use(run_id, key, reused=True, seconds=0.1)
    assert [(s.reused, s.seconds) for s in registry.run_view(run_id).stages] == [(False, 12.5)]
    registry.note_use(run_id, key, reused=False, seconds=13.0)
    assert [(s.reused, s.seconds) for s in registry.run_view(run_id).stages] == [(False, 13.0)]


def test_recomputed_scores_replace_the_discarded(registry: Registry, run_id: str) -> None:
    finish_stage(registry, run_id, "evaluate", SCORECARD, 30.0)
    registry.discard("evaluate".ljust(64, "0"), SCORECARD.model_dump(mode="json"), "damaged")
    better = SCORECARD.model_copy(update={"scores": (SCORECARD.scores[0].model_copy(update={"value": 0.5}),)})
    finish_stage(registry, run_id, "evaluate", better, 30.0)
    assert [score.value for score in registry.run_view(run_id).scores] == [0.5]


def test_a_record_that_is_not_read_as_it_was_written_is_no_record(
    database_url: str, registry: Registry, run_id: str
) -> None:
    finish_stage(registry, run_id, "evaluate", SCORECARD, 30.0)
    key, written = "evaluate".ljust(64, "0"), SCORECARD.model_dump(mode="json")
    assert registry.finished(key) == written
    value = f'"value":{SCORECARD.scores[0].value}'
    changed = "CAST(REPLACE(CAST(output AS TEXT), :old, :new) AS JSON)"
    if database_url.startswith("sqlite"):
        changed = "REPLACE(output, :old, :new)"
    with registry.begin() as session:
        values = {"old": value, "new": f"{value}1"}
        session.execute(text(f"UPDATE stage_runs SET output = {changed}"), values)
    found = registry.finished(key)
    assert found not in (None, written)
    with pytest.raises(ValidationError):
        Scorecard.model_validate(found)
    assert [stage.record for stage in registry.run_view(run_id).stages] == [None]
    registry.discard(key, found or {}, "damaged")
    assert registry.finished(key) is None


def test_a_record_is_replaced_unless_it_is_another_by_now(registry: Registry, run_id: str) -> None:
    finish_stage(registry, run_id, "publish", RELEASE, 1.0)
    key, moved = "publish".ljust(64, "0"), RELEASE.model_copy(update={"version": 9})
    registry.replace(key, RELEASE, moved)
    assert registry.finished(key) == moved.model_dump(mode="json")
    release = registry.run_view(run_id).release
    assert release is not None and release.version == 9
    registry.replace(key, RELEASE, RELEASE)
    assert registry.finished(key) == moved.model_dump(mode="json")


def test_unknown_runs_are_told_in_one_line(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="no run yet"):
        registry.run_view("last")
    for use in (registry.run_view, lambda run_id: registry.finish_run(run_id, "failed")):
        with pytest.raises(RegistryError, match="run 'nope': not in the registry"):
            use("nope")


def test_1000_runs_are_listed_within_a_second(database_url: str, registry: Registry) -> None:
    fill_with_finished_runs(database_url, 999)
    run = registry.begin_run(RECIPE, DIGEST)
    finish_stage(registry, run.id, "publish", RELEASE, 1.0)
    gc.collect()  # what other tests left is not the registry's to sweep
    started = time.perf_counter()
    runs = registry.runs(limit=1000)
    seconds = time.perf_counter() - started
    assert len(runs) == 1000
    assert runs[0].id == run.id and runs[0].release is not None
    assert [r.started_at for r in runs] == sorted((r.started_at for r in runs), reverse=True)
    assert seconds < 1.0
