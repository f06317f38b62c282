"""Helpers of a suite: asked for and called off by the run, and finding what the run itself would find."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_API_URL, temporary_settings
from small_recipe import asked

from flows.deploy import RUNS_AT_ONCE, deployments, ensure_pool
from flows.grid import Shared, helped
from flows.run import RunContext
from yarn_ops.progress import ProgressBars
from yarn_ops.recipe import Evaluate
from yarn_ops.records import BaseModel, Dropped, ShardSet
from yarn_ops.registry import open_registry
from yarn_ops.servers import GPU_POOL
from yarn_ops.services import open_run_registry
from yarn_ops.settings import Settings

HELP = """
import json, sys
from flows.grid import Shared, measure_cells
print("result:", measure_cells(1, Shared(**json.loads(sys.argv[1]))))
"""
BASE = BaseModel(
    source="shipped:base512", architecture="LlamaForCausalLM", model_type="llama", parameters=5_047_552,
    vocab_size=8192, context_tokens=512, head_dim=64, rope_theta=10_000.0,
)  # fmt: skip


@pytest.fixture
def client(prefect_api: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: prefect_api}), get_client(sync_client=True) as client:
        yield client


SHARDS = ShardSet(
    tokenizer_digest="t" * 64, vocab_size=8192, train_documents=9, train_tokens=9000, held_out_documents=1,
    held_out_tokens=1000, longest_document_tokens=1000, dropped=Dropped(), lengths=(),
)  # fmt: skip


@pytest.fixture
def run_context(tmp_path: Path) -> Iterator[RunContext]:
    settings = Settings(state_dir=tmp_path, grid_workers=3)
    registry = open_run_registry(settings)
    recipe = asked(rope={"factor": 2})
    row = registry.begin_run(recipe.model_dump(mode="json"), recipe.digest())
    yield RunContext(settings, recipe, registry, row, ProgressBars())
    registry.close()


def test_a_run_asks_for_helpers_once_and_calls_off_those_that_have_not_begun(
    client: SyncPrefectClient, run_context: RunContext
) -> None:
    shared = Shared(
        run_id=run_context.id, attempt=1, key=run_context.id, section=Evaluate(suite="tiny"), model=BASE,
        shards=SHARDS, target_context_tokens=1024, original_context_tokens=512,
    )  # fmt: skip
    with disable_run_logger(), helped(run_context, shared):
        pass  # no deployment, as where `yarn-ops extend` has a server of its own: the run goes on alone
    ensure_pool(client, GPU_POOL, RUNS_AT_ONCE[GPU_POOL])
    (deployment,) = (one for one in deployments() if one.name == "measure-cells")
    deployment.apply()
    with helped(run_context, shared), helped(run_context, shared):
        asked = helpers(client, run_context)
        assert [run.name for run in asked] == [f"{run_context.id}-helper-{number}" for number in (1, 2)]
        assert all(run.state.is_scheduled() for run in asked)
        assert Shared.model_validate(asked[0].parameters["shared"]) == shared
    assert [run.state.name for run in helpers(client, run_context)] == ["Cancelled", "Cancelled"]


def helpers(client: SyncPrefectClient, run_context: RunContext) -> list[Any]:
    named = FlowRunFilter(name=FlowRunFilterName(like_=f"{run_context.id}-helper-"))
    return sorted(client.read_flow_runs(flow_run_filter=named), key=lambda run: run.name)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_helper_finds_what_the_run_found(
    cli: Any, environment: dict[str, str], small_recipe: Path, state: Path
) -> None:
    done = cli("extend", small_recipe, "--set", "evaluate.suite=tiny")
    assert done.returncode == 0, done.stderr
    registry = open_registry(Settings(state_dir=state).database)
    run = registry.run_view()
    registry.close()
    made = {stage.stage: stage for stage in run.stages}
    last = [stage for stage in run.stages if stage.stage == "evaluate"][-1]
    scores = measured(state)
    assert scores
    with sqlite3.connect(state / "registry.db") as database:
        database.execute("DELETE FROM measurements")
        database.execute("DELETE FROM cells")
    shared = {
        "run_id": run.id, "attempt": 1, "key": last.key, "section": run.recipe["evaluate"],
        "model": made["merge"].record, "shards": made["shards"].record, "target_context_tokens": 1024,
        "original_context_tokens": 512,
    }  # fmt: skip
    helped_out = subprocess.run(
        [sys.executable, "-c", HELP, json.dumps(shared)],
        env={**environment, "PREFECT_API_URL": environment["YARN_OPS_PREFECT_API_URL"]},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert helped_out.returncode == 0, helped_out.stderr[-3000:]
    # context, needles at four lengths, and of the scorecard perplexity and recall at two
    assert helped_out.stdout.rpartition("result: ")[2].strip() == "9"
    assert measured(state) == scores


def measured(state: Path) -> set[tuple[Any, ...]]:
    """The cells of the model that was measured last, without when, and without the look at its attention."""
    with sqlite3.connect(state / "registry.db") as database:
        return set(
            database.execute(
                "SELECT protocol, cell, cell_tokens, task, context_tokens, depth, value, low, high, items "
                "FROM measurements WHERE cell != 'attention' AND checkpoint_digest = "
                "(SELECT checkpoint_digest FROM measurements ORDER BY id DESC LIMIT 1)"
            ).fetchall()
        )
