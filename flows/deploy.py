"""Deployments: what can be run from the Prefect UI and on a schedule, and the pool that runs it.

`python -m flows.deploy`, with the Prefect API in the environment, brings a server up to date. It is meant to
run while no worker does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.deployments.runner import EntrypointType
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.schedules import Cron
from prefect.states import Cancelled, Scheduled

from flows.extend import extend
from yarn_ops.recipe import Recipe, load_recipe
from yarn_ops.servers import WORK_POOL
from yarn_ops.shipped import recipe_path

NAME = "extend-context"
NIGHTLY = "0 2 * * *"
RUNS_AT_ONCE = 1  # one GPU: runs wait in the pool, the lease of a stage is what excludes
INTERRUPTED = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)


def register() -> None:
    """Work pool and deployments, made or brought up to date; interrupted runs, scheduled again."""
    with get_client(sync_client=True) as client:
        _ensure_pool(client)
        _ensure_deployment(client)
        _resume_interrupted(client)


def _ensure_pool(client: SyncPrefectClient) -> None:
    try:
        client.create_work_pool(
            WorkPoolCreate(name=WORK_POOL, type="process", concurrency_limit=RUNS_AT_ONCE)
        )
    except ObjectAlreadyExists:
        return


def _ensure_deployment(client: SyncPrefectClient) -> None:
    """Make the deployment, or renew what is ours of it: a person's schedules and first values stay."""
    deployment = extend.to_deployment(
        name=NAME,
        work_pool_name=WORK_POOL,
        entrypoint_type=EntrypointType.MODULE_PATH,
        description=(Path(__file__).parent / "extend.md").read_text("utf-8"),
        parameters={"recipe": _form_values(load_recipe(recipe_path("demo")))},
        schedules=[Cron(NIGHTLY, active=False, slug="nightly")],
    )
    try:
        known = client.read_deployment_by_name(f"{extend.name}/{NAME}")
    except ObjectNotFound:
        deployment.apply()
        return
    renewed = DeploymentUpdate(
        version=deployment.version,
        description=deployment.description,
        entrypoint=deployment.entrypoint,
        parameter_openapi_schema=deployment._parameter_openapi_schema.model_dump(exclude_unset=True),
    )
    client.update_deployment(known.id, renewed)


def _resume_interrupted(client: SyncPrefectClient) -> None:
    """What was under way when the last worker ended is under way no more: run it again, or cancel it."""
    runs = client.read_flow_runs(
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[WORK_POOL])),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(INTERRUPTED)))
        ),
    )
    for run in runs:
        cancelling = run.state_type == StateType.CANCELLING
        state = (
            Cancelled() if cancelling else Scheduled(message="the service ended; finished stages are reused")
        )
        client.set_flow_run_state(run.id, state, force=True)


def _form_values(recipe: Recipe) -> dict[str, Any]:
    """A recipe's values for the form, without what is empty: an empty field of the form stays empty."""
    return {
        name: {key: value for key, value in section.items() if value is not None}
        for name, section in recipe.model_dump(mode="json").items()
    }


if __name__ == "__main__":
    register()
