"""`yarn-ops compare-releases`: released versions side by side, by cells that all were measured by."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from yarn_ops.catalogue import ModelVersion
from yarn_ops.cli.display import CONSOLE, print_table
from yarn_ops.errors import RegistryError, ReleaseError
from yarn_ops.evals.gate import with_capacity
from yarn_ops.evals.names import LAST_QUARTER, NEEDLES, RECALL, SEES, USES
from yarn_ops.evals.report import releases as beside
from yarn_ops.evals.report.releases import ReleaseComparison, ReleaseFacts
from yarn_ops.records import Checkpoint
from yarn_ops.registry import Registry
from yarn_ops.registry.costs import total
from yarn_ops.registry.measurements import scores_by_cell
from yarn_ops.registry.views import cards_of
from yarn_ops.release import Tracking

SHOWN = (LAST_QUARTER, *RECALL, *NEEDLES)
COLUMNS = 4
"""releases beside one another in a terminal of 80 columns"""


def compare(
    references: Sequence[str], tracking: Tracking, registry: Registry, out: Path | None, *, as_json: bool
) -> None:
    """Show the named releases side by side; write page and picture into `out` if given.

    ReleaseError, EvaluationError before anything is written: a name that is none, fewer than two, or no cell
    that all were measured by.
    """
    versions = [_find(tracking, reference) for reference in references]
    if len({(one.name, one.version) for one in versions}) < max(2, len(versions)):
        raise ReleaseError(f"{', '.join(references)}: name two released versions or more, each once")
    known = [_facts(registry, version) for version in versions]
    scores = [scores_by_cell(registry, digest) for _, digest in known]
    found = beside.compare_cells([facts for facts, _ in known], scores)
    page = None if out is None else beside.write(found, out)
    if as_json:
        print(json.dumps(beside.as_json(found), indent=1))
    else:
        _show(found, page)


def _find(tracking: Tracking, reference: str) -> ModelVersion:
    """The version that was named, of any gate; ReleaseError when there is none."""
    match = re.fullmatch(r"([^@:]+)(?:@([^@:]+)|:(\d{1,9}))?", reference)
    if match is None:
        raise ReleaseError(f"{reference}: is no release; write NAME, NAME@ALIAS or NAME:VERSION")
    name, alias, number = match.groups()
    return tracking.find(name, alias=alias, version=int(number) if number else None, include_rejected=True)


def _facts(registry: Registry, version: ModelVersion) -> tuple[ReleaseFacts, str]:
    """What the registry knows of a version, and the digest of its checkpoint."""
    what, run_id = f"{version.name}:{version.version}", version.tags.get("run", "")
    try:
        run = registry.run_view(run_id)
    except RegistryError:
        raise ReleaseError(
            f"{what}: its run {run_id} is not in registry {registry.name}; use the registry that made it, or "
            "`yarn-ops db rebuild`"
        ) from None
    cards = cards_of(run)
    if len(cards) < 2:
        raise ReleaseError(f"{what}: the registry has no scores of it; run its recipe again")
    card = with_capacity(cards[-1])
    reached = {task: next(iter(card.by_length(task)[-1:]), None) for task in (SEES, USES)}
    legs, made = run.records("train"), Checkpoint.model_validate(run.records("merge")[-1])
    spent = total(run.costs) if run.costs else None
    facts = ReleaseFacts(
        name=version.name, version=version.version, aliases=version.aliases,
        gate=version.tags.get("gate", ""), run=run.id, method=made.method,
        factor=made.factor, trained=legs[-1]["method"] if legs else "",
        steps=sum(leg["steps"] for leg in legs), tokens_seen=sum(leg["tokens_seen"] for leg in legs),
        sees=reached[SEES], uses=reached[USES], seconds=spent.seconds if spent else None,
        device_s=spent.device_s if spent else None, dollars=spent.dollars if spent else None,
    )  # fmt: skip
    return facts, card.model_digest


def _show(found: ReleaseComparison, page: Path | None) -> None:
    """What each is; perplexity and found answers by length."""
    facts, shown = beside.facts_table(found), beside.cell_table(found, SHOWN)
    ends = range(1, len(facts[0]), COLUMNS)
    parts = [[[row[0], *row[at : at + COLUMNS]] for row in facts] for at in ends]
    for lines in (*parts, shown if len(shown) > 1 else beside.cell_table(found)):
        print_table(lines, shortened=lines[0])
        CONSOLE.print()
    CONSOLE.print(f"{beside.NOTE} {beside.told_left_out(found)}", style="dim", soft_wrap=False)
    if page is not None:
        CONSOLE.print(f"page: {page}")
