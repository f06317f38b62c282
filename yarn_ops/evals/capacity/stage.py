"""The stage: a model measured by a suite on held-out documents, by one process or by several."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from yarn_ops.data.tokenizer import Tokenizer
from yarn_ops.data.windows import ShardReader
from yarn_ops.evals.capacity.measure import measure, share
from yarn_ops.evals.capacity.reach import capacity_scores
from yarn_ops.evals.capacity.reading import write_capacity
from yarn_ops.evals.evaluate import Progress
from yarn_ops.evals.suite.haystack import held_out_haystack
from yarn_ops.evals.suite.journal import Journal
from yarn_ops.evals.suite.plan import SIZES, Plan, lengths_to, needed_tokens, plan
from yarn_ops.evals.suite.subject import Subject, open_subject
from yarn_ops.recipe import SuiteName
from yarn_ops.records import BaseModel, Checkpoint, Local, Scorecard, ShardSet


def measure_capacity(
    suite: SuiteName,
    seed: int,
    model: Local[BaseModel] | Local[Checkpoint],
    shards: Local[ShardSet],
    longest_tokens: int,
    out: Path,
    *,
    original_context_tokens: int,
    device: str,
    precision: Literal["fp32", "bf16"],
    journal: Journal,
    report: Progress,
) -> Scorecard:
    """Every score of the suite up to `longest_tokens`, with `capacity/sees` and `capacity/uses`.

    All that was found (attention, costs, what was left out) goes into `out`. DataError when the held-out
    text cannot fill the longest length, before the model is loaded.
    """
    subject, cells = _planned(suite, seed, model, shards, longest_tokens, original_context_tokens)
    capacity = measure(subject, cells, device=device, precision=precision, journal=journal, report=report)
    write_capacity(capacity, out)
    card = Scorecard(
        parents=(model.record.digest, shards.record.digest),
        model_digest=model.record.digest,
        original_context_tokens=original_context_tokens,
        scores=capacity.scores,
    )
    return card.model_copy(update={"scores": card.scores + capacity_scores(card)})


def share_cells(
    suite: SuiteName,
    seed: int,
    model: Local[BaseModel] | Local[Checkpoint],
    shards: Local[ShardSet],
    longest_tokens: int,
    *,
    original_context_tokens: int,
    device: str,
    precision: Literal["fp32", "bf16"],
    journal: Journal,
    report: Progress,
) -> int:
    """Measure for a `measure_capacity` of the same arguments elsewhere, until no block is free; how many."""
    subject, cells = _planned(suite, seed, model, shards, longest_tokens, original_context_tokens)
    return share(subject, cells, device=device, precision=precision, journal=journal, report=report)


def _planned(
    suite: SuiteName,
    seed: int,
    model: Local[BaseModel] | Local[Checkpoint],
    shards: Local[ShardSet],
    longest_tokens: int,
    original_context_tokens: int,
) -> tuple[Subject, Plan]:
    subject = open_subject(model.path)
    size, lengths = SIZES[suite], lengths_to(longest_tokens, original_context_tokens)
    haystack = held_out_haystack(
        ShardReader(shards.path, "held_out"), Tokenizer(model.path, subject.vocab_size),
        encode=subject.encode, decode=subject.tokenizer.decode, tokens=needed_tokens(size, lengths[-1]),
        seed=seed,
    )  # fmt: skip
    return subject, plan(size, lengths, haystack, seed)
