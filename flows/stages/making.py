"""From a base and documents to a merged model."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from flows.logs import run_logger
from flows.mlflow_run import StepSink
from flows.run import current_run
from flows.tasks import StageContext, observation, stage
from yarn_ops import bases
from yarn_ops.data import corpus as corpora
from yarn_ops.data import shards as tokenised
from yarn_ops.data.windows import needed_tokens
from yarn_ops.models.files import read_config
from yarn_ops.processes import start, usable_threads
from yarn_ops.recipe import NOT_IN_LOSSES, Base, Data, Leg, Rope, Train
from yarn_ops.records import Adapter, BaseModel, Checkpoint, Corpus, PatchedModel, Rehearsal, ShardSet
from yarn_ops.settings import child_environment
from yarn_ops.train import launch
from yarn_ops.train.events import Event
from yarn_ops.train.job import Job

AFTER_TRAINING = ("yarn_ops.train.merge", "yarn_ops.evals.measure")
"""what the stages behind it need; this process imports it while it waits for the trainer"""
HEADS = ("num_attention_heads", "num_key_value_heads", "head_dim")


@observation("base")
def fetch_base(context: StageContext, base: Base) -> BaseModel:
    """The base model, checked, in the store."""
    record, context.out = bases.fetch_base(
        base,
        cache=context.run.settings.home / "cache",
        store_options=context.run.services.store_options,
        find_release=context.run.services.tracking.behind,
        ask=partial(context.run.device.call, "yarn_ops.models.inspection:ask_transformers"),
    )
    return record


@observation("documents")
def survey(context: StageContext, data: Data) -> Corpus:
    """Which source files there are, fingerprinted."""
    return corpora.survey(data, context.run.services.files, context.out)


@stage("shards", version=3)
def prepare(context: StageContext, data: Data, corpus: Corpus, base: BaseModel) -> ShardSet:
    """Tokenised documents, split into train and held-out."""
    return tokenised.prepare(
        data,
        context.fetch(corpus),
        context.fetch(base),
        context.out,
        units=context.run.services.units(context.work),
        report=context.report,
    )


@stage("patch", version=2, of=lambda rope, factor, *_: f"{rope.method} ×{factor:g}")
def patch(context: StageContext, rope: Rope, factor: float, base: BaseModel) -> PatchedModel:
    """Config and tokenizer rewritten for this factor, and proven."""
    patching = "yarn_ops.models.patch:patch"
    made: PatchedModel = context.run.device.call(
        patching, rope, context.fetch(base), context.out, factor=factor
    )
    return made


@stage("rehearse", version=2)
def rehearse(
    context: StageContext,
    section: Train,
    legs: Sequence[Leg],
    patched: PatchedModel,
    document_mask: bool = False,
) -> Rehearsal:
    """Check that training as asked can begin, before documents are read; TrainError if not."""
    device = context.run.device
    found: Rehearsal = device.call(
        "yarn_ops.train.rehearsal:rehearse", section, tuple(legs), context.fetch(patched), document_mask,
        device=device.kind, processes=device.processes,
    )  # fmt: skip
    return found


def require_windows(shards: ShardSet, legs: Sequence[Leg], patched: PatchedModel) -> None:
    """DataError where documents to train on are shorter than a leg's window, or held out ones than the
    target, which is measured."""
    for leg in legs:
        needed_tokens("train", shards.train_tokens, leg.context_tokens)
    needed_tokens("held_out", shards.held_out_tokens, patched.target_context_tokens)


def warm_up(section: Train, leg: Leg, data: Data, patched: PatchedModel) -> None:
    """Have the trainer that waits compile what its first step needs, and import what `require_measurable`
    asks it, while documents are prepared."""
    run = current_run()
    if run.device.trainer is not None:
        run.device.trainer.prepare("importlib:import_module", AFTER_TRAINING[-1])
        run.device.trainer.prepare(
            "yarn_ops.train.rehearsal:compile_ahead",
            section, leg.context_tokens, data.document_mask, run.fetch(patched),
        )  # fmt: skip


@stage("train", version=4, of=lambda section, leg, *_: f"{leg.context_tokens:,} tokens")
def train(
    context: StageContext,
    section: Train,
    leg: Leg,
    data: Data,
    base: BaseModel | Checkpoint,
    patched: PatchedModel,
    shards: ShardSet,
    previous: Sequence[Adapter],
    keep_optimizer: bool,
    *,
    asked: Train,
    steps: StepSink,
) -> Adapter:
    """LoRA (or all parameters) in a process of its own; its losses go to `steps` while it runs.

    section, leg, data: as `loss_inputs` gives them. asked: the section as it was asked for, which says how a
    loss is computed. previous: the adapter of the leg before, where that is carried over.
    """
    run = context.run
    computed = {name: getattr(asked, name) for name in NOT_IN_LOSSES}
    job = Job(
        train=section.model_copy(update=computed),
        leg=leg,
        data=data,
        base_dir=context.fetch(base).path,
        patched_dir=context.fetch(patched).path,
        shards_dir=context.fetch(shards).path,
        previous_dir=context.fetch(previous[0]).path if previous else None,
        keep_optimizer=keep_optimizer,
        out_dir=context.out,
        work_dir=context.work,
        device=run.settings.device,
        threads=usable_threads(),
        processes=run.device.processes,
    )

    def on_event(event: Event) -> None:
        if event["event"] == "phase":
            run.costs.phase(event["name"])
        if event["event"] == "step":
            run.costs.phase("" if event["step"] < event["steps"] else "end")
            if event["step"] == 1:
                run_logger().info("step 1 of %d, loss %.3f", event["steps"], event["loss"])
                log = run.settings.home / "logs" / "compiling.log"
                threading.Thread(target=_import_ahead, args=(job.patched_dir, log)).start()
            steps.log(event)
            told = f"step {event['step']} of {event['steps']}, loss {event['loss']:.3f}"
            context.report(event["step"], event["steps"], told)

    with context.alone_on("device"):
        job = job.model_copy(update={"deadline": run.costs.deadline()})
        run.costs.phase("process")
        return launch.run_trainer(
            job, on_event=on_event, should_stop=context.lost, warm_trainer=run.device.trainer
        )


def _import_ahead(patched: Path, log: Path) -> None:
    """Import what merging and measuring need, which takes seconds, while the trainer works; and have it
    compiled, by a process that says in `log` what goes wrong.

    patched: the directory whose config says how many heads attend.
    """
    for module in AFTER_TRAINING:
        importlib.import_module(module)
    suffix = importlib.import_module("yarn_ops.models.suffix")
    config = read_config(patched)
    heads, key_heads, width = (config.get(name) for name in HEADS)
    if heads and key_heads and suffix.flash_attention_4() is not None:
        asked = heads, key_heads, width or config["hidden_size"] // heads
        command = f"from yarn_ops.models.suffix import compile_ahead; compile_ahead{asked}"
        start([sys.executable, "-c", command], log=log, env=child_environment({})).wait()  # it ends with us


@stage("merge", version=2, of=lambda base, patched, *_: f"{patched.method} ×{patched.factor:g}")
def merge(
    context: StageContext,
    base: BaseModel | Checkpoint,
    patched: PatchedModel,
    adapter: Adapter,
    shards: ShardSet,
) -> Checkpoint:
    """Base and adapter merged once, in bfloat16, and compared with the unmerged."""
    from yarn_ops.train import merge as merging

    inputs = (context.fetch(base), context.fetch(patched), context.fetch(adapter), context.fetch(shards))
    device = context.run.device.kind
    with context.alone_on("gpu"):
        return merging.merge(*inputs, context.out, device=device, report=context.report)
