"""From a base and documents to a merged model."""

from __future__ import annotations

from prefect import get_run_logger

from flows.tasks import Bench, observation, stage
from yarn_ops import bases
from yarn_ops.data import corpus as corpora
from yarn_ops.data import shards as tokenised
from yarn_ops.processes import usable_threads
from yarn_ops.recipe import (
    NOT_IN_LOSSES,
    Base,
    Data,
    Leg,
    Rope,
    Train,
)
from yarn_ops.records import (
    Adapter,
    BaseModel,
    Checkpoint,
    Corpus,
    Local,
    PatchedModel,
    Rehearsal,
    ShardSet,
)
from yarn_ops.train import launch
from yarn_ops.train.events import Event
from yarn_ops.train.job import Job


@observation("base")
def fetch_base(bench: Bench, base: Base) -> BaseModel:
    """The base model, checked, in the store."""
    record, bench.out = bases.fetch_base(
        base,
        cache=bench.shop.settings.home / "cache",
        store_options=bench.shop.store_options,
        find_release=bench.shop.tracking.behind,
    )
    return record


@observation("documents")
def survey(bench: Bench, data: Data) -> Corpus:
    """Which source files there are, fingerprinted."""
    return corpora.survey(data, bench.shop.files, bench.out)


@stage("shards", version=2)
def prepare(bench: Bench, data: Data, corpus: Local[Corpus], base: Local[BaseModel]) -> ShardSet:
    """Tokenised documents, split into train and held-out."""
    return tokenised.prepare(
        data,
        corpus,
        base,
        bench.out,
        units=bench.shop.units(bench.work),
        report=bench.report,
    )


@stage("patch", version=2)
def patch(bench: Bench, rope: Rope, factor: float, base: Local[BaseModel]) -> PatchedModel:
    """Config and tokenizer rewritten for this factor, and proven."""
    patching = "yarn_ops.models.patch:patch"
    made: PatchedModel = bench.shop.call(patching, rope, base, bench.out, factor=factor)
    return made


@stage("rehearse", version=1)
def rehearse(
    bench: Bench, section: Train, legs: tuple[Leg, ...], patched: Local[PatchedModel], shards: ShardSet
) -> Rehearsal:
    """What is wrong with training and merging as asked, told before the base is measured."""
    shop, rehearsing = bench.shop, "yarn_ops.train.rehearsal:rehearse"
    found: Rehearsal = shop.call(
        rehearsing, section, legs, patched, shards, device=shop.device, processes=shop.processes
    )
    return found


@stage("train", version=2, alone_on="device")
def train(
    bench: Bench,
    section: Train,
    leg: Leg,
    data: Data,
    base: Local[BaseModel] | Local[Checkpoint],
    patched: Local[PatchedModel],
    shards: Local[ShardSet],
    previous: tuple[Local[Adapter], ...],
    keep_optimizer: bool,
) -> Adapter:
    """LoRA (or all parameters) in a process of its own; its losses go to MLflow while it runs.

    Sections as `loss_inputs` gives them; how a loss is computed comes from the run's recipe and is in no key.
    """
    shop = bench.shop
    computed = {name: getattr(shop.recipe.train, name) for name in NOT_IN_LOSSES}
    job = Job(
        train=section.model_copy(update=computed),
        leg=leg,
        data=data,
        base_dir=base.path,
        patched_dir=patched.path,
        shards_dir=shards.path,
        previous_dir=previous[0].path if previous else None,
        keep_optimizer=keep_optimizer,
        out_dir=bench.out,
        work_dir=bench.work,
        device=shop.settings.device,
        threads=usable_threads(),
        processes=shop.processes,
    )

    def on_event(event: Event) -> None:
        if event["event"] == "step":
            if event["step"] == 1:
                get_run_logger().info("step 1 of %d, loss %.3f", event["steps"], event["loss"])
            shop.log_training_step(event, shop.earlier_steps)
            bench.report(event["step"], event["steps"], f"loss {event['loss']:.3f}")

    return launch.run_trainer(job, on_event=on_event, should_stop=bench.lost, warm_trainer=shop.trainer)


@stage("merge", version=1, alone_on="gpu")
def merge(
    bench: Bench,
    base: Local[BaseModel] | Local[Checkpoint],
    patched: Local[PatchedModel],
    adapter: Local[Adapter],
    shards: Local[ShardSet],
) -> Checkpoint:
    """Base and adapter merged once, in bfloat16, and compared with the unmerged."""
    from yarn_ops.train import merge as merging

    return merging.merge(
        base, patched, adapter, shards, bench.out, device=bench.shop.device, report=bench.report
    )
