"""A model measured by a suite, cell by cell, and what follows from it: its capacity.

The same for a directory on the command line and for a stage of a flow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

from yarn_ops.errors import EvaluationError
from yarn_ops.evals.capacity.cost import costs, shape_of
from yarn_ops.evals.capacity.heads import Diagnosis, diagnose
from yarn_ops.evals.capacity.reach import Reach, reach_of
from yarn_ops.evals.capacity.reading import Capacity
from yarn_ops.evals.evaluate import Progress
from yarn_ops.evals.suite import needles
from yarn_ops.evals.suite.journal import Journal
from yarn_ops.evals.suite.plan import Plan
from yarn_ops.evals.suite.reader import SharedReader, open_reader
from yarn_ops.evals.suite.run import help_suite, run_suite
from yarn_ops.evals.suite.subject import Subject
from yarn_ops.models.checkpoints import tensor_shapes

DIAGNOSED_PARTS = 4


def measure(
    subject: Subject,
    cells: Plan,
    *,
    device: str,
    precision: Literal["fp32", "bf16"],
    journal: Journal,
    report: Progress,
) -> Capacity:
    """Measure what the journal does not know of the plan's cells; then look at the model's attention.

    EvaluationError when no cell can be measured.
    """
    digest = subject.digest()

    @cache
    def load() -> Any:
        return subject.load(device, precision)

    measured = run_suite(
        cells, load, subject.spec, checkpoint_digest=digest, precision=precision, journal=journal,
        report=report,
    )  # fmt: skip
    reach = reach_of(measured.scores)
    parameters = sum(math.prod(shape) for shape in tensor_shapes(subject.path).values())
    shape = shape_of(subject.config, parameters)
    return Capacity(
        name=subject.name,
        digest=digest,
        context_tokens=subject.context_tokens,
        original_context_tokens=subject.original_context_tokens,
        lengths=cells.lengths,
        scores=measured.scores,
        skipped=measured.skipped,
        reach=reach,
        shape=shape,
        costs=costs(shape, cells.lengths) if shape else (),
        diagnosis=_diagnosis(cells, load(), subject, reach),
    )


def share(
    subject: Subject,
    cells: Plan,
    *,
    device: str,
    precision: Literal["fp32", "bf16"],
    journal: Journal,
    report: Progress,
) -> int:
    """Measure cells beside others that measure the same, until none is free; how many blocks."""
    return help_suite(
        cells, lambda: subject.load(device, precision), subject.spec, checkpoint_digest=subject.digest(),
        precision=precision, journal=journal, report=report,
    )  # fmt: skip


def require_positions(subjects: Sequence[Subject], longest: int) -> None:
    """EvaluationError for a model that has no positions beyond what it was trained on."""
    for subject in subjects:
        if subject.spec is None and longest > subject.context_tokens:
            raise EvaluationError(
                f"{subject.name}: has no positions beyond {subject.context_tokens} tokens (they are not "
                f"rotary); give --longest {subject.context_tokens}"
            )


def _diagnosis(cells: Plan, model: Any, subject: Subject, reach: Reach) -> Diagnosis | None:
    """At the longest length that is used; None where nothing is, or where attention cannot be looked at."""
    task, uses = reach.task, reach.uses
    usable = [length for length in cells.lengths if uses is not None and length <= uses.tokens]
    reader = open_reader(model, subject.spec) if usable and task else None
    if not isinstance(reader, SharedReader) or task is None or not task.startswith("needle/"):
        return None
    shape = task.removeprefix("needle/")
    samples = needles.grid(shape, cells.haystack, usable[-1], DIAGNOSED_PARTS, 1, cells.seed)
    return diagnose(reader, samples, usable[-1], cells.seed)
