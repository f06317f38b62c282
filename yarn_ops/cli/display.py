"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from yarn_ops.errors import ExportError
from yarn_ops.evals.names import LAST_QUARTER, RECALL
from yarn_ops.evals.report.verdict import as_text
from yarn_ops.progress import PlainConsole
from yarn_ops.shown import counted, duration, size

if TYPE_CHECKING:
    from yarn_ops.catalogue import ModelVersion
    from yarn_ops.cli.doctor import Finding
    from yarn_ops.cli.security import Door
    from yarn_ops.recipe import Recipe
    from yarn_ops.registry import RunSummary, RunView
    from yarn_ops.registry.views import ApprovalView
    from yarn_ops.scores import Scorecard
    from yarn_ops.upkeep import Garbage

CONSOLE = PlainConsole(highlight=False, soft_wrap=True, markup=False, emoji=False)  # names are not markup
ARROW = " → "
SHOWN_TASKS = (LAST_QUARTER, *RECALL)


def show_recipe(recipe: Recipe, *, as_json: bool) -> None:
    """A recipe with every default written out, as TOML that is the same recipe, and its digest."""
    values = recipe.model_dump(mode="json")
    if as_json:
        _print_json({"digest": recipe.digest(), **values})
        return
    for name, section in values.items():
        CONSOLE.print(f"[{name}]", style="bold")
        for key, value in section.items():
            CONSOLE.print(f"# {key} is not set" if value is None else f"{key} = {_toml(value)}")
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
    rows = [["run", "name", "kind", "status", "took", "release"]]
    for run in runs:
        took = "" if run.finished_at is None else duration((run.finished_at - run.started_at).total_seconds())
        release = "" if run.release is None else f"{run.release.name} {run.release.version}"
        rows.append([run.id, run.name or "", run.kind, _status(run), took, release])
    print_table(rows, shortened=("name", "status", "release"))


def _status(run: RunSummary) -> str:
    """Of a run that goes on, at what, and where that has a device to itself or waits for it."""
    told = []
    for stage in run.at_work if run.status == "running" else ():
        where = "" if stage.device is None else f" {'waits for' if stage.waits else 'on'} {stage.device}"
        told.append(f"{stage.stage}{where}")
    return f"{run.status}: {', '.join(told)}" if told else run.outcome


def show_run(run: RunView, *, as_json: bool = False, language: str = "en") -> None:
    """One run: stages, scores before and after, verdict, release."""
    if as_json:
        _print_json(run.model_dump(mode="json"))
        return
    attempts = f", attempt {run.attempts}" if run.attempts > 1 else ""
    called = f"{run.kind} {run.name}" if run.name else run.kind
    CONSOLE.print(f"run {run.id}, {called}: {run.outcome}{attempts}", style="bold")
    if run.reason:
        CONSOLE.print(run.reason)
    base, rope = run.recipe.get("base", {}), run.recipe.get("rope", {})
    CONSOLE.print(f"{base.get('model')}, {rope.get('method')}", style="dim")
    print_table(_stage_rows(run))
    if run.records("compare"):
        show_comparison(run)
    elif fits := run.records("fit"):
        from yarn_ops.rope.table import fit_section
        from yarn_ops.scores import Fit

        CONSOLE.print("\n".join(fit_section(Fit.model_validate(fits[-1]))))
    elif cards := _cards(run):
        print_table(_score_rows(cards))
    _show_costs(run)
    _show_outcome(run, language)


def _show_costs(run: RunView) -> None:
    """What each stage cost, and what was planned beside what it came to."""
    from yarn_ops.registry import costs  # SQLAlchemy

    for rows in (costs.stage_table(run), costs.plan_table(run)):
        if rows:
            print_table(rows)


def _cards(run: RunView) -> list[Scorecard]:
    from yarn_ops.registry.views import cards_of  # SQLAlchemy

    return cards_of(run)


def _stage_rows(run: RunView) -> Iterator[Sequence[str]]:
    from yarn_ops.registry.views import stage_names  # SQLAlchemy

    yield "stage", "how", "took", "bytes", "digest"
    for stage, name in zip(run.stages, stage_names(run), strict=True):
        how = stage.status if stage.reused is None else ("reused" if stage.reused else "computed")
        took = "" if stage.seconds is None else duration(stage.seconds)
        tree = (stage.record or {}).get("tree")
        kept = (size(tree["size_bytes"]), tree["digest"][:12]) if tree else ("", "")
        yield name, how, took, *kept


