"""`yarn-ops evaluate`: how far any causal language model sees and how far it uses."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from yarn_ops.cli.display import CONSOLE, print_table
from yarn_ops.cli.rope import directory_of
from yarn_ops.data.haystack import STANDARD_LIBRARY, Haystack, read_haystack
from yarn_ops.digests import digest_of
from yarn_ops.errors import EvaluationError
from yarn_ops.evals.capacity import Capacity, interval, tokens
from yarn_ops.evals.cells import lengths_to
from yarn_ops.evals.journal import JsonLines
from yarn_ops.evals.measure import measure
from yarn_ops.evals.names import LAST_QUARTER, SAME_TARGETS
from yarn_ops.evals.plan import SIZES, CellPlan, needed_tokens, suite_cells
from yarn_ops.evals.report.page import write_page
from yarn_ops.evals.run import Worker
from yarn_ops.evals.subject import Subject, open_subject
from yarn_ops.models.device import resolve_device, resolve_dtype
from yarn_ops.progress import ProgressBars
from yarn_ops.recipe import SuiteName
from yarn_ops.registry.measurements import open_measurements
from yarn_ops.services import open_run_registry
from yarn_ops.serving.client import InferenceServer
from yarn_ops.serving.model import ServedModel
from yarn_ops.settings import Settings
from yarn_ops.shown import one_line
from yarn_ops.store import files_for, store_options

SHOWN = (SAME_TARGETS, LAST_QUARTER)


def evaluate(
    settings: Settings,
    model: str,
    suite: SuiteName,
    *,
    base: str | None,
    documents: Sequence[str],
    longest: int | None,
    seed: int,
    out: Path | None,
    url: str | None = None,
    served: str | None = None,
) -> list[Capacity]:
    """Measure `model`, and `base` on the same texts if given; write the report into `out` if given.

    Perplexity is told apart by the globs of `documents`, where there are several. What the registry knows
    already is not measured again; what another such command is measuring, here or elsewhere, is waited for.
    url: of a server that serves `model` (by the name `served`): what it answers is measured, each time anew.
    Errors of user's faults before a model is loaded.
    """
    if served is not None and url is None:
        raise EvaluationError("--served: names a model of a server; give its address by --url")
    subjects = [
        open_subject(directory_of(name, None, only_read=True), name=_name(name))
        for name in (model, base)
        if name
    ]
    size = SIZES[suite]
    lengths = lengths_to(longest or subjects[0].context_tokens, subjects[0].original_context_tokens)
    _require_positions(subjects, lengths[-1])
    files = files_for(store_options(settings))

    def read(patterns: Sequence[str]) -> Haystack:
        subject = subjects[0]
        return read_haystack(
            patterns, files, subject.path, subject.vocab_size, encode=subject.encode,
            decode=subject.tokenizer.decode, tokens=needed_tokens(size, lengths[-1]),
        )  # fmt: skip

    haystack = replace(read(documents or STANDARD_LIBRARY), chat=subjects[0].chat)
    if base and subjects[1].encode(haystack.texts[0]) != subjects[0].encode(haystack.texts[0]):
        raise EvaluationError(f"{base}: its tokenizer is not {model}'s, so their losses cannot be compared")
    kinds = {kind_name(pattern): read([pattern]) for pattern in (documents if len(documents) > 1 else ())}
    plan = CellPlan(tuple(suite_cells(size, lengths, haystack, seed, kinds)), lengths, seed, haystack)
    with ExitStack() as opened:
        measured = []
        if url is not None:
            subject = subjects.pop(0)
            server = opened.enter_context(InferenceServer(url, settings.server_key, served))
            _require_context(server, subject, lengths[-1])
            under_test = ServedModel(server, subject, haystack.prefix)
            folder = opened.enter_context(tempfile.TemporaryDirectory())
            subject = replace(subject, name=f"{subject.name} served by {urlsplit(server.url).netloc}")
            digest = digest_of([subject.digest(), server.url, served])
            with ProgressBars() as bars:
                worker = Worker("cpu", "fp32", JsonLines(Path(folder) / "cells"), bars.of("served"))
                measured.append(measure(subject, plan, digest, worker, under_test))
        if subjects:
            open_run_registry(settings).close()
            measurements = opened.enter_context(
                closing(open_measurements(settings.database, settings.lease_s))
            )
            device = resolve_device(settings.device)
            bars = opened.enter_context(ProgressBars())
            for subject in subjects:
                worker = Worker(device, resolve_dtype("auto", device), measurements, bars.of(subject.name))
                measured.append(measure(subject, plan, subject.digest(), worker))
    if out is not None:
        try:
            texts = ", ".join(map(kind_name, documents)) or "Python's standard library"
            told = f"suite {suite}, seed {seed}; documents: {texts}; {date.today()}"
            write_page(measured, out, asked=told)
            (out / "scores.json").write_text(json.dumps(facts(measured), indent=1), "utf-8")
        except OSError as error:
            raise EvaluationError(f"{out}: the report cannot be written ({error.strerror})") from None
    return measured


def _require_positions(subjects: Sequence[Subject], longest: int) -> None:
    """EvaluationError for a model that has no positions beyond what it was trained on."""
    for subject in subjects:
        if not subject.rotary and longest > subject.context_tokens:
            raise EvaluationError(
                f"{subject.name}: has no positions beyond {subject.context_tokens} tokens (they are not "
                f"rotary); give --longest {subject.context_tokens}"
            )


def _require_context(server: InferenceServer, subject: Subject, longest: int) -> None:
    """EvaluationError: the server says that it takes less than the longest text."""
    most = server.context_tokens
    if most is not None and most < longest:
        raise EvaluationError(
            f"{server.url}: takes {most:,} tokens, {longest:,} are asked; serve {subject.name} with more, "
            f"or give --longest {most}"
        )


def show(models: Sequence[Capacity], out: Path | None, *, as_json: bool) -> None:
    """A table a model and what follows from it; or all of it as JSON."""
    if as_json:
        print(json.dumps(facts(models), indent=1))
        return
    for model in models:
        CONSOLE.print(f"{model.name}: {model.verdict}", style="bold")
        task = model.reach.task
        by_depth = "by depth, farthest first"
        rows = [["tokens", "nats", "perplexity", task or "needles", by_depth]]
        for length in model.lengths:
            shown = [model.card.score(name, length) for name in (*SHOWN, task or "")]
            parts = " ".join(f"{part.value:.2f}" for part in model.card.by_depth(task or "", length))
            rows.append([f"{length:,}", *(f"{s.value:.2f}" if s else "" for s in shown), parts])
        measured = [head for head, *cells in zip(*rows, strict=True) if any(cells)]
        print_table(([row[rows[0].index(head)] for head in measured] for row in rows), shortened=(by_depth,))
        for what, reached in (("sees", model.reach.sees), ("uses", model.reach.uses)):
            if reached is not None:
                CONSOLE.print(f"{what} to {tokens(reached)} tokens {interval(reached)}".rstrip())
        for cell, why in model.skipped.items():
            CONSOLE.print(f"not measured: {cell}: {why}", style="dim")
    if out is not None:
        CONSOLE.print(f"report: {out / 'capacity.html'}")


def facts(models: Sequence[Capacity]) -> list[dict[str, Any]]:
    """Everything that was found, as JSON."""
    return [
        {
            "model": model.name,
            "checkpoint_digest": model.card.model_digest,
            "verdict": model.verdict,
            "context_tokens": model.context_tokens,
            "original_context_tokens": model.card.original_context_tokens,
            "reach": asdict(model.reach),
            "scores": [score.model_dump(mode="json", exclude={"items"}) for score in model.card.scores],
            "skipped": model.skipped,
            "costs": [asdict(cost) for cost in model.costs],
            "attention": asdict(model.diagnosis) if model.diagnosis else None,
        }
        for model in models
    ]


def kind_name(pattern: str) -> str:
    """Documents by their glob, without the directories of this machine."""
    return "/".join(PurePosixPath(pattern).parts[-2:])


def _name(model: str) -> str:
    """A model without the directories of this machine."""
    return one_line(Path(model).name if Path(model).expanduser().is_dir() else model)
