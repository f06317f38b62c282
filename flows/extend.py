"""The main flow: base model and long documents in, a registered, measured long-context model out."""

from __future__ import annotations

from flows.approval import promote, wait_for
from flows.curriculum import train_legs
from flows.outcome import run_flow
from flows.reporting import show_plan, show_report
from flows.run import open_run
from flows.stages.making import fetch_base, merge, patch, prepare, rehearse, require_windows, survey, warm_up
from flows.stages.measuring import judge, require_measurable, score
from flows.stages.releasing import draw, publish, take_fingerprint
from flows.warm_trainer import warm_trainer
from yarn_ops.errors import GateFailed
from yarn_ops.recipe import Recipe
from yarn_ops.recipe.presets import ModelName, Preset, ReleaseName, short_recipe
from yarn_ops.recipe.section import Positive
from yarn_ops.recipe.sections import Source
from yarn_ops.scores import BeforeAfter
from yarn_ops.settings import read_settings


@run_flow("extend-context", "{recipe.publish.name}")
def extend(recipe: Recipe) -> str:
    """Extend a model's context, measure it at both ends, and register it in MLflow.

    Finished stages of an earlier run with the same inputs are reused. A model that fails its gate is
    registered as rejected, the alias stays where it is, and the run ends Rejected. A leg that fails its own
    gate ends the run so as well; then nothing is registered.

    Args:
        recipe: What to do.

    Returns:
        The run's id in the registry.
    """
    return extension(recipe)


@run_flow("extend-model", "{name}")
def extend_model(
    base: ModelName,
    target_context_tokens: Positive,
    documents: list[Source],
    name: ReleaseName,
    preset: Preset = "standard",
) -> str:
    """Extend a model to a longer context: five fields, the rest by a preset. extend-context has every field.

    Args:
        base: The model: a directory, hf:org/name@revision, models:/name@alias, s3://bucket/prefix, or
            shipped:base512, the demo's.
        target_context_tokens: The context it shall have, e.g. 32768.
        documents: Files or globs to train on and to measure with: text, .jsonl, .parquet; local or s3://.
        name: What the model is called in MLflow, and the run after it.
        preset: quick: a try; standard: as the demo; thorough: exercises that make it use its window, and a
            suite that measures how far it does (a GPU).

    Returns:
        The run's id in the registry.
    """
    return extension(short_recipe(base, target_context_tokens, documents, name, preset))


def extension(recipe: Recipe) -> str:
    """Do the run of a recipe; its id in the registry.

    GateFailed where it was rejected, by its gate or by a person; AwaitsApproval until somebody decides.
    """
    settings = read_settings()
    if settings.signing_key is not None:
        from yarn_ops.claim import read_signing_key

        read_signing_key(settings.signing_key)  # before a run exists that could not be signed
    with open_run(settings, recipe) as run, warm_trainer(run):
        if run.asks_a_person:  # an attempt before this one came so far
            promote(run)
            return run.id
        base = fetch_base(recipe.base)
        legs = recipe.curriculum(base.context_tokens)
        configs = [patch(recipe.rope, leg.factor or 1.0, base) for leg in legs]
        rehearse(recipe.train, [leg.ungated() for leg in legs], configs[-1], recipe.data.document_mask)
        corpus = survey(recipe.data)
        show_plan(run.plan(base, corpus))
        warm_up(recipe.train, legs[0], recipe.data, configs[0])
        shards = prepare(recipe.data.of_shards(), corpus, base)
        require_windows(shards, legs, configs[-1])
        require_measurable(recipe, base, shards, base.context_tokens)

        trained = train_legs(recipe, legs, configs, base, shards, gated=True)
        patched, adapters = trained.patched, trained.adapters
        checkpoint = merge(trained.weights, patched, adapters[-1], shards)
        before = score(recipe, base, shards, base.context_tokens)
        scores = BeforeAfter(before, score(recipe, checkpoint, shards, base.context_tokens))
        verdict = judge(recipe.gate, scores, checkpoint.context_tokens)
        report = draw(
            recipe, base, shards=shards, patched=patched, adapters=adapters, checkpoint=checkpoint,
            scores=scores, verdict=verdict, language=run.settings.language,
        )  # fmt: skip
        reference = take_fingerprint(checkpoint) if recipe.publish.fingerprint and verdict.passed else None
        release = publish(recipe.publish, base, shards, checkpoint, scores, verdict, report, reference)
        show_report(release, report, shards)
        if not verdict.passed:
            raise GateFailed(f"{release.name} version {release.version} was rejected: {verdict.reasons}")
        if recipe.publish.approval and release.alias is None:
            wait_for(run, release)
        return run.id
