"""The stage: pictures and model card of an extension."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import starmap
from pathlib import Path

from yarn_ops.evals import pictures
from yarn_ops.evals.capacity.page import PAGE, PICTURE, write_report
from yarn_ops.evals.capacity.reading import Capacity, capacity_of, read_capacity
from yarn_ops.evals.card import Extension, model_card
from yarn_ops.records import CARD, Local, Report, Scorecard

SUMMARY = "capacity.md"


def report(extension: Extension, losses: Sequence[tuple[int, float]], out: Path) -> Report:
    """Write the model card and its pictures into `out`.

    losses: (optimizer step, loss in nats a token) of the training, in order.
    """
    comparison = pictures.Comparison(
        before=extension.before,
        after=extension.after,
        original_context_tokens=extension.patched.original_context_tokens,
        target_context_tokens=extension.patched.target_context_tokens,
    )
    out.mkdir(parents=True, exist_ok=True)
    pictures.draw_overview(comparison, out / "overview.png")
    pictures.draw_perplexity(comparison, out / "perplexity.png")
    pictures.draw_recall(comparison, out / "recall.png")
    pictures.draw_training_loss(losses, out / "training-loss.png")
    capacity = capacity_report(extension.capacities, out)
    (out / CARD).write_text(model_card(extension), "utf-8")
    inputs = (
        extension.base, extension.shards, extension.patched, extension.adapter, extension.checkpoint,
        extension.before, extension.after, extension.verdict,
    )  # fmt: skip
    return Report(
        parents=tuple(record.digest for record in inputs),
        pictures=(*capacity.pictures, "overview.png", "perplexity.png", "recall.png", "training-loss.png"),
        pages=capacity.pages,
    )


def capacities(
    names: Sequence[str],
    cards: Sequence[Scorecard],
    suites: Sequence[Local[Scorecard]],
    context_tokens: Sequence[int],
) -> tuple[Capacity, ...]:
    """Of models, as their suites found it; without suites as far as their scorecards tell."""
    if suites:
        return tuple(read_capacity(suite.path, name) for name, suite in zip(names, suites, strict=True))
    return tuple(starmap(capacity_of, zip(cards, names, context_tokens, strict=True)))


def capacity_report(models: Sequence[Capacity], out: Path) -> Report:
    """Write page, picture and a summary in a few lines into `out`. models: the one under test first."""
    write_report(models, out)
    lines = [f"- **{model.name}** {model.verdict}" for model in models]
    (out / SUMMARY).write_text(
        "\n".join([*lines, "", f"![How far it sees and uses]({PICTURE})", ""]), "utf-8"
    )
    return Report(pictures=(PICTURE,), pages=(PAGE,))
