"""A model measured by a plan, cell by cell, and what follows from it: its capacity.

The same for a directory on the command line and for a stage of a flow, alone or shared by several processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from yarn_ops.data.haystack import held_out_haystack
from yarn_ops.data.tokenizer import Tokenizer
from yarn_ops.data.windows import ShardReader
from yarn_ops.digests import digest_of
from yarn_ops.evals import attention
from yarn_ops.evals.capacity import Capacity, write_capacity
from yarn_ops.evals.cells import ModelUnderTest, lengths_to
from yarn_ops.evals.names import NEEDLES, template_of
from yarn_ops.evals.plan import SIZES, CellPlan, needed_tokens, suite_cells
from yarn_ops.evals.reach import Reach, capacity_scores, reach_of
from yarn_ops.evals.run import PlanRun, Worker
from yarn_ops.evals.scorecard import scorecard_cells, scorecard_lengths
from yarn_ops.evals.subject import Subject, open_subject
from yarn_ops.models.checkpoints import tensor_shapes
from yarn_ops.models.costs import costs, dimensions_of
from yarn_ops.models.device import freed_memory
from yarn_ops.models.files import read_config
from yarn_ops.recipe import Evaluate
from yarn_ops.records import BaseModel, Checkpoint, Local, PatchedModel, ShardSet
from yarn_ops.scores import Scorecard


@dataclass(frozen=True)
class EvaluationRequest:
    """What a recipe's evaluation asks of which model."""

    section: Evaluate
    model: Local[BaseModel | Checkpoint]
    shards: Local[ShardSet]
    original_context_tokens: int
    target_context_tokens: int | None = None
    """how far the suite reaches; None without one"""
    patched: Local[PatchedModel] | None = None
    """whose config the weights are read by instead of their own: zero-shot"""

    @property
    def model_digest(self) -> str:
        """Of the model as it is read."""
        digest = self.model.record.digest
        return digest if self.patched is None else digest_of([digest, self.patched.record.digest])

    def plan(self) -> tuple[Subject, CellPlan]:
        """The model's directory and every cell, with their texts; nothing is loaded.

        EvaluationError, DataError when the held-out text or a length cannot serve.
        """
        section, original, target = self.section, self.original_context_tokens, self.target_context_tokens
        config = None if self.patched is None else read_config(self.patched.path)
        subject = open_subject(self.model.path, config=config)
        reader = ShardReader(self.shards.path, "held_out")
        cells = scorecard_cells(
            section, reader, self.shards.record.digest, subject.encode, original, subject.tokenizer.decode,
            target if section.suite != "none" else None,
        )  # fmt: skip
        lengths, haystack = {*scorecard_lengths(section, original)}, None
        if section.suite != "none" and target is not None:
            size, reach = SIZES[section.suite], lengths_to(target, original)
            haystack = held_out_haystack(
                reader, Tokenizer(self.model.path, subject.vocab_size), encode=subject.encode,
                decode=subject.tokenizer.decode, tokens=needed_tokens(size, reach[-1]), seed=section.seed,
            )  # fmt: skip
            haystack = replace(haystack, chat=subject.chat)
            cells += suite_cells(size, reach, haystack, section.seed, beside=cells)
            lengths |= {*reach}
        return subject, CellPlan(tuple(cells), tuple(sorted(lengths)), section.seed, haystack)


def evaluate(asked: EvaluationRequest, out: Path, worker: Worker) -> Scorecard:
    """Measure what the journal does not know of what is asked, and write all that was found into `out`.

    With a suite the card has `capacity/sees` and `capacity/uses`. Errors as in `EvaluationRequest.plan`,
    before the model is loaded.
    """
    subject, plan = asked.plan()
    capacity = measure(subject, plan, asked.model_digest, worker)
    card = capacity.card.model_copy(
        update={
            "parents": (asked.model.record.digest, asked.shards.record.digest),
            "original_context_tokens": asked.original_context_tokens,
        }
    )
    if plan.haystack is not None:
        card = card.model_copy(update={"scores": card.scores + capacity_scores(card)})
    write_capacity(replace(capacity, card=card), out)
    return card


def require_scorecard(
    section: Evaluate, model: Local[BaseModel], shards: Local[ShardSet], original_context_tokens: int
) -> None:
    """EvaluationError where the held-out text is too short for a length of the scorecard, or that for its
    pairs."""
    EvaluationRequest(section, model, shards, original_context_tokens).plan()


def help_evaluate(asked: EvaluationRequest, worker: Worker) -> int:
    """Measure for an `evaluate` of the same elsewhere, until no block is free; how many."""
    subject, plan = asked.plan()
    model = subject.under_test(worker.device, worker.precision)
    return PlanRun(plan, model, asked.model_digest, worker).help()


def measure(
    subject: Subject, plan: CellPlan, model_digest: str, worker: Worker, model: ModelUnderTest | None = None
) -> Capacity:
    """Measure what the journal does not know of the plan's cells; with a suite, look at the attention too.

    model_digest: of the model as it is read. model: left out, the subject's own. EvaluationError when
    no cell can be measured.
    """
    model = model or subject.under_test(worker.device, worker.precision)
    with freed_memory(kept=worker.device == "cpu"):
        measured = PlanRun(plan, model, model_digest, worker).measure()
        card = Scorecard(
            model_digest=model_digest, original_context_tokens=subject.original_context_tokens,
            scores=measured.scores,
        )  # fmt: skip
        reach = reach_of(card)
        looked = _attention(plan, reach)
        seen = PlanRun(looked, model, model_digest, worker).measure().scores if looked.cells else ()
    parameters = sum(math.prod(shape) for shape in tensor_shapes(subject.path).values())
    dimensions = dimensions_of(subject.config, parameters)
    return Capacity(
        name=subject.name,
        card=card,
        context_tokens=subject.context_tokens,
        lengths=plan.lengths,
        skipped=measured.skipped,
        reach=reach,
        dimensions=dimensions,
        costs=costs(dimensions, plan.lengths) if dimensions else (),
        diagnosis=attention.Diagnosis.of(seen),
    )


def _attention(plan: CellPlan, reach: Reach) -> CellPlan:
    """The look at attention, at the longest length that is used; no cell where nothing is, or no grid."""
    used = [length for length in plan.lengths if reach.uses is not None and length <= reach.uses.tokens]
    if plan.haystack is None or reach.task not in NEEDLES or not used:
        return replace(plan, cells=())
    cell = attention.cell(plan.haystack, template_of(reach.task), used[-1], plan.seed)
    return replace(plan, cells=(cell,))
