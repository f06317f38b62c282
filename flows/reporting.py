"""What a run shows at its end: a report artifact in Prefect with tables, pictures and links."""

from __future__ import annotations

import base64
from pathlib import Path

from prefect.artifacts import create_link_artifact, create_markdown_artifact

from flows.workshop import workshop
from yarn_ops.records import Release, Report


def show_report(release: Release, report: Report) -> None:
    """The model card with its pictures as an artifact; a link to the model version where MLflow has a UI."""
    shop = workshop()
    folder = shop.fetch(report).path
    card = _without_front_matter((folder / "README.md").read_text("utf-8"))
    links = _links(shop.settings.mlflow, release)
    create_markdown_artifact(
        links + _inline_pictures(card, folder),
        key="report",
        description=f"{release.name} version {release.version}, gate {release.gate}",
    )
    if links:
        create_link_artifact(
            version_url(shop.settings.mlflow, release),
            key="model-version",
            link_text=f"{release.name} version {release.version} in MLflow",
        )


def version_url(mlflow_uri: str, release: Release) -> str:
    """The model version's page in MLflow's UI."""
    return f"{mlflow_uri}/#/models/{release.name}/versions/{release.version}"


def _links(mlflow_uri: str, release: Release) -> str:
    if not mlflow_uri.startswith("http"):
        return ""
    run = f"{mlflow_uri}/#/runs/{release.mlflow_run_id}"
    return f"[Model version]({version_url(mlflow_uri, release)}) · [MLflow run]({run})\n\n"


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
