"""The runner: every cell of a plan, from the journal or from the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from yarn_ops.errors import DataError, EvaluationError
from yarn_ops.evals.evaluate import Progress
from yarn_ops.evals.forward import require_known_head
from yarn_ops.evals.suite.journal import CellKey, Journal
from yarn_ops.evals.suite.plan import Plan
from yarn_ops.evals.suite.reader import open_reader
from yarn_ops.records import Score
from yarn_ops.rope.methods import RopeSpec


@dataclass(frozen=True)
class Measured:
    """What a suite found."""

    scores: tuple[Score, ...]
    skipped: dict[str, str]
    """cells that were not measured, `task at length`, with the reason"""
    computed: int
    """cells that this run measured; the others were known"""
    read_tokens: int
    """by the shared reader, with its questions"""


def run_suite(
    plan: Plan,
    load: Callable[[], Any],
    spec: RopeSpec | None,
    *,
    checkpoint_digest: str,
    precision: str,
    journal: Journal,
    report: Progress,
) -> Measured:
    """Measure what the journal does not know yet. The model is loaded when the first cell needs it.

    A cell whose length cannot hold it is left out, with the reason. EvaluationError when none can be
    measured, or the model's figures are not finite.
    """
    protocol = plan.protocol(precision)
    total = sum(cell.weight for cell in plan.cells)
    model: Any = None
    reader: Any = None
    scores: list[Score] = []
    skipped: dict[str, str] = {}
    done = computed = 0
    for cell in plan.cells:
        name = f"{cell.name} at {cell.context_tokens}"
        report(done, total, name)
        key = CellKey(checkpoint_digest, protocol, cell.name, cell.context_tokens, plan.seed)
        found = journal.known(key)
        if found is None:
            if model is None:
                model = load()
                require_known_head(model)
                reader = open_reader(model, spec)
            try:
                found = cell.measure(reader, model)
            except DataError as error:
                skipped[name] = str(error)
                found = ()
            else:
                journal.keep(key, found)
                computed += 1
        scores += found
        done += cell.weight
    report(total, total, "measured")
    if not scores:
        reasons = "; ".join(skipped.values())
        raise EvaluationError(f"no cell of the suite could be measured: {reasons}")
    return Measured(tuple(scores), skipped, computed, reader.read_tokens if reader else 0)
