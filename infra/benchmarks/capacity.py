"""How far a base sees and uses, before and after zero-shot YaRN: the suite's core cells, on one GPU.

    python infra/benchmarks/capacity.py BASE OUT [--documents GLOB] [--factor 4] [--texts 12]

BASE: a model directory. Prints one table and writes OUT/scores.json; a second run goes on in OUT/cells.jsonl.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bare import Clock, quiet

from yarn_ops.checkpoints import inspect_checkpoint, read_config
from yarn_ops.data.files import LocalFiles
from yarn_ops.evals.capacity.reach import Length, reach_of
from yarn_ops.evals.intervals import wilson
from yarn_ops.evals.suite.haystack import STANDARD_LIBRARY, read_haystack
from yarn_ops.evals.suite.journal import JsonLines
from yarn_ops.evals.suite.plan import Plan, Size, lengths_to, needed_tokens, plan
from yarn_ops.evals.suite.run import Measured, run_suite
from yarn_ops.evals.suite.subject import Subject, open_subject
from yarn_ops.recipe import Rope
from yarn_ops.records import Local, Score
from yarn_ops.rope.patch import patch
from yarn_ops.train.precision import resolve_device, resolve_dtype

TASKS = ("context", "perplexity", "needle/code", "needle/prose")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("base", type=Path)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--documents", action="append")
    arguments.add_argument("--factor", type=float, default=4.0)
    arguments.add_argument("--texts", type=int, default=12)
    asked = arguments.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    clock = Clock()
    size = Size(parts=8, texts=asked.texts, windows=12, ruler_samples=0, tasks=TASKS)
    base = open_subject(asked.base)
    with tempfile.TemporaryDirectory() as folder:
        record = Local(inspect_checkpoint(asked.base, source=asked.base.name), asked.base)
        patch(Rope(method="yarn", factor=asked.factor), record, Path(folder), factor=asked.factor)
        config = read_config(Path(folder))
    extended = open_subject(asked.base, name=f"{asked.base.name} + yarn ×{asked.factor:g}", config=config)
    lengths = lengths_to(extended.context_tokens)
    haystack = read_haystack(
        asked.documents or STANDARD_LIBRARY, LocalFiles(), base.path, base.vocab_size,
        encode=base.encode, tokens=needed_tokens(size, lengths[-1]),
    )  # fmt: skip
    print(f"documents: {len(haystack.ids):,} tokens, read after {clock}")
    cells = plan(size, lengths, haystack, seed=0)
    kept: dict[str, list[dict[str, object]]] = {}
    for subject in (base, extended):
        began = time.perf_counter()
        measured = measure(subject, cells, asked.out)
        seconds = time.perf_counter() - began
        kept[subject.name] = [score.model_dump(mode="json") for score in measured.scores]
        show(subject.name, measured, lengths, seconds)
    (asked.out / "scores.json").write_text(json.dumps(kept, indent=1))
    print(f"all: {clock}")


def measure(subject: Subject, cells: Plan, out: Path) -> Measured:
    device = resolve_device("auto")
    precision = resolve_dtype("auto", device)
    return run_suite(
        cells,
        lambda: subject.load(device, precision),
        subject.spec,
        checkpoint_digest=subject.digest(),
        precision=precision,
        journal=JsonLines(out / "cells.jsonl"),
        report=quiet,
    )


def show(name: str, measured: Measured, lengths: Sequence[int], seconds: float) -> None:
    scores = measured.scores
    reach = reach_of(scores)
    task = reach.task or "needle/code"
    print(f"\n{name}: {seconds:.0f} s, {measured.read_tokens:,} tokens through the shared reader")
    print(f"{'tokens':>7} {'perplexity':>10} {'same targets':>12} {task:>12}  by part, farthest first")
    for length in lengths:
        parts = [score.value for score in scores if of(score, task, length) and score.depth is not None]
        print(
            f"{length:>7} {value(scores, 'perplexity/last-quarter', length):>10.2f} "
            f"{value(scores, 'loss/same-targets', length):>12.3f} {value(scores, task, length):>12.3f}  "
            + " ".join(f"{part:.2f}" for part in parts)
        )
    print(f"sees to {shown(reach.sees)}; uses to {shown(reach.uses)}; by length {shown(reach.by_length)}")
    far = [
        score
        for score in scores
        if of(score, task, lengths[-1]) and score.depth is not None and score.depth < 0.25
    ]
    hits, asked = sum(round(score.value * score.samples) for score in far), sum(s.samples for s in far)
    low, high = wilson(hits, asked)
    print(f"farthest quarter of {lengths[-1]}: {hits / asked:.2f} [{low:.2f}, {high:.2f}] of {asked}")
    for fault, reason in measured.skipped.items():
        print(f"not measured: {fault}: {reason}")


def of(score: Score, task: str, length: int) -> bool:
    return (score.task, score.context_tokens) == (task, length)


def value(scores: Sequence[Score], task: str, length: int) -> float:
    return next(s.value for s in scores if of(s, task, length) and s.depth is None)


def shown(length: Length | None) -> str:
    return "?" if length is None else f"{length.tokens:,} [{length.low:,}, {length.high:,}]"


main()
