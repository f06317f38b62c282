"""The one wrapper around every stage: key → lookup → lease → stage → put → record.

A stage is a function `fn(context, *inputs) -> Record` of recipe sections, plain values and records; it has
a record's tree fetched and verified by `context.fetch`. What it writes into `context.out` becomes the tree
of the record that it returns, unless it has put one into the store itself. Called as a task it keeps its
signature, without `context`. Keyword-only parameters are for the call alone: they are in no key.
"""

from __future__ import annotations

import inspect
import shutil
import tempfile
import threading
import time
import typing
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Generic, Literal, ParamSpec, TypeVar

from prefect import Task
from prefect.cache_policies import NO_CACHE
from pydantic import ValidationError

from flows.logs import about, run_logger
from flows.run import RunContext, current_run
from yarn_ops.atomic import room_in
from yarn_ops.digests import digest_of
from yarn_ops.errors import Damaged, LeaseLost, StoreError
from yarn_ops.processes import raise_missed, using
from yarn_ops.progress import OnProgress
from yarn_ops.recipe import Section
from yarn_ops.records import AnyRecord, Local, Record, records_in
from yarn_ops.registry import Held, QueuedStage, copies, hold, this_process
from yarn_ops.store.sweep import ARTIFACTS
from yarn_ops.store.trees import manifest_of, put_tree, tree_present
from yarn_ops.upkeep import OBSERVATIONS

P = ParamSpec("P")
R = TypeVar("R", bound=Record)


@dataclass
class StageContext:
    """Where a stage works, what it may use, and where it reports."""

    run: RunContext
    name: str
    key: str
    work: Path
    """outlives a crash: the next attempt of the same key finds what was left here"""
    out: Path
    """empty at the start; becomes the record's tree"""
    report: OnProgress
    held: Held | None
    """the stage's lease; an observation looks around before it has one"""

    def fetch(self, record: AnyRecord) -> Local[AnyRecord]:
        """The record with its tree on this machine. Before `alone_on`: a device does not wait for bytes."""
        return self.run.fetch(record)

    def lost(self) -> bool:
        """Whether the lease is gone, and the work must stop."""
        return self.held is not None and self.held.lost.is_set()

    def report_or_stop(self, done: int, total: int, note: str) -> None:
        """For work whose parts are kept as they are done: LeaseLost, OverBudget."""
        if self.lost():
            raise LeaseLost(f"its lease is gone before {note}; what was measured is kept")
        self.run.costs.require(between_parts=True)
        self.report(done, total, note)

    @contextmanager
    def alone_on(self, what: Literal["device", "gpu"]) -> Iterator[None]:
        """Within the block no other stage uses the device. "gpu": only a GPU; a processor is shared."""
        assert self.held is not None
        device = self.run.device
        if what == "gpu" and device.kind == "cpu":
            yield
            return

        def waits(first: QueuedStage) -> None:
            doing = "is on it" if first.has_it else "comes first"
            run_logger().info("waits for %s: %s of run %s %s", device.name, first.stage, first.run_id, doing)
            self.run.progress.waiting(self.name, first.holder)

        with device.occupied(self.held, waits):
            yield


@dataclass(frozen=True)
class _Call(Generic[R]):
    """A stage as it was called."""

    name: str
    of: str
    """what tells it from others of its name in a run"""
    inputs: tuple[Any, ...]
    """what its key is made of"""
    compute: Callable[[StageContext], R]
    made: type[R]


Obtain = Callable[[RunContext, _Call[R]], tuple[R, str, bool]]
"""(the record, its key, whether it was made before)"""


def stage(
    name: str, version: int, mend: Callable[..., Any] | None = None, of: Callable[..., str] = lambda *_: ""
) -> Callable[[Callable[Concatenate[StageContext, P], R]], Callable[P, R]]:
    """Make a Prefect task of a stage. Raise `version` when the same inputs give another result.

    `mend(run, record, *inputs)`: for a stage that leaves something outside of the store: restore what of a
    finished record's claims no longer holds there; the record as it then is. `of(*inputs)`: what tells its
    tasks in one run apart.
    """

    def obtain(run: RunContext, call: _Call[R]) -> tuple[R, str, bool]:
        key = stage_key(name, version, call.inputs)
        with about(key=key[:12]):
            run_logger().info("begins")
            record, reused = _obtain(run, key, call)
            if reused and mend is not None:
                mended = mend(run, record, *call.inputs)
                if mended != record:
                    run.registry.replace(key, record, mended)
                    run.services.ledger.keep_stage(key, copies.copy_stage(run.registry, key))
                    record = mended
        return record, key, reused

    return lambda fn: _as_task(name, fn, obtain, of)


