"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from yarn_ops.cli.doctor import Finding
    from yarn_ops.recipe import Recipe
    from yarn_ops.registry import RunSummary, RunView
    from yarn_ops.release import ModelVersion

CONSOLE = Console(highlight=False, soft_wrap=True)
SHOWN_TASKS = ("perplexity/last-quarter", "recall/code", "recall/prose")


def show_recipe(recipe: Recipe, *, as_json: bool) -> None:
    """A recipe with every default written out, and its digest."""
    values = recipe.model_dump(mode="json")
    if as_json:
        _print_json({"digest": recipe.digest(), **values})
        return
    for name, section in values.items():
        CONSOLE.print(f"\\[{name}]", style="bold")
        for key, value in section.items():
            CONSOLE.print(
                f"{key} = {json.dumps(value)}" if value is not None else f"# {key} is not set", markup=False
            )
        CONSOLE.print()
    CONSOLE.print(f"# digest {recipe.digest()}")


def show_runs(runs: Sequence[RunSummary], *, as_json: bool) -> None:
    """One line a run."""
    if as_json:
        _print_json([run.model_dump(mode="json") for run in runs])
        return
    if not runs:
        CONSOLE.print("no runs yet; `yarn-ops extend RECIPE` makes one")
        return
    table = _table("run", "status", "started (UTC)", "took", "base", "method", "release")
    for run in runs:
        took = (
            "" if run.finished_at is None else _duration((run.finished_at - run.started_at).total_seconds())
        )
        release = "" if run.release is None else f"{run.release.name} {run.release.version}"
        table.add_row(
            run.id, run.status, f"{run.started_at:%Y-%m-%d %H:%M}", took, run.recipe["base"]["model"],
            run.recipe["rope"]["method"], release,
        )  # fmt: skip
    CONSOLE.print(table)


def show_run(run: RunView, *, as_json: bool = False) -> None:
    """One run: stages, scores before and after, verdict, release."""
    if as_json:
        _print_json(run.model_dump(mode="json"))
        return
    attempts = f", attempt {run.attempts}" if run.attempts > 1 else ""
    CONSOLE.print(
        f"run {run.id}: {run.status}{attempts}" + (f" ({run.reason})" if run.reason else ""), style="bold"
    )
    CONSOLE.print(_stage_table(run))
    if run.scores:
        CONSOLE.print(score_table(run))
    _show_outcome(run)


def _stage_table(run: RunView) -> Table:
    table = _table("stage", "how", "took", "bytes", "digest")
    for stage in run.stages:
        how = stage.status if stage.reused is None else ("reused" if stage.reused else "computed")
        tree = (stage.record or {}).get("tree")
        table.add_row(
            stage.stage,
            how,
            "" if stage.seconds is None else _duration(stage.seconds),
            _size(tree["size_bytes"]) if tree else "",
            tree["digest"][:12] if tree else "",
        )
    return table


def score_table(run: RunView) -> Table:
    """Before and after at every length: perplexity, recall in each template."""
    cards = [stage.record for stage in run.stages if stage.stage == "evaluate" and stage.record]
    table = _table(
        "tokens", *(f"{_title(task)} {when}" for task in _tasks(cards) for when in ("before", "after"))
    )
    original = cards[0]["original_context_tokens"] if cards else 0
    lengths = sorted(
        {
            score["context_tokens"]
            for card in cards
            for score in card["scores"]
            if score["task"] in SHOWN_TASKS
        }
    )
    for length in lengths:
        cells = [_cell(card, task, length) for task in _tasks(cards) for card in cards]
        table.add_row(f"{length:,} ({length / original:g}×)", *cells)
    return table


def _tasks(cards: Iterable[dict[str, Any]]) -> list[str]:
    measured = {score["task"] for card in cards for score in card["scores"]}
    return [task for task in SHOWN_TASKS if task in measured]


def _cell(card: dict[str, Any], task: str, length: int) -> str:
    for score in card["scores"]:
        if (score["task"], score["context_tokens"], score["depth"]) == (task, length, None):
            return f"{score['value']:.2f}"
    return ""


def _title(task: str) -> str:
    return "perplexity" if task.startswith("perplexity") else task.replace("recall/", "recall ")


def _show_outcome(run: RunView) -> None:
    verdicts = [stage.record for stage in run.stages if stage.stage == "gate" and stage.record]
    for verdict in verdicts:
        CONSOLE.print(
            f"gate: {'passed' if verdict['passed'] else 'failed'}",
            style="green" if verdict["passed"] else "red",
        )
        for check in verdict["checks"]:
            CONSOLE.print(f"  {'✓' if check['passed'] else '✗'} {check['reason']}", markup=False)
    for stage in run.stages:
        record = stage.record or {}
        if stage.stage == "report" and record.get("tree"):
            folder = record["tree"]["uri"].removeprefix("file://")
            for picture in record["pictures"]:
                CONSOLE.print(f"picture: {folder}/{picture}", markup=False)
    if run.release is not None:
        alias = f", alias {run.release.alias}" if run.release.alias else ""
        CONSOLE.print(f"release: {run.release.name} version {run.release.version}{alias}", style="bold")


def show_models(versions: Sequence[ModelVersion], *, as_json: bool) -> None:
    """One line a model version."""
    if as_json:
        _print_json([{**vars(version), "created_at": version.created_at.isoformat()} for version in versions])
        return
    if not versions:
        CONSOLE.print("no model version matches")
        return
    table = _table("model", "version", "aliases", "gate", "context", "method", "factor", "base")
    for version in versions:
        tag = version.tags.get
        table.add_row(
            version.name, str(version.version), " ".join(version.aliases), tag("gate", ""), tag("context_length", ""),
            tag("rope_method", ""), tag("factor", ""), tag("base", ""),
        )  # fmt: skip
    CONSOLE.print(table)


def show_findings(findings: Sequence[Finding], *, as_json: bool) -> None:
    """One line a dependency, the remedy below what is wrong."""
    if as_json:
        _print_json([vars(finding) for finding in findings])
        return
    for finding in findings:
        mark = "[green]✓[/green]" if finding.healthy else "[red]✗[/red]"
        CONSOLE.print(f"{mark} {finding.name:<16}", end=" ")
        CONSOLE.print(finding.found, markup=False)
        if finding.remedy:
            CONSOLE.print(f"    → {finding.remedy}", markup=False)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column)
    return table


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, sort_keys=True))


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"
