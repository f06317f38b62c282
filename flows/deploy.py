"""Deployments: what can be run from the Prefect UI and on a schedule, and the pools that run it.

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
from prefect.deployments.runner import EntrypointType, RunnerDeployment
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.schedules import Cron
from prefect.states import Cancelled, Scheduled

from flows.extend import extend
from yarn_ops.recipe import Recipe, load_recipe
from yarn_ops.servers import CPU_POOL, GPU_POOL
from yarn_ops.shipped import recipe_path

NIGHTLY = "0 2 * * *"
RUNS_AT_ONCE = {CPU_POOL: 2, GPU_POOL: 1}  # runs wait in the pool, the lease of a stage is what excludes
INTERRUPTED = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)


def deployments() -> list[RunnerDeployment]:
    """Everything that is offered: its form's first values, its pool, its schedule."""
    demo = _form_values(load_recipe(recipe_path("demo")))
    return [
        extend.to_deployment(
            name="extend-context",
            work_pool_name=GPU_POOL,
            entrypoint_type=EntrypointType.MODULE_PATH,
            description=(Path(__file__).parent / "extend.md").read_text("utf-8"),
            parameters={"recipe": demo},
            schedules=[Cron(NIGHTLY, active=False, slug="nightly")],
        ),
    ]


def register() -> None:
    """Work pools and deployments, made or brought up to date; interrupted runs, scheduled again."""
    with get_client(sync_client=True) as client:
        for pool, runs_at_once in RUNS_AT_ONCE.items():
            _ensure_pool(client, pool, runs_at_once)
        for deployment in deployments():
            _ensure_deployment(client, deployment)
        _resume_interrupted(client)


def _ensure_pool(client: SyncPrefectClient, name: str, runs_at_once: int) -> None:
    """Make the pool; one that is there, perhaps of another type or with another limit, stays."""
    try:
        client.create_work_pool(WorkPoolCreate(name=name, type="process", concurrency_limit=runs_at_once))
    except ObjectAlreadyExists:
        return


def _ensure_deployment(client: SyncPrefectClient, deployment: RunnerDeployment) -> None:
    """Make the deployment, or renew what is ours of it: a person's schedules and first values stay."""
    try:
        known = client.read_deployment_by_name(f"{deployment.flow_name}/{deployment.name}")
    except ObjectNotFound:
        deployment.apply()
        return
    renewed = DeploymentUpdate(
        version=deployment.version,
        description=deployment.description,
        entrypoint=deployment.entrypoint,
        work_pool_name=deployment.work_pool_name,
        parameter_openapi_schema=deployment._parameter_openapi_schema.model_dump(exclude_unset=True),
    )
    client.update_deployment(known.id, renewed)


def _resume_interrupted(client: SyncPrefectClient) -> None:
    """What was under way when the last worker ended is under way no more: run it again, or cancel it."""
    runs = client.read_flow_runs(
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=list(RUNS_AT_ONCE))),
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
