"""Deployments: what can be run from the Prefect UI and on a schedule, and the pools that run it.

`python -m flows.deploy [--alone]`, with the Prefect API in the environment, brings a server up to date and
puts right what died. `--alone`: no worker runs, so every run that counts as under way was interrupted.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import EntrypointType, RunnerDeployment
from prefect.events import AutomationCore, EventTrigger, Posture, RunDeployment
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.schedules import Cron
from prefect.server.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL

from flows.alert import alert
from flows.compare import ARMS, METHODS, compare
from flows.engine import STANDBY, TRAINER
from flows.extend import extend, extend_model
from flows.fit import fit
from flows.forms import form_values
from flows.grid import measure_cells
from flows.reconcile import reconcile, settle
from flows.reevaluate import FELL, reevaluate
from flows.watch import watch
from yarn_ops import standby
from yarn_ops.errors import SettingsError, YarnOpsError
from yarn_ops.languages import described, in_form
from yarn_ops.recipe import Recipe, load_recipe
from yarn_ops.servers import CPU_POOL, GPU_POOL, POLL_S, START_S, answers
from yarn_ops.settings import Settings, read_settings
from yarn_ops.shipped import recipe_path

NIGHTLY = "0 2 * * *"
RUNS_AT_ONCE = {CPU_POOL: 2, GPU_POOL: 3}
"""Admission only: one of a machine's runs has the GPU, by its lease; the others prepare, merge, register."""
CRASHED = "yarn-ops.run.crashed"
"""automation: reconciles when a run of the GPU pool crashed"""
EVERY_HOUR = "17 * * * *"
EVERY_FIVE_MINUTES = "*/5 * * * *"
BEFORE_DAWN = "40 3 * * *"
SUNDAYS = "20 4 * * 0"
DEPLOYMENT_NAME = re.compile("[^/%&<>]{1,128}")
"""what Prefect takes, of a length that its pages show"""
URGENT = "urgent"
"""a queue of each pool: a run that is put there is the next to begin"""
ONE_AT_A_TIME = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
"""schedules that were missed run once, not one after the other"""


def deployments(language: str = "en") -> list[RunnerDeployment]:
    """Everything that is offered: its form's first values, its pool, its schedule."""
    demo = form_values(load_recipe(recipe_path("demo")))
    offered = [
        _offer(
            extend_model, "extend-model", GPU_POOL, TRAINER,
            description=_told_in("extend.md"),
            parameters={
                "base": "shipped:base512", "target_context_tokens": 2048, "documents": ["stdlib:**/*.py"],
                "name": "demo-long", "preset": "standard",
            },
        ),
        _offer(
            extend, "extend-context", GPU_POOL, TRAINER,
            description=_told_in("extend.md"),
            parameters={"recipe": demo},
            schedules=[Cron(NIGHTLY, active=False, slug="nightly")],
        ),
        _offer(
            compare, "compare-methods", GPU_POOL,
            description=_told_in("compare.md"),
            parameters={"recipe": demo, "methods": METHODS, "arms": ARMS},
        ),
        _offer(
            fit, "fit-rope", GPU_POOL,
            description=_told_in("fit.md"),
            parameters={"recipe": demo, "method": "yarn"},
        ),
        _offer(
            reevaluate, "reevaluate", GPU_POOL,
            parameters={"name": "demo-long", "alias": "champion", "seed": 1},
            schedules=[Cron(SUNDAYS, active=False, slug="weekly")],
        ),
        _offer(measure_cells, "measure-cells", GPU_POOL),
        _offer(alert, "alert", CPU_POOL, parameters={"name": "demo-long", "version": "1"}),
        _offer(
            watch, "watch-models", CPU_POOL,
            parameters={"recipe": demo},
            schedules=[Cron(EVERY_HOUR, slug="hourly")],
            concurrency_limit=ONE_AT_A_TIME,
        ),
        _offer(
            reconcile, "reconcile", CPU_POOL,
            schedules=[
                Cron(EVERY_FIVE_MINUTES, slug="every-five-minutes"),
                Cron(BEFORE_DAWN, slug="sweep", parameters={"sweep": True}),
            ],
            concurrency_limit=ONE_AT_A_TIME,
        ),
    ]  # fmt: skip
    return [_in_language(one, language) for one in offered]


def next_run(cron: str) -> datetime:
    """When the times come next, in UTC as they are meant; SettingsError where they are none, or never come.

    Five fields: by a sixth, of seconds, which Prefect takes, "* * * * * *" would run every second.
    """
    try:
        if len(cron.split()) not in (1, 5):
            raise ValueError
        (found,) = asyncio.run(CronSchedule(cron=cron, timezone="UTC").get_dates(1))
    except ValueError:
        raise SettingsError(
            f"--cron {cron!r}: no times that ever come; give five fields (minute, hour, day, month, weekday; "
            "UTC), e.g. '0 2 * * *': every night at two"
        ) from None
    return found


def require_free_name(name: str) -> None:
    """SettingsError where no deployment can be called so, or one of the service's own would be replaced."""
    if not name.strip() or DEPLOYMENT_NAME.fullmatch(name) is None:
        raise SettingsError(f"--name {name!r}: give 1 to 128 characters, none of / % & < >")
    if name in {one.name for one in deployments()}:
        raise SettingsError(f"--name {name}: is a deployment of the service itself; give another --name")