def observation(name: str) -> Callable[[Callable[Concatenate[StageContext, P], R]], Callable[P, R]]:
    """Make a Prefect task of a stage that looks at the outside world: what is there may have changed.

    It runs every time; what it found is kept once, and a run that finds the same counts as reuse.
    """
    return lambda fn: _as_task(name, fn, _observe, lambda *_: "")


class StageTask(Task[P, R]):  # type: ignore[misc]
    """A stage as a Prefect task; in a run that reuses all, which Prefect does not know of, a plain call."""

    def __call__(self, *inputs: P.args, **named: P.kwargs) -> R:  # type: ignore[override]
        if current_run().reuses_all:
            return self.fn(*inputs, **named)
        return super().__call__(*inputs, **named)  # type: ignore[no-any-return]


def _as_task(
    name: str, fn: Callable[Concatenate[StageContext, P], R], obtain: Obtain[R], of: Callable[..., str]
) -> Callable[P, R]:
    signature = inspect.signature(fn)
    own = signature.replace(parameters=list(signature.parameters.values())[1:])

    def run_stage(*inputs: P.args, **named: P.kwargs) -> R:
        bound = own.bind(*inputs, **named)
        bound.apply_defaults()
        call: _Call[R] = _Call(
            name,
            of(*bound.arguments.values()),
            keyed_inputs(own, *inputs, **named),
            lambda context: fn(context, *inputs, **named),
            typing.get_type_hints(fn)["return"],
        )
        return current_run().events.stage(call.name, call.inputs, lambda: _use(current_run(), call, obtain))

    def named(parameters: dict[str, Any]) -> str:
        return f"{name} {of(*parameters.values())}".rstrip()

    run_stage.__signature__ = own  # type: ignore[attr-defined]
    return StageTask(
        run_stage, name=name, task_run_name=named, description=fn.__doc__, cache_policy=NO_CACHE,
        persist_result=False,
    )  # fmt: skip


def keyed_inputs(signature: inspect.Signature, *inputs: Any, **named: Any) -> tuple[Any, ...]:
    """A call's inputs in the signature's order, however they were given, through the last that is no default.

    Defaults before it are filled in; keyword-only parameters are left out.
    """
    given = signature.bind(*inputs, **named).arguments
    parameters = [one for one in signature.parameters.values() if one.kind is not one.KEYWORD_ONLY]
    while parameters and given.get(parameters[-1].name, parameters[-1].default) == parameters[-1].default:
        parameters.pop()
    return tuple(given.get(one.name, one.default) for one in parameters)


def _use(run: RunContext, call: _Call[R], obtain: Obtain[R]) -> R:
    """The stage's record, noted as used; an input of it that is damaged in the store is made again."""
    if threading.current_thread() is threading.main_thread():
        raise_missed()  # what a library swallowed in the stage before: nothing is published after a Ctrl-C
    started, waited_s = time.monotonic(), run.device.waited_s
    with run.costs.of(call.name), about(run=run.id, stage=call.name):
        while True:
            try:
                record, key, reused = obtain(run, call)
                break
            except Damaged as damaged:
                _make_again(run, damaged)
        seconds = time.monotonic() - started - (run.device.waited_s - waited_s)
        run.registry.note_use(run.id, key, reused=reused, seconds=seconds)
        if not reused:
            run.write_to_ledger()
        how = "reused" if reused else "done"
        with about(key=key[:12]):
            run_logger().info("%s in %.1f s", how, seconds)
    run.progress.finished(call.name, call.of, how, seconds)
    if record.tree is not None:
        run.makers.setdefault(record.tree.digest, lambda: _use(run, call, obtain))
    return record


