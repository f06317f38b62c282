"""Deployments: what can be run from the Prefect UI and on a schedule, and the pool that runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists
from prefect.schedules import Cron

from yarn_ops.recipe import load_recipe
from yarn_ops.servers import WORK_POOL
from yarn_ops.shipped import CHECKOUT, recipe_path

NIGHTLY = "0 2 * * *"
RUNS_AT_ONCE = 1  # one GPU: runs wait in the pool, the lease of a stage is what excludes


def register_deployments() -> list[str]:
    """Make the work pool and every deployment, or bring them up to date; their names."""
    _make_pool()
    demo = load_recipe(recipe_path("demo"))
    extend = Flow.from_source(str(CHECKOUT), entrypoint="flows/extend.py:extend")
    extend.deploy(  # type: ignore[union-attr]
        name="extend-context",
        work_pool_name=WORK_POOL,
        description=(Path(__file__).parent / "extend.md").read_text("utf-8"),
        parameters={"recipe": _form_defaults(demo.model_dump(mode="json"))},
        schedules=[Cron(NIGHTLY, active=False, slug="nightly")],
        print_next_steps=False,
        ignore_warnings=True,
    )
    return ["extend-context/extend-context"]


def _make_pool() -> None:
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(
                WorkPoolCreate(name=WORK_POOL, type="process", concurrency_limit=RUNS_AT_ONCE)
            )
        except ObjectAlreadyExists:
            return


def _form_defaults(recipe: dict[str, Any]) -> dict[str, Any]:
    """The form's first values, without what is empty: an empty field of the form stays empty."""
    return {
        name: {key: value for key, value in section.items() if value is not None}
        for name, section in recipe.items()
    }