def schedule(recipe: Recipe, name: str, cron: str, *, active: bool, language: str) -> str:
    """Make or renew the deployment that runs the recipe at these times; its address in Prefect's pages.

    A run that is due while the last one goes on is left out.
    """
    times = Cron(cron, timezone="UTC", active=active, slug="schedule")
    with get_client(sync_client=True) as client:
        ensure_pool(client, GPU_POOL, RUNS_AT_ONCE[GPU_POOL])
    offered = _offer(
        extend, name, GPU_POOL, TRAINER,
        description=f"`{recipe.publish.name}` at `{cron}`, made by `yarn-ops schedule`.",
        parameters={"recipe": form_values(recipe)},
        schedules=[times],
        concurrency_limit=ONE_AT_A_TIME,
    )  # fmt: skip
    made = _in_language(offered, language).apply()
    return f"{str(PREFECT_API_URL.value()).removesuffix('/api')}/deployments/deployment/{made}"


def _offer(
    flow: Flow[..., Any], name: str, pool: str, *engine_arguments: str, **values: Any
) -> RunnerDeployment:
    """A deployment of a flow that is installed where it runs. A run of one that trains is handed to the
    process that `yarn-ops up` keeps ready, where there is one (`yarn_ops.standby`)."""
    command = [sys.executable, "-m", "flows.engine", *engine_arguments]
    if TRAINER in engine_arguments:
        command += [STANDBY, str(read_settings().home / standby.ADDRESS)]
    return flow.to_deployment(
        name=name,
        work_pool_name=pool,
        entrypoint_type=EntrypointType.MODULE_PATH,
        job_variables={"command": shlex.join(command)},
        **values,
    )


def _in_language(offered: RunnerDeployment, language: str) -> RunnerDeployment:
    """The deployment with what its page and its form say in a language."""
    offered.description = described(offered.name, language) or offered.description
    schema = offered._parameter_openapi_schema.model_dump(exclude_unset=True)
    for name, field in schema["properties"].items():
        field["title"] = name.replace("_", " ").capitalize()
    schema["required"] = [name for name in schema["properties"] if name in offered.parameters]
    in_form(schema, str(offered.flow_name), language)
    offered._parameter_openapi_schema = type(offered._parameter_openapi_schema).model_validate(schema)
    return offered


def _told_in(page: str) -> str:
    return (Path(__file__).parent / page).read_text("utf-8")


def register(language: str = "en") -> None:
    """Work pools and deployments, made or brought up to date."""
    with get_client(sync_client=True) as client:
        for pool, runs_at_once in RUNS_AT_ONCE.items():
            ensure_pool(client, pool, runs_at_once)
        for deployment in deployments(language):
            _ensure_deployment(client, deployment)
        _ensure_automations(client)


def ensure_pool(client: SyncPrefectClient, name: str, runs_at_once: int) -> None:
    """Make the pool unless it exists; an existing one keeps its type and limit."""
    try:
        client.create_work_pool(WorkPoolCreate(name=name, type="process", concurrency_limit=runs_at_once))
    except ObjectAlreadyExists:
        return
    client.create_work_queue(URGENT, "before all other runs", priority=1, work_pool_name=name)


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
        job_variables={**known.job_variables, **deployment.job_variables},
        parameter_openapi_schema=deployment._parameter_openapi_schema.model_dump(exclude_unset=True),
    )
    client.update_deployment(known.id, renewed)


def _ensure_automations(client: SyncPrefectClient) -> None:
    """One tells of a release that fell; one reconciles at once when the process of a run was killed."""
    told = {
        name: {"__prefect_kind": "jinja", "template": f"{{{{ event.payload['{name}'] }}}}"}
        for name in ("name", "version")
    }
    told["reasons"] = {"__prefect_kind": "jinja", "template": "{{ event.payload['reasons'] | join('; ') }}"}
    _ensure_automation(
        client, FELL, "A released model no longer passes its gate.", "alert/alert", told, expect={FELL}
    )
    pool = {"prefect.resource.role": "work-pool", "prefect.resource.name": GPU_POOL}
    _ensure_automation(
        client, CRASHED, "The process of a run was lost: it is taken up again, and somebody is told.",
        "reconcile/reconcile", {}, expect={"prefect.flow-run.Crashed"}, match_related=pool,
    )  # fmt: skip


def _ensure_automation(
    client: SyncPrefectClient, name: str, description: str, deployment: str, parameters: dict[str, Any],
    **events: Any,
) -> None:  # fmt: skip
    """Run the deployment at these events; an automation of that name stays as a person has made it."""
    if client.read_automations_by_name(name):
        return
    deployment_id = client.read_deployment_by_name(deployment).id
    client.create_automation(
        AutomationCore(
            name=name,
            description=description,
            trigger=EventTrigger(posture=Posture.Reactive, threshold=1, within=timedelta(0), **events),
            actions=[RunDeployment(source="selected", deployment_id=deployment_id, parameters=parameters)],
        )
    )


def _until_served(settings: Settings) -> None:
    """Until Prefect and MLflow answer: we may be started together with them, to import meanwhile."""
    places = [place for place in (PREFECT_API_URL.value(), settings.mlflow_uri) if place is not None]
    deadline = time.monotonic() + START_S
    while not all(answers(f"{place}/health") for place in places if place.startswith("http")):
        if time.monotonic() > deadline:
            raise SettingsError(f"{' or '.join(places)}: does not answer; see the logs of the servers")
        time.sleep(POLL_S)


def main() -> None:
    settings = read_settings()
    _until_served(settings)
    register(settings.language)
    try:
        for kind, names in settle(settings, alone="--alone" in sys.argv[1:]).items():
            for name in names:
                print(f"{kind}: {name}", flush=True)
    except YarnOpsError as error:  # the next reconcile tries again; the service can start
        print(f"not reconciled: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
