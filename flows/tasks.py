"""The one wrapper around every stage: key → lookup → lease → fetch → stage → put → record.

A stage is a function `fn(bench, *inputs) -> Record`. Its inputs are recipe sections, plain values and
records; a record that it declares as `Local[...]` reaches it fetched and verified. What it writes into
`bench.out` becomes the record's tree, unless it has put one into the store itself.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import typing
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from pydantic import ValidationError

from flows.liveness import end_trainers_except
from flows.logs import about
from flows.workshop import Workshop, workshop
from yarn_ops.bars import Report
from yarn_ops.digests import digest_of
from yarn_ops.errors import Damaged, LeaseLost, StoreError
from yarn_ops.processes import using
from yarn_ops.recipe import Section
from yarn_ops.records import BeforeAfter, Local, Record
from yarn_ops.registry import Held, QueuedStage, copies, hold, keys_at_work, occupied, this_process
from yarn_ops.store.disk import room_in
from yarn_ops.store.sweep import ARTIFACTS
from yarn_ops.store.trees import manifest_of, put_tree, tree_present
from yarn_ops.upkeep import OBSERVATIONS

R = TypeVar("R", bound=Record)


@dataclass
class Bench:
    """Where a stage works, and whom it tells of its progress."""

    shop: Workshop
    key: str
    work: Path
    """outlives a crash: the next attempt of the same key finds what was left here"""
    out: Path
    """empty at the start; becomes the record's tree"""
    report: Report
    lost: Callable[[], bool]
    """whether the lease is gone, and the work must stop"""

    def report_or_stop(self, done: int, total: int, note: str) -> None:
        """For work whose parts are kept as they are done: LeaseLost when the lease is gone."""
        if self.lost():
            raise LeaseLost(f"its lease is gone before {note}; what was measured is kept")
        self.report(done, total, note)


Need = Literal["nothing", "device", "gpu"]
"""of what a stage must be the only user: the GPU, or the processor where there is none; the GPU if any"""