def _score_rows(cards: Sequence[Scorecard]) -> Iterator[Sequence[str]]:
    """Before and after at every length: perplexity, recall in each template."""
    tasks = [task for task in SHOWN_TASKS if any(card.by_length(task) for card in cards)]
    lengths = sorted(
        {score.context_tokens for card in cards for task in tasks for score in card.by_length(task)}
    )
    moments = ARROW.join(("before", "after")[: len(cards)])
    yield "\ntokens", *(f"{_title(task)}\n{moments}" for task in tasks)
    for length, *cells in zip(lengths, *(_comparison(cards, task, lengths) for task in tasks), strict=True):
        yield f"{length:,} ({length / cards[0].original_context_tokens:g}×)", *cells


def _comparison(cards: Sequence[Scorecard], task: str, lengths: Sequence[int]) -> list[str]:
    """A task's values before and after, one cell a length, aligned."""
    values = [[card.value(task, length) for card in cards] for length in lengths]
    rows = [["" if value is None else f"{value:.2f}" for value in row] for row in values]
    width = max(len(value) for row in rows for value in row)
    return [ARROW.join(value.rjust(width) for value in row) for row in rows]


def _title(task: str) -> str:
    return "perplexity" if task.startswith("perplexity") else task.replace("recall/", "recall ")


def _documents(run: RunView) -> Iterator[str]:
    """How many documents and tokens were prepared, and what was left out."""
    from yarn_ops.data.audit import in_words
    from yarn_ops.records import Dropped

    for shards in run.records("shards"):
        sides = [
            f"{shards[f'{side}_documents']:,} {words} ({counted(shards[f'{side}_tokens'], 'token')})"
            for side, words in (("train", "to train on"), ("held_out", "held out"))
        ]
        left_out = in_words(Dropped.model_validate(shards["dropped"]))
        yield f"documents: {', '.join(sides)}; left out: {left_out}"


def _show_outcome(run: RunView, language: str) -> None:
    for line in _documents(run):
        CONSOLE.print(line)
    for stage in run.stages:
        if stage.stage not in ("leg-gate", "gate") or stage.record is None:
            continue
        verdict = stage.record
        CONSOLE.print(
            f"{stage.stage.replace('-', ' ')}: {'passed' if verdict['passed'] else 'failed'}",
            style="green" if verdict["passed"] else "red",
        )
        for check in verdict["checks"]:
            CONSOLE.print(f"  {'✓' if check['passed'] else '✗'} {check['reason']}")
    for report in run.records("report"):
        for picture in report["pictures"] if report.get("tree") else ():
            CONSOLE.print(f"picture: {report['tree']['uri'].removeprefix('file://')}/{picture}")
    for line in _reach(_cards(run)) if not run.verdict_card else ():
        CONSOLE.print(line)
    if run.release is not None:
        alias = f", alias {run.release.alias}" if run.release.alias else ""
        CONSOLE.print(f"release: {run.release.name} version {run.release.version}{alias}", style="bold")
    if run.approval is not None:
        CONSOLE.print(_approval(run.id, run.approval))
    show_verdict(run.verdict_card, language)


def _approval(run: str, approval: ApprovalView) -> str:
    """Who decided what, when and why; or how to decide."""
    if approval.decided_at is None:
        return f"waits for approval: yarn-ops approve {run} [--reject] [--note TEXT]"
    why = f": {approval.note}" if approval.note else ""
    return f"{approval.decision} by {approval.person}, {approval.decided_at:%Y-%m-%d %H:%M} UTC{why}"


def show_verdict(rows: Sequence[tuple[str, str]], language: str = "en") -> None:
    """The verdict card of an extension."""
    for number, line in enumerate(as_text(rows, min(CONSOLE.width, 100), language)):
        CONSOLE.print(line, style="bold" if number == 0 else None)


def _reach(cards: Sequence[Scorecard]) -> Iterator[str]:
    """How far base and result see and use, where a suite was run."""
    for name, card in zip(("base", "result"), cards, strict=False):
        reached = [score for score in card.scores if score.task.startswith("capacity/")]
        told = [
            f"{score.task.removeprefix('capacity/')} {score.value:,.0f} tokens "
            f"[{score.low:,.0f}, {score.high:,.0f}]"
            for score in reached
        ]
        if told:
            yield f"{name}: {', '.join(told)}"


