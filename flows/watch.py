"""The watcher: extends every registered model version that asks for it by a tag, once a recipe."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import StateType
from prefect.logging import get_run_logger

from flows.liveness import sign
from yarn_ops.catalogue import ModelVersion
from yarn_ops.errors import RecipeError
from yarn_ops.recipe import Recipe, parse_recipe
from yarn_ops.registry import open_registry
from yarn_ops.services import try_mlflow
from yarn_ops.settings import read_settings

ASKING = "yarn_ops.extend_to"
"""tag of a model version: the context, in tokens, that it shall get"""
EXTEND = "extend-context/extend-context"
MOST_FAILURES = 3
"""a recipe that failed as often is left to a person"""
AT_WORK = {StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING}


@flow(name="watch-models", persist_result=False)
def watch(recipe: Recipe) -> list[str]:
    """Ask for the extension of every model version tagged `yarn_ops.extend_to` that has none by this recipe.

    Args:
        recipe: How to extend. Base and target context come from the version and its tag, the name from both.

    Returns:
        What was asked for: `model version -> new model`.
    """
    sign()
    log = get_run_logger()
    settings = read_settings()
    asked = []
    with closing(open_registry(settings.database)) as registry, get_client(sync_client=True) as client:
        for version in try_mlflow(settings).asking(ASKING):
            try:
                wanted = recipe_for(version, recipe)
            except RecipeError as error:
                log.warning("%s version %d: %s", version.name, version.version, error)
                continue
            if registry.came_to_its_end(wanted.digest()) or _is_asked_for(client, wanted):
                continue
            client.create_flow_run_from_deployment(
                client.read_deployment_by_name(EXTEND).id,
                parameters={"recipe": wanted.model_dump(mode="json")},
                tags=[tag_of(wanted)],
            )
            asked.append(f"{version.name} {version.version} -> {wanted.publish.name}")
            log.info("asked for: %s", asked[-1])
    told = "\n".join(f"- {one}" for one in asked) or "no model version asks for an extension"
    create_markdown_artifact(told, key="asked-for", description=f"{len(asked)} extensions asked for")
    return asked


def recipe_for(version: ModelVersion, template: Recipe) -> Recipe:
    """The template for this version and the context that its tag asks for; RecipeError when it cannot be."""
    asked = version.tags[ASKING]
    if not asked.isdecimal() or len(asked) > 9:
        raise RecipeError(f"tag {ASKING}: {asked[:40]!r} is not a number of tokens; write e.g. 32768")
    values: dict[str, Any] = template.model_dump(mode="json")
    original = version.tags.get("original_context_length", "")  # of one that was extended before
    values["base"] |= {
        "model": f"models:/{version.name}/{version.version}",
        "original_context_tokens": template.base.original_context_tokens
        or (int(original) if original.isdecimal() else None),
    }
    values["rope"] |= {"target_context_tokens": int(asked), "factor": None}
    values["publish"] |= {"name": f"{version.name}-{asked}"}
    return parse_recipe(values, f"{version.name} version {version.version}")


def tag_of(recipe: Recipe) -> str:
    """By which the runs of a recipe are found in Prefect."""
    return f"recipe-{recipe.digest()[:16]}"


def _is_asked_for(client: SyncPrefectClient, recipe: Recipe) -> bool:
    """Whether a run of it waits or goes on, or too many have failed."""
    runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[tag_of(recipe)])))
    ended = [run for run in runs if run.state_type not in AT_WORK]
    return len(ended) < len(runs) or len(ended) >= MOST_FAILURES
