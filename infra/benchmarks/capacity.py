"""How far a base sees and uses, how far its extension does, and what helps: one table.

    python infra/benchmarks/capacity.py BASE OUT [--extended MODEL | --factor 4] [--documents GLOB]
        [--suite core|quick|full] [--texts 12] [--remedies 16]

BASE: a model directory. The extension is `--extended`, a directory (as pulled from a demo), or the base
itself read zero-shot by YaRN. `--remedies`: documents of the longest length to ask the remedies about, 0 for
none. Prints the table with wall and processor seconds, writes it to OUT/table.md, the page to
OUT/capacity.html and all scores to OUT/scores.json; a second run goes on in OUT/cells.jsonl.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bare import quiet

from yarn_ops.data.files import LocalFiles
from yarn_ops.data.haystack import STANDARD_LIBRARY, read_haystack
from yarn_ops.evals.capacity import Capacity
from yarn_ops.evals.cells import Size, lengths_to
from yarn_ops.evals.intervals import wilson
from yarn_ops.evals.journal import JsonLines
from yarn_ops.evals.measure import measure
from yarn_ops.evals.names import CONTINUATION
from yarn_ops.evals.plan import SIZES, CellPlan, needed_tokens, suite_cells
from yarn_ops.evals.reach import Length
from yarn_ops.evals.report.page import write_page
from yarn_ops.evals.run import Worker
from yarn_ops.evals.subject import Subject, open_subject
from yarn_ops.models.device import resolve_device, resolve_dtype
from yarn_ops.models.files import read_config
from yarn_ops.models.inspection import inspect_checkpoint
from yarn_ops.models.patch import patch
from yarn_ops.recipe import Rope
from yarn_ops.records import Local
from yarn_ops.remedies.compare import Asked, compare
from yarn_ops.remedies.side_by_side import PARTS, Row, part_depth
from yarn_ops.scores import Score

CORE = ("context", "perplexity", "needle/code", "needle/prose")
HEADS = (
    "", "perplexity", "found by quarter, farthest first", "all, 95 %", "sees to", "uses to", "tokens seen",
    "wall s", "CPU s",
)  # fmt: skip
REMEDY_TASK = "recall/code"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("base", type=Path)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--extended", type=Path)
    arguments.add_argument("--factor", type=float, default=4.0)
    arguments.add_argument("--documents", action="append")
    arguments.add_argument("--suite", choices=("core", "quick", "full"), default="core")
    arguments.add_argument("--texts", type=int, default=12)
    arguments.add_argument("--remedies", type=int, default=0)
    asked = arguments.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    core = Size(parts=8, texts=asked.texts, windows=12, ruler_samples=0, tasks=CORE)
    size = core if asked.suite == "core" else SIZES[asked.suite]
    with clock() as all_of_it:
        base, extended = open_subject(asked.base), extension(asked.base, asked.extended, asked.factor)
        lengths = lengths_to(extended.context_tokens)
        documents = asked.documents or STANDARD_LIBRARY
        haystack = read_haystack(
            documents, LocalFiles(), base.path, base.vocab_size, encode=base.encode,
            decode=base.tokenizer.decode, tokens=needed_tokens(size, lengths[-1]),
        )  # fmt: skip
        cells = CellPlan(tuple(suite_cells(size, lengths, haystack, seed=0)), lengths, 0, haystack)
        rows: list[list[str]] = []
        models = []
        for subject in (base, extended):
            with clock() as took:
                models.append(measured(subject, cells, asked.out))
            rows.append([*of_model(models[-1], lengths), *took])
        if asked.remedies:
            with clock() as took:
                found = remedies(asked.base, asked.extended, asked.factor, documents, asked.remedies)
            rows += [[*of_remedy(row), "", ""] for row in found]
            rows.append(["all remedies", *[""] * 6, *took])
    rows.append(["**all**", *[""] * 6, *all_of_it])
    write_page(models[::-1], asked.out)
    scores = {model.name: [s.model_dump(mode="json") for s in model.card.scores] for model in models}
    (asked.out / "scores.json").write_text(json.dumps(scores, indent=1), "utf-8")
    text = "\n".join(f"| {' | '.join(row)} |" for row in (HEADS, ["---"] * len(HEADS), *rows))
    (asked.out / "table.md").write_text(text + "\n", "utf-8")
    print(text)
    for model in models:
        tell_more(model, lengths)


def extension(base: Path, extended: Path | None, factor: float) -> Subject:
    """The trained one, or the base read zero-shot by YaRN."""
    if extended is not None:
        return open_subject(extended)
    with tempfile.TemporaryDirectory() as folder:
        record = Local(inspect_checkpoint(base, source=base.name), base)
        patch(Rope(method="yarn", factor=factor), record, Path(folder), factor=factor)
        config = read_config(Path(folder))
    return open_subject(base, name=f"{base.name} + yarn ×{factor:g}", config=config)


def measured(subject: Subject, cells: CellPlan, out: Path) -> Capacity:
    device = resolve_device("auto")
    worker = Worker(device, resolve_dtype("auto", device), JsonLines(out / "cells.jsonl"), quiet)
    return measure(subject, cells, subject.digest(), worker)


def remedies(
    base: Path, extended: Path | None, factor: float, documents: Sequence[str], count: int
) -> tuple[Row, ...]:
    asked = Asked(
        model=extended or base, name="", base=base if extended else None,
        factor=None if extended else factor, documents=documents, windows=count,
    )  # fmt: skip
    device = resolve_device("auto")
    precision = resolve_dtype("auto", device)
    return compare(asked, LocalFiles(), device=device, precision=precision, progress=quiet).rows


def of_model(model: Capacity, lengths: Sequence[int]) -> list[str]:
    """Perplexity at the longest three lengths; needles at the longest."""
    perplexities = [model.card.score("perplexity/last-quarter", length) for length in lengths[-3:]]
    task, longest = model.reach.task or CORE[2], lengths[-1]
    parts, whole = model.card.by_depth(task, longest), model.card.score(task, longest)
    step = max(1, len(parts) // PARTS)
    quarters = [parts[at : at + step] for at in range(0, len(parts), step)]
    return [
        model.name,
        " / ".join(f"{score.value:.1f}" for score in perplexities if score),
        " ".join(f"{sum(part.value for part in some) / len(some):.2f}" for some in quarters),
        share(whole),
        reached(model.reach.sees),
        reached(model.reach.uses),
        f"{longest:,}",
    ]


def of_remedy(row: Row) -> list[str]:
    perplexity = row.value(CONTINUATION)
    whole = next((s for s in row.scores if (s.task, s.depth) == (REMEDY_TASK, None)), None)
    quarters = [row.value(REMEDY_TASK, part_depth(part)) for part in range(PARTS)]
    return [
        row.remedy,
        "" if perplexity is None else f"{perplexity:.1f}",
        " ".join("" if value is None else f"{value:.2f}" for value in quarters),
        share(whole),
        "",
        "",
        f"{row.seen_tokens:,}",
    ]


def share(score: Score | None) -> str:
    return "" if score is None else f"{score.value:.2f} [{score.low:.2f} {score.high:.2f}]"


def reached(length: Length | None) -> str:
    return "" if length is None else f"{length.tokens:,} [{length.low:,} {length.high:,}]"


def tell_more(model: Capacity, lengths: Sequence[int]) -> None:
    """The farthest quarter in one interval, and the attention's causal check."""
    task, longest = model.reach.task or CORE[2], lengths[-1]
    far = [score for score in model.card.by_depth(task, longest) if (score.depth or 0.0) < 0.25]
    hits, asked = sum(round(score.value * score.samples) for score in far), sum(s.samples for s in far)
    low, high = wilson(hits, asked)
    print(
        f"\n{model.name}: {task}; farthest quarter of {longest:,}: {hits / asked:.2f} "
        f"[{low:.2f}, {high:.2f}] of {asked}; by length {reached(model.reach.by_length)}"
    )
    if heads := model.diagnosis:
        print(
            f"{heads.retrieval_heads} of {heads.all_heads} heads retrieve at {heads.context_tokens:,}; "
            f"recall {heads.recall:.2f}, without the best {heads.silenced} {heads.recall_without}, "
            f"without others {heads.recall_without_others}"
        )
    for fault, reason in model.skipped.items():
        print(f"not measured: {fault}: {reason}")


@contextmanager
def clock() -> Iterator[list[str]]:
    """Wall seconds and this process's processor seconds of the block, filled in at its end."""
    took: list[str] = []
    wall, processor = time.perf_counter(), processor_s()
    yield took
    took += [f"{time.perf_counter() - wall:.0f}", f"{processor_s() - processor:.0f}"]


def processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


main()
