"""The files of a report: pictures, the capacity page and the model card of an extension."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from yarn_ops.evals.capacity import Capacity
from yarn_ops.evals.report import pictures
from yarn_ops.evals.report.card import Extension, model_card
from yarn_ops.evals.report.page import PAGE, PICTURE, write_page
from yarn_ops.evals.report.verdict import GLANCE
from yarn_ops.records import CARD, SUMMARY, Report

GLANCE_DPI = 58
"""725 pixels: MLflow shows pictures as large as they are, and cuts off what does not fit"""


def write_report(extension: Extension, losses: Sequence[tuple[int, float]], out: Path) -> Report:
    """Write the model card and its pictures into `out`.

    losses: (optimizer step, loss in nats a token) of the training, in order.
    """
    scores, target = extension.scores, extension.patched.target_context_tokens
    models = [extension.capacities.after, extension.capacities.before]
    asked = f"{extension.asked}; {date.today()}"
    capacity = write_capacity_report(models, out, extension.trained_kinds, asked)
    pictures.draw_overview(scores, target, out / "overview.png")
    pictures.draw_overview(scores, target, out / GLANCE, dpi=GLANCE_DPI)
    pictures.draw_perplexity(scores, target, out / "perplexity.png")
    pictures.draw_recall(scores, out / "recall.png")
    pictures.draw_training_loss(losses, out / "training-loss.png")
    (out / CARD).write_text(model_card(extension), "utf-8")
    drawn = (GLANCE, "overview.png", "perplexity.png", "recall.png", "training-loss.png")
    return Report(
        pictures=(*capacity.pictures, *drawn),
        pages=capacity.pages,
        verdict=extension.rows,
    )


def write_capacity_report(
    models: Sequence[Capacity], out: Path, trained: Sequence[str] | None = None, asked: str = ""
) -> Report:
    """Write page, picture and a summary in a few lines into `out`, as `write_page` does."""
    write_page(models, out, trained, asked)
    lines = [f"- **{model.name}** {model.verdict}" for model in models]
    (out / SUMMARY).write_text(
        "\n".join([*lines, "", f"![How far it sees and uses]({PICTURE})", ""]), "utf-8"
    )
    return Report(pictures=(PICTURE,), pages=(PAGE,))
