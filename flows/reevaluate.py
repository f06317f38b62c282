"""A registered model, scored again on today's documents and judged by the gate of its own recipe."""

from __future__ import annotations

from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event

from flows.outcome import run_flow
from flows.reporting import show_capacity
from flows.run import RunContext, open_run
from flows.stages.making import fetch_base, prepare, survey
from flows.stages.measuring import judge, score
from flows.stages.releasing import chart, log_scores
from yarn_ops.catalogue import ModelVersion
from yarn_ops.errors import GateFailed, RegistryError
from yarn_ops.recipe import Base, Recipe, recorded_recipe
from yarn_ops.registry import open_registry
from yarn_ops.scores import BeforeAfter, Verdict
from yarn_ops.services import open_run_registry, try_mlflow
from yarn_ops.settings import Settings, read_settings

FELL = "yarn-ops.release.fell"
"""event: a released model no longer passes its gate"""
HELD = "yarn-ops.release.held"
LAST = "yarn_ops.last_gate"
"""tag of the version: passed or failed, when it was last scored"""


@run_flow("reevaluate", "reevaluate {name}@{alias}")
def reevaluate(name: str, alias: str = "champion", seed: int = 1) -> str:
    """Score a registered model again and judge it by its recipe's gate; an event tells how it went.

    The base is measured beside it, so a condition relative to the base stays one. A model that falls keeps
    its alias: to move it is a person's decision. Its run ends Rejected.

    Args:
        name: The registered model.
        alias: Which of its versions.
        seed: Of windows and needles; another than its recipe's, or what it was chosen by is asked again.

    Returns:
        The run's id in the registry.
    """
    settings = read_settings()
    version = try_mlflow(settings).find(name, alias=alias, include_rejected=True)
    recipe = recipe_of(version, settings)
    recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"seed": seed})})
    with open_run(settings, recipe, compared={"reevaluate": version.version, "seed": seed}) as run:
        base = fetch_base(recipe.base)
        source = f"models:/{version.name}/{version.version}"
        released = fetch_base(Base(model=source, original_context_tokens=base.context_tokens))
        corpus = survey(recipe.data)
        shards = prepare(recipe.data.of_shards(), corpus, base)
        before = score(recipe, base, shards, base.context_tokens)
        scores = BeforeAfter(before, score(recipe, released, shards, base.context_tokens))
        target = recipe.rope.target_tokens(base.context_tokens)
        verdict = judge(recipe.gate, scores, target)
        log_scores(run, run.mlflow.id, scores)
        show_capacity(chart(f"{name} version {version.version}", scores))
        tell(run, version, alias, verdict)
        if not verdict.passed:
            raise GateFailed(f"{name} version {version.version} fell below its gate: {verdict.reasons}")
        return run.id


def recipe_of(version: ModelVersion, settings: Settings) -> Recipe:
    """The recipe that the version was made by, with its gate; RegistryError when no run here knows it."""
    run = version.tags.get("run")
    if run is None:
        raise RegistryError(
            f"{version.name} version {version.version}: its recipe is unknown, there is no tag `run`; "
            "only models that were published here can be judged"
        )
    open_run_registry(settings).close()
    registry = open_registry(settings.database)
    try:
        asked = registry.run_view(run).recipe
    finally:
        registry.close()
    return recorded_recipe(asked, f"{version.name} version {version.version}")


def tell(run: RunContext, version: ModelVersion, alias: str, verdict: Verdict) -> None:
    """An event, a tag on the version and an artifact; each says the same."""
    how = "passed" if verdict.passed else "failed"
    run.services.tracking.set_tag(version.name, version.version, LAST, how)
    emit_event(
        HELD if verdict.passed else FELL,
        resource={
            "prefect.resource.id": f"yarn-ops.release.{version.name}.{version.version}",
            "prefect.resource.name": f"{version.name} version {version.version}",
        },
        payload={
            "name": version.name, "version": version.version, "alias": alias, "run": run.id,
            "reasons": [check.reason for check in verdict.checks if check.passed == verdict.passed],
        },
    )  # fmt: skip
    lines = [f"- {'passed' if check.passed else '**failed**'}: {check.reason}" for check in verdict.checks]
    create_markdown_artifact(
        f"## {version.name} version {version.version} ({alias}): gate {how}\n\n" + "\n".join(lines),
        key="reevaluation",
        description=f"{version.name} version {version.version}, gate {how}",
    )
