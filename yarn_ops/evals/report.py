"""The stage: pictures and model card of an extension."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from yarn_ops.evals import pictures
from yarn_ops.evals.capacity.page import PAGE, PICTURE, write_report
from yarn_ops.evals.capacity.reading import capacity_of
from yarn_ops.evals.card import Extension, model_card
from yarn_ops.records import Report

CARD = "README.md"


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
    write_report(
        [
            capacity_of(extension.after, extension.name, extension.checkpoint.context_tokens),
            capacity_of(extension.before, "base", extension.base.context_tokens),
        ],
        out,
    )
    (out / CARD).write_text(model_card(extension), "utf-8")
    inputs = (
        extension.base, extension.shards, extension.patched, extension.adapter, extension.checkpoint,
        extension.before, extension.after, extension.verdict,
    )  # fmt: skip
    return Report(
        parents=tuple(record.digest for record in inputs),
        pictures=(PICTURE, "overview.png", "perplexity.png", "recall.png", "training-loss.png"),
        pages=(PAGE,),
    )