def show_comparison(run: RunView) -> None:
    """The table of a comparison's run, its winner, its picture."""
    from yarn_ops.scores import Comparison

    comparison = Comparison.model_validate(run.records("compare")[0])
    first = comparison.contenders[0].scores
    lengths = sorted({score.context_tokens for task in SHOWN_TASKS for score in first.by_length(task)})
    CONSOLE.print(f"at {' / '.join(f'{length:,}' for length in lengths)} tokens", style="dim")
    rows = [["method", "arm", "perplexity", "code pairs", "prose pairs", ""]]
    for contender in comparison.contenders:
        curves = ([score.value for score in contender.scores.by_length(task)] for task in SHOWN_TASKS)
        perplexity, *recalls = curves
        shown = [" ".join(f"{value:.{1 if value < 99.95 else 0}f}" for value in perplexity)]
        shown += [
            " ".join("1.0" if one > 0.995 else f"{one:.2f}"[1:] for one in recall) for recall in recalls
        ]
        rows.append([contender.method, contender.arm, *shown, "✓" if contender.verdict.passed else "✗"])
    print_table(rows, shortened=("arm",))
    CONSOLE.print(f"✓ passed the gate; winner: {comparison.winner or 'none'}", style="bold")
    assert comparison.tree is not None
    for picture in comparison.pictures:
        CONSOLE.print(f"picture: {comparison.tree.uri.removeprefix('file://')}/{picture}")


def show_models(versions: Sequence[ModelVersion], *, as_json: bool) -> None:
    """One line a model version."""
    if as_json:
        _print_json([{**vars(version), "created_at": version.created_at.isoformat()} for version in versions])
        return
    if not versions:
        CONSOLE.print("no model version matches")
        return
    rows = [["model", "version", "aliases", "gate", "context", "method", "factor", "base"]]
    for version in versions:
        tags = (
            version.tags.get(tag, "") for tag in ("gate", "context_length", "rope_method", "factor", "base")
        )
        rows.append([version.name, str(version.version), " ".join(version.aliases), *tags])
    print_table(rows, shortened=("base",))


def show_findings(findings: Sequence[Finding], *, as_json: bool) -> None:
    """One line a dependency, the remedy below what is wrong."""
    if as_json:
        _print_json([vars(finding) for finding in findings])
        return
    for finding in findings:
        mark, colour = ("✓", "green") if finding.healthy else ("✗", "red")
        CONSOLE.print(mark, style=colour, end=" ")
        CONSOLE.print(f"{finding.name:<16} {finding.found}")
        if finding.remedy:
            CONSOLE.print(f"    → {finding.remedy}")


def show_doors(doors: Sequence[Door], *, as_json: bool) -> None:
    """One line a port."""
    if as_json:
        _print_json([vars(door) for door in doors])
        return
    rows = [("", "process", "address", "what it is", "password", "foreign Host", "foreign Origin")]
    for door in doors:
        facts = (door.what, door.password, door.foreign_host, door.foreign_origin)
        rows.append(("✓" if door.closed else "✗", door.process, f"{door.address}:{door.port}", *facts))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        CONSOLE.print("  ".join(cells).rstrip())


def show_garbage(found: Sequence[Garbage], *, removed: bool, as_json: bool) -> None:
    """One line a thing, and how much it is in all."""
    total = sum(one.size_bytes for one in found)
    if as_json:
        things = [{"kind": one.kind, "name": one.name, "size_bytes": one.size_bytes} for one in found]
        _print_json({"removed": removed, "size_bytes": total, "found": things})
        return
    if found:
        rows = [(one.kind, one.name, size(one.size_bytes), f"{one.modified:%Y-%m-%d %H:%M}") for one in found]
        print_table([("kind", "name", "bytes", "last written"), *rows], shortened=("name",))
    CONSOLE.print(f"{'removed' if removed else 'to remove'}: {counted(len(found), 'thing')}, {size(total)}")


def print_table(
    rows: Iterable[Sequence[str]], *, shortened: Collection[str] = (), numbers: Collection[str] = ()
) -> None:
    """A table: its heads, then its rows. shortened: columns that give way where the terminal is narrow;
    numbers: columns that stand to the right."""
    heads, *lines = rows
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head, *cells in zip(heads, *lines, strict=True):
        gives_way = head in shortened
        least = min(8, max(map(len, (head, *cells)))) if gives_way else None
        table.add_column(
            head, justify="right" if head in numbers else "left", overflow="fold", no_wrap=not gives_way,
            min_width=least,
        )  # fmt: skip
    for line in lines:
        table.add_row(*line)
    CONSOLE.print(table, soft_wrap=False)


@contextmanager
def writing_picture(path: Path) -> Iterator[None]:
    """ExportError where a picture that the block draws cannot be written."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: the picture cannot be written ({error}); give a FILE.png") from None


def _toml(value: Any) -> str:
    """A JSON value as TOML has it; what is None is left out."""
    if isinstance(value, dict):
        pairs = [f"{_toml_key(key)} = {_toml(item)}" for key, item in value.items() if item is not None]
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    text = json.dumps(value, ensure_ascii=False)
    return "".join(sign if sign.isprintable() else f"\\U{ord(sign):08x}" for sign in text)


def _toml_key(key: str) -> str:
    return key if key.isascii() and key.isidentifier() else _toml(key)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, sort_keys=True))
