"""What a run shows at its end: a report artifact in Prefect with tables, pictures and links."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import urlsplit

from prefect.artifacts import create_markdown_artifact

from flows.run import RunContext, current_run
from yarn_ops.planning import GIB, RunPlan
from yarn_ops.records import CARD, SUMMARY, Release, Report, ShardSet
from yarn_ops.registry import costs
from yarn_ops.rope.table import fit_section
from yarn_ops.scores import Comparison, Fit
from yarn_ops.shown import markdown_table


def show_plan(plan: RunPlan | None) -> None:
    """What the run will take, as an artifact in its first seconds; nothing where there is no plan."""
    if plan is not None:
        told, tables = plan_report(plan)
        create_markdown_artifact(tables, key="plan", description=told)


def plan_report(plan: RunPlan) -> tuple[str, str]:
    """(memory, minutes and dollars in a line, and as Markdown tables by leg and by part)."""
    minutes, dollars = sum(part.seconds for part in plan.parts) / 60, sum(part.money for part in plan.parts)
    peak = max(leg.peak_bytes for leg in plan.legs) / GIB
    told = f"{peak:,.1f} GiB of a GPU, {minutes:,.1f} minutes, ${dollars:,.2f}"
    legs = [("tokens", "steps", "GPU GiB", "host GiB", "minutes")] + [
        (f"{leg.context_tokens:,}", str(leg.steps), f"{leg.peak_bytes / GIB:.1f}",
         f"{leg.host_bytes / GIB:.1f}", f"{leg.seconds / 60:.1f}")
        for leg in plan.legs
    ]  # fmt: skip
    parts = [(one.name, f"{one.seconds / 60:.1f}", f"{one.money:,.2f}", one.limit) for one in plan.parts]
    tables = (markdown_table(legs), markdown_table([("part", "minutes", "$", "limited by"), *parts]))
    return told, "\n\n".join((f"**{plan.processes} × {plan.device}: {told}**", *tables))


def show_report(release: Release, report: Report, shards: ShardSet) -> None:
    """The model card with its pictures as an artifact, below links into MLflow where it has a UI.

    Nothing of a run that reuses all: Prefect has the artifacts of the run that it is the same as.
    """
    run = current_run()
    if run.reuses_all:
        return
    counted = ("train_documents", "train_tokens", "held_out_documents", "held_out_tokens")
    counts = {name: getattr(shards, name) for name in counted}
    sources = {"sources": list(run.recipe.data.sources), **counts}
    run.services.tracking.log_dataset(release.mlflow_run_id, "documents", shards.digest, sources)
    folder = run.fetch(report).path
    card = _without_front_matter((folder / CARD).read_text("utf-8"))
    create_markdown_artifact(
        _links(run.settings.mlflow, release) + _inline_pictures(card, folder) + _cost(run),
        key="report",
        description=f"{release.name} version {release.version}, gate {release.gate}",
    )
    _capacity_artifact(folder)


def show_capacity(report: Report) -> None:
    """The capacity page and its picture as an artifact, and in the run's MLflow run."""
    run = current_run()
    folder = run.fetch(report).path
    for name in (*report.pictures, *report.pages):
        run.mlflow.log_picture(folder / name)
    _capacity_artifact(folder)


def _capacity_artifact(folder: Path) -> None:
    """How far each model sees and uses, a sentence each above the picture, as an artifact."""
    summary = (folder / SUMMARY).read_text("utf-8")
    told = summary.partition("\n")[0].removeprefix("- ").replace("**", "")
    create_markdown_artifact(_inline_pictures(summary, folder), key="capacity", description=told)


def show_comparison(comparison: Comparison) -> None:
    """The table and the picture of a comparison as an artifact, and in its MLflow run."""
    from yarn_ops.evals.report.comparison import TABLE

    run = current_run()
    folder = run.fetch(comparison).path
    table = (folder / TABLE).read_text("utf-8")
    for picture in comparison.pictures:
        run.mlflow.log_picture(folder / picture)
        table += f"\n![]({picture})\n"
    create_markdown_artifact(
        _inline_pictures(table, folder),
        key="comparison",
        description=f"winner: {comparison.winner or 'none'}",
    )


def show_fit(fit: Fit) -> None:
    """The [rope] section that a search found, as an artifact and in the run's MLflow run."""
    section = "\n".join(fit_section(fit))
    run = current_run()
    run.services.tracking.log_text(run.mlflow.id, section, "rope.toml")
    told = "better than the defaults" if fit.adopted else "the defaults stay"
    create_markdown_artifact(f"```toml\n{section}\n```", key="fit", description=f"[rope]: {told}")


def _cost(run: RunContext) -> str:
    """What the run has cost so far, as Markdown."""
    run.costs.keep()
    view = run.registry.run_view(run.id)
    texts = ["\n\n## Cost"]
    for rows in (costs.stage_table(view), costs.plan_table(view)):
        texts += [markdown_table(rows)] if rows else []
    return "\n\n".join(texts)


def _links(mlflow_uri: str, release: Release) -> str:
    """Markdown links to the pages of the model version and its run; nothing where MLflow is a file."""
    if not mlflow_uri.startswith("http"):
        return ""
    address = urlsplit(mlflow_uri)
    shown = address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()
    version = f"{shown}/#/models/{release.name}/versions/{release.version}"
    run = f"{shown}/#/runs/{release.mlflow_run_id}"
    return f"[Model version]({version}) · [MLflow run]({run})\n\n"


def _without_front_matter(card: str) -> str:
    if not card.startswith("---\n"):
        return card
    return card.split("\n---\n", 1)[-1].lstrip()


def _inline_pictures(card: str, folder: Path) -> str:
    """The card with its picture files inside it: an artifact has no files beside it."""
    for picture in sorted(folder.glob("*.png")):
        data = base64.b64encode(picture.read_bytes()).decode()
        card = card.replace(f"]({picture.name})", f"](data:image/png;base64,{data})")
    return card
