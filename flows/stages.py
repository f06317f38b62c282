"""The stages of an extension, bound to the wrapper: which plain function does the work, with what it needs."""

from __future__ import annotations

import json
import os
from typing import Any

from flows.reporting import show_report
from flows.tasks import Bench, observation, stage
from flows.workshop import git_commit
from yarn_ops import bases
from yarn_ops.data import files as data_files
from yarn_ops.data import shards as data_shards
from yarn_ops.evals import evaluate as evals
from yarn_ops.evals import gate as gates
from yarn_ops.evals import report as reports
from yarn_ops.recipe import Base, Data, Evaluate, Gate, Publish, Rope, Stage, Train
from yarn_ops.records import (
    Adapter,
    BaseModel,
    Checkpoint,
    Corpus,
    Local,
    PatchedModel,
    Release,
    Report,
    Scorecard,
    ShardSet,
    Verdict,
)
from yarn_ops.rope import patch as rope_patch
from yarn_ops.store.trees import compose_tree
from yarn_ops.train import launch
from yarn_ops.train import merge as merging
from yarn_ops.train.job import Job


@observation("base")
def fetch_base(bench: Bench, base: Base) -> BaseModel:
    """The base model, checked, in the store."""
    record, bench.out = bases.fetch_base(
        base,
        cache=bench.shop.settings.home / "cache",
        store_options=bench.shop.settings.store_options,
        find_release=bench.shop.tracking_source,
    )
    return record


@observation("documents")
def survey(bench: Bench, data: Data) -> Corpus:
    """Which source files there are, fingerprinted."""
    return data_files.survey(data, bench.shop.files, bench.out)


@stage("shards", version=1)
def prepare(bench: Bench, data: Data, corpus: Local[Corpus], base: Local[BaseModel]) -> ShardSet:
    """Tokenised documents, split into train and held-out."""
    return data_shards.prepare(
        data, corpus, base, bench.out, files=bench.shop.files, report=bench.report, workers=os.cpu_count() or 1
    )


@stage("patch", version=1)
def patch(bench: Bench, rope: Rope, leg: Stage, base: Local[BaseModel]) -> PatchedModel:
    """Config and tokenizer rewritten for this leg's factor, and proven."""
    return rope_patch.patch(rope, base, bench.out, factor=leg.factor or 1.0)


@stage("train", version=1)
def train(
    bench: Bench,
    section: Train,
    leg: Stage,
    data: Data,
    base: Local[BaseModel],
    patched: Local[PatchedModel],
    shards: Local[ShardSet],
    previous: Local[Adapter] | None,
) -> Adapter:
    """LoRA (or all parameters) in a process of its own; its losses go to MLflow while it runs."""
    shop = bench.shop
    job = Job(
        train=section,
        leg=leg,
        data=data,
        base_dir=base.path,
        patched_dir=patched.path,
        shards_dir=shards.path,
        previous_dir=previous.path if previous else None,
        out_dir=bench.out,
        work_dir=bench.work,
        device=shop.settings.device,
        threads=os.cpu_count() or 1,
    )
    log_step = shop.step_logger(f"{leg.context_tokens}")

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            log_step(event)
            bench.report(event["step"], event["steps"], f"loss {event['loss']:.3f}")

    return launch.run_trainer(job, on_event=on_event, should_stop=bench.lost)


@stage("merge", version=1)
def merge(
    bench: Bench,
    base: Local[BaseModel],
    patched: Local[PatchedModel],
    adapter: Local[Adapter],
    shards: Local[ShardSet],
) -> Checkpoint:
    """Base and adapter merged once, in bfloat16, and compared with the unmerged."""
    return merging.merge(
        base, patched, adapter, shards, bench.out, device=bench.shop.settings.device, report=bench.report
    )


@stage("evaluate", version=1)
def evaluate(
    bench: Bench,
    section: Evaluate,
    model: Local[BaseModel] | Local[Checkpoint],
    shards: Local[ShardSet],
    original_context_tokens: int,
) -> Scorecard:
    """Perplexity and recall at every length."""
    card = evals.evaluate(
        section,
        model,
        shards,
        bench.out,
        original_context_tokens=original_context_tokens,
        device=bench.shop.settings.device,
        report=bench.report,
    )
    return card


@stage("gate", version=1)
def judge(
    bench: Bench, gate: Gate, before: Local[Scorecard], after: Local[Scorecard], target_context_tokens: int
) -> Verdict:
    """Whether the result may be promoted, and why."""
    return gates.judge(
        gate,
        before.record,
        after.record,
        original_context_tokens=before.record.original_context_tokens,
        target_context_tokens=target_context_tokens,
    )