def stage(
    name: str, version: int, alone_on: Need = "nothing", mend: Callable[..., Any] | None = None
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Make a Prefect task of a stage. Raise `version` when the same inputs give another result.

    `mend(shop, record, *inputs)`: for a stage that leaves something outside of the store: make good what of a
    finished record's claims no longer holds there; the record as it then is.
    """

    def obtain(shop: Workshop, fn: Callable[..., R], inputs: tuple[Any, ...]) -> tuple[R, str, bool]:
        key = stage_key(name, version, inputs)
        with about(key=key[:12]):
            get_run_logger().info("begins")
            record, reused = _obtain(shop, name, key, fn, inputs, alone_on)
            if reused and mend is not None:
                mended = mend(shop, record, *inputs)
                if mended != record:
                    shop.registry.replace(key, record, mended)
                    shop.ledger.keep_stage(key, copies.copy_stage(shop.registry, key))
                    record = mended
        return record, key, reused

    return lambda fn: _as_task(name, fn, obtain)


def observation(name: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Make a Prefect task of a stage that looks at the outside world: what is there may have changed.

    It runs every time; what it found is kept once, and a run that finds the same counts as reuse.
    """

    def observe(shop: Workshop, fn: Callable[..., R], inputs: tuple[Any, ...]) -> tuple[R, str, bool]:
        return _observe(shop, name, fn, inputs)

    return lambda fn: _as_task(name, fn, observe)


def _as_task(
    name: str,
    fn: Callable[..., R],
    obtain: Callable[[Workshop, Callable[..., R], tuple[Any, ...]], tuple[R, str, bool]],
) -> Callable[..., R]:
    @task(name=name, task_run_name=name, description=fn.__doc__, cache_policy=NO_CACHE, persist_result=False)
    def run(*inputs: Any) -> R:
        shop = workshop()
        return _use(shop, name, lambda: obtain(shop, fn, inputs))

    return run


def _use(shop: Workshop, name: str, obtain: Callable[[], tuple[R, str, bool]]) -> R:
    """The stage's record, noted as used; an input of it that is damaged in the store is made again."""
    started, waited_s = time.monotonic(), shop.waited_s
    with about(run=shop.run.id, stage=name):
        while True:
            try:
                record, key, reused = obtain()
                break
            except Damaged as damaged:
                _make_again(shop, damaged)
        seconds = time.monotonic() - started - (shop.waited_s - waited_s)
        shop.registry.note_use(shop.run.id, key, reused=reused, seconds=seconds)
        if not reused:
            shop.keep()
        how = "reused" if reused else "done"
        with about(key=key[:12]):
            get_run_logger().info("%s in %.1f s", how, seconds)
    shop.progress.finished(name, how, seconds)
    if record.tree is not None:
        shop.makers.setdefault(record.tree.digest, lambda: _use(shop, name, obtain))
    return record


def _make_again(shop: Workshop, damaged: Damaged) -> None:
    """Have the stage whose directory is damaged make it anew, once a run; raises `damaged` otherwise."""
    digest = damaged.set_aside
    make = shop.makers.get(digest or "")
    if digest is None or make is None or digest in shop.made_again:
        raise damaged
    get_run_logger().warning("%s", damaged)
    shop.made_again.add(digest)
    tree = make().tree
    if tree is None or tree.digest != digest:
        raise StoreError(f"{damaged}; it was made again, with other bytes: run again to go on from it")


def stage_key(name: str, version: int, inputs: tuple[Any, ...]) -> str:
    """sha256 of the stage's name and version, its sections' values and its input records' digests."""
    return digest_of([name, version, [_identity(value) for value in inputs]])


def _identity(value: Any) -> Any:
    if isinstance(value, Record):
        return value.digest
    if isinstance(value, Section):
        return value.model_dump(mode="json")
    if isinstance(value, tuple | list):
        return [_identity(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a stage takes records, recipe sections and plain values, not {type(value).__name__}")


def _obtain(
    shop: Workshop, name: str, key: str, fn: Callable[..., R], inputs: tuple[Any, ...], alone_on: Need
) -> tuple[R, bool]:
    made = _record_type(fn)
    finished = shop.registry.finished(key)
    if finished is not None:
        record = _sound(shop, made, finished)
        if record is not None:
            return record, True
        reason = "its record or its bytes are not what was stored"
        get_run_logger().warning("%s; made again", reason)
        shop.registry.discard(key, finished, reason)
    with _lease(shop, name, key) as held:
        if held.record is not None:  # somebody else made it while we waited
            return made.model_validate(held.record), True
        return _make(shop, name, key, fn, inputs, held, alone_on), False


def _sound(shop: Workshop, made: type[R], finished: dict[str, Any]) -> R | None:
    """A finished stage's record, if it is one, and the store has every file of it with its size.

    The files' bytes are verified where they are used: when they are fetched, or composed into a release.
    """
    try:
        record = made.model_validate(finished)
    except ValidationError:
        return None
    return record if record.tree is None or tree_present(shop.store, record.tree) else None


def _lease(shop: Workshop, name: str, key: str) -> AbstractContextManager[Held]:
    return hold(
        shop.registry,
        key,
        stage=name,
        run_id=shop.run.id,
        holder=this_process(),
        lease_s=shop.settings.lease_s,
        on_wait=lambda holder: shop.progress.waiting(name, holder),
    )


@contextmanager
def _device(shop: Workshop, name: str, held: Held, alone_on: Need) -> Iterator[None]:
    """Within the block, no other stage uses what this one needs to itself."""
    if alone_on == "nothing" or (alone_on == "gpu" and shop.device == "cpu"):
        yield
        return

    def waits(ahead: QueuedStage) -> None:
        doing = "is on it" if ahead.has_it else "comes first"
        get_run_logger().info(
            "waits for %s: %s of run %s %s", shop.device_name, ahead.stage, ahead.run_id, doing
        )
        shop.progress.waiting(name, ahead.holder)

    asked = time.monotonic()
    with occupied(shop.registry, held, shop.device_name, rank=shop.rank, on_wait=waits):
        shop.waited_s += time.monotonic() - asked
        end_trainers_except(keys_at_work(shop.registry), shop.settings.home / "work")
        yield


def _observe(shop: Workshop, name: str, fn: Callable[..., R], inputs: tuple[Any, ...]) -> tuple[R, str, bool]:
    place = shop.work_dir(OBSERVATIONS)
    with room_in(place), tempfile.TemporaryDirectory(dir=place) as folder, shop.progress.of(name) as report:
        work = Path(folder)
        with using(work):
            (work / "out").mkdir()
            bench = Bench(shop, "", work, work / "out", report, lambda: False)
            record = fn(bench, *inputs)
            found = manifest_of(bench.out)
            tree = found.tree_at(shop.store.uri_of(f"{ARTIFACTS}/{found.digest}"))
            record = record.model_copy(update={"tree": tree})
            key = stage_key(name, 1, (record,))
            with _lease(shop, name, key) as held:  # before the first byte is stored: who holds it is at work
                put_tree(shop.store, bench.out, own=found, owner=shop.ledger, report=report)
                if held.record is not None:
                    return record, key, True
                _commit(shop, held, record)
    return record, key, False


def _commit(shop: Workshop, held: Held, record: Record) -> None:
    """Record the result: in the store, from which a lost registry is made again, then in the registry."""
    assert held.lease is not None
    key = held.lease.key
    shop.ledger.keep_stage(key, copies.copy_stage(shop.registry, key, record))
    held.complete(record)


def _make(
    shop: Workshop,
    name: str,
    key: str,
    fn: Callable[..., R],
    inputs: tuple[Any, ...],
    held: Held,
    alone_on: Need,
) -> R:
    assert held.lease is not None
    work = shop.work_dir(key)
    for left in work.glob("out-*"):
        shutil.rmtree(left, ignore_errors=True)
    out = work / f"out-{held.lease.fence}"  # a holder that lost its lease unnoticed writes to its own
    with using(work), room_in(work), _made_or_gone(out), shop.progress.of(name) as report:
        bench = Bench(shop, key, work, out, report, held.lost.is_set)
        fetched = _fetched(shop, fn, inputs)
        with _device(shop, name, held, alone_on):
            record = fn(bench, *fetched)
        tree = record.tree
        if tree is None and any(bench.out.iterdir()):
            tree = put_tree(shop.store, bench.out, owner=shop.ledger, report=report)
        record = record.model_copy(update={"tree": tree, "parents": _parents(inputs)})
        _commit(shop, held, record)
    shop.discard(work)
    return record


@contextmanager
def _made_or_gone(out: Path) -> Iterator[None]:
    """A new directory, which a failure within the block takes along: it may have filled the disk."""
    out.mkdir()
    try:
        yield
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _fetched(shop: Workshop, fn: Callable[..., R], inputs: tuple[Any, ...]) -> list[Any]:
    """The inputs as `fn` declares them: records of `Local[...]` parameters with their trees here."""
    declared = list(typing.get_type_hints(fn).values())[1:]  # after `bench`, in order
    return [
        _local(shop, value) if _is_local(kind) else value
        for kind, value in zip(declared, inputs, strict=False)
    ]


def _is_local(kind: Any) -> bool:
    return typing.get_origin(kind) is Local or any(_is_local(part) for part in typing.get_args(kind))


def _local(shop: Workshop, value: Any) -> Any:
    if isinstance(value, BeforeAfter):
        return BeforeAfter(*(shop.fetch(item) for item in value))
    if isinstance(value, tuple | list):
        return tuple(shop.fetch(item) for item in value)
    return shop.fetch(value)


def _parents(inputs: tuple[Any, ...]) -> tuple[str, ...]:
    found: list[str] = []
    for value in inputs:
        if isinstance(value, Record):
            found.append(value.digest)
        elif isinstance(value, tuple | list):
            found.extend(_parents(tuple(value)))
    return tuple(found)


def _record_type(fn: Callable[..., R]) -> type[R]:
    return typing.get_type_hints(fn)["return"]