def _make_again(run: RunContext, damaged: Damaged) -> None:
    """Run the stage that made the damaged directory again, once a run; raises `damaged` otherwise."""
    digest = damaged.set_aside
    make = run.makers.get(digest or "")
    if digest is None or make is None or digest in run.made_again:
        raise damaged
    run_logger().warning("%s", damaged)
    run.made_again.add(digest)
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
        return value.key_values()
    if isinstance(value, tuple | list):
        return [_identity(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a stage takes records, recipe sections and plain values, not {type(value).__name__}")


def _obtain(run: RunContext, key: str, call: _Call[R]) -> tuple[R, bool]:
    finished = run.registry.finished(key)
    if finished is not None:
        record = _sound(run, call.made, finished)
        if record is not None:
            return record, True
        reason = "its record or its bytes are not what was stored"
        run_logger().warning("%s; made again", reason)
        run.registry.discard(key, finished, reason)
    run.require_computing(call.name)
    with _lease(run, call.name, key) as held:
        if held.record is not None:  # somebody else made it while we waited
            return call.made.model_validate(held.record), True
        return _make(run, key, call, held), False


def _sound(run: RunContext, made: type[R], finished: dict[str, Any]) -> R | None:
    """A finished stage's record, if it is one, and the store has every file of it with its size.

    The files' bytes are verified where they are used: when they are fetched, or composed into a release.
    """
    try:
        record = made.model_validate(finished)
    except ValidationError:
        return None
    return record if record.tree is None or tree_present(run.services.store, record.tree) else None


def _lease(run: RunContext, name: str, key: str) -> AbstractContextManager[Held]:
    return hold(
        run.registry,
        key,
        stage=name,
        run_id=run.id,
        holder=this_process(),
        lease_s=run.settings.lease_s,
        on_wait=lambda holder: run.progress.waiting(name, holder),
    )


def _observe(run: RunContext, call: _Call[R]) -> tuple[R, str, bool]:
    place = run.work_dir(OBSERVATIONS)
    with (
        room_in(place),
        tempfile.TemporaryDirectory(dir=place) as folder,
        run.progress.of(call.name) as report,
    ):
        work = Path(folder)
        with using(work):
            (work / "out").mkdir()
            context = StageContext(run, call.name, "", work, work / "out", report, None)
            record = call.compute(context)
            found = manifest_of(context.out)
            tree = found.tree_at(run.services.store.uri_of(f"{ARTIFACTS}/{found.digest}"))
            record = record.model_copy(update={"tree": tree})
            key = stage_key(call.name, 1, (record,))
            if run.registry.finished(key) is None:
                run.require_computing(call.name)
            with _lease(run, call.name, key) as held:  # before the first byte is stored: gc sees a holder
                put_tree(run.services.store, context.out, own=found, owner=run.services.ledger, report=report)
                if held.record is not None:
                    return record, key, True
                _commit(run, held, record)
    return record, key, False


def _commit(run: RunContext, held: Held, record: Record) -> None:
    """Record the result: in the store, from which a lost registry is made again, then in the registry."""
    assert held.lease is not None
    key = held.lease.key
    run.services.ledger.keep_stage(key, copies.copy_stage(run.registry, key, record))
    held.complete(record)


def _make(run: RunContext, key: str, call: _Call[R], held: Held) -> R:
    assert held.lease is not None
    work = run.work_dir(key)
    for left in work.glob("out-*"):
        shutil.rmtree(left, ignore_errors=True)
    out = work / f"out-{held.lease.fence}"  # a holder that lost its lease unnoticed writes to its own
    with using(work), room_in(work), _made_or_gone(out), run.progress.of(call.name) as report:
        context = StageContext(run, call.name, key, work, out, report, held)
        record = call.compute(context)
        tree = record.tree
        if tree is None and any(context.out.iterdir()):
            tree = put_tree(run.services.store, context.out, owner=run.services.ledger, report=report)
        parents = tuple(parent.digest for parent in records_in(call.inputs))
        record = record.model_copy(update={"tree": tree, "parents": parents})
        _commit(run, held, record)
    shutil.rmtree(work, ignore_errors=True)
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
