"""The stages of an extension called directly, without Prefect, SQL, object storage or MLflow.

For machines that have a GPU and nothing else: the same functions as the flow's, one directory a stage.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yarn_ops.data.corpus import survey
from yarn_ops.data.files import LocalFiles
from yarn_ops.data.shards import LocalUnits, prepare
from yarn_ops.evals.journal import JsonLines
from yarn_ops.evals.measure import EvaluationRequest, evaluate
from yarn_ops.evals.run import Worker
from yarn_ops.models.device import resolve_device, resolve_dtype
from yarn_ops.models.inspection import inspect_checkpoint
from yarn_ops.models.patch import patch
from yarn_ops.recipe import Leg, Recipe, Rope
from yarn_ops.records import Adapter, BaseModel, Checkpoint, Local, PatchedModel, ShardSet
from yarn_ops.scores import Scorecard
from yarn_ops.train.job import Job
from yarn_ops.train.launch import run_trainer
from yarn_ops.train.merge import merge


def quiet(done: int, total: int, note: str) -> None:
    """Progress that nobody watches."""


@dataclass
class Bare:
    """A base, its shards, and a directory to work in."""

    recipe: Recipe
    folder: Path
    base: Local[BaseModel]
    shards: Local[ShardSet]

    @classmethod
    def prepare(cls, recipe: Recipe, folder: Path) -> Bare:
        """Check the base, read and tokenise the documents."""
        base_dir = Path(recipe.base.model)
        base = Local(inspect_checkpoint(base_dir, source=base_dir.name), base_dir)
        corpus_dir, shards_dir = folder / "corpus", folder / "shards"
        corpus = Local(survey(recipe.data, LocalFiles(), corpus_dir), corpus_dir)
        workers = os.cpu_count() or 1
        shards = prepare(
            recipe.data,
            corpus,
            base,
            shards_dir,
            units=LocalUnits(folder / "units", LocalFiles(), workers),
            report=quiet,
        )
        return cls(recipe, folder, base, Local(shards, shards_dir))

    def patch(self, rope: Rope, factor: float, name: str) -> Local[PatchedModel]:
        out = self.folder / f"patched-{name}"
        return Local(patch(rope, self.base, out, factor=factor), out)

    def train(
        self, rope: Rope, legs: Sequence[Leg], name: str, *, seed: int = 0
    ) -> tuple[Local[Checkpoint], list[float]]:
        """All legs and the merge; the checkpoint and the seconds of each leg's steps."""
        weights: Local[BaseModel] | Local[Checkpoint] = self.base
        previous: Path | None = None
        seconds: list[float] = []
        for number, leg in enumerate(legs, start=1):
            following = [later.carry for later in legs[number : number + 1]]
            patched = self.patch(rope, leg.factor or 1.0, f"{name}-{number}")
            work, out = self.folder / f"work-{name}-{number}", self.folder / f"adapter-{name}-{number}"
            out.mkdir()
            job = Job(
                train=self.recipe.train.model_copy(update={"seed": seed}),
                leg=leg,
                data=self.recipe.data.model_copy(update={"seed": seed}),
                base_dir=weights.path,
                patched_dir=patched.path,
                shards_dir=self.shards.path,
                previous_dir=previous,
                keep_optimizer=following == ["adapter+optimizer"],
                out_dir=out,
                work_dir=work,
                device="auto",
                threads=os.cpu_count() or 1,
            )
            adapter = Local(run_trainer(job, on_event=lambda event: None, should_stop=lambda: False), out)
            previous = out
            if following == ["weights"]:
                weights, previous = self.merge(weights, patched, adapter, f"{name}-{number}"), None
            seconds.append(adapter.record.seconds)
        return self.merge(weights, patched, adapter, name), seconds

    def merge(
        self,
        weights: Local[BaseModel] | Local[Checkpoint],
        patched: Local[PatchedModel],
        adapter: Local[Adapter],
        name: str,
    ) -> Local[Checkpoint]:
        out = self.folder / f"merged-{name}"
        out.mkdir()
        return Local(merge(weights, patched, adapter, self.shards, out, device="auto", report=quiet), out)

    def score(
        self,
        model: Local[BaseModel] | Local[Checkpoint],
        name: str,
        patched: Local[PatchedModel] | None = None,
    ) -> Scorecard:
        out = self.folder / f"scores-{name}"
        out.mkdir()
        device = resolve_device("auto")
        worker = Worker(device, resolve_dtype("auto", device), JsonLines(out / "cells.jsonl"), quiet)
        original = self.base.record.context_tokens
        return evaluate(
            EvaluationRequest(self.recipe.evaluate, model, self.shards, original, patched=patched),
            out,
            worker,
        )


class Clock:
    """Seconds since it was made, for tables."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __str__(self) -> str:
        return f"{time.perf_counter() - self._start:.0f} s"
