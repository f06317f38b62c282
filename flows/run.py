"""A run: its registry row, what its stages work with, how it begins and how its end is written down."""

from __future__ import annotations

import inspect
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext, get_run_context
from prefect.exceptions import MissingContextError, Pause, TerminationSignal

from flows.costs import RunCosts
from flows.device import RunDevice
from flows.liveness import sign
from flows.logs import run_logger
from flows.mlflow_run import MlflowRun, git_commit, page_of
from flows.openlineage import LineageEvents
from flows.progress import Progress
from flows.services import Services
from yarn_ops import notify
from yarn_ops.digests import digest_of
from yarn_ops.errors import AwaitsApproval, GateFailed, Stopped, YarnOpsError, service_fault
from yarn_ops.planning import RunPlan
from yarn_ops.processes import keeping_missed
from yarn_ops.progress import ProgressBars
from yarn_ops.recipe import Recipe, recorded_recipe
from yarn_ops.records import AnyRecord, BaseModel, Corpus, Local, Record, Tree
from yarn_ops.registry import Registry, Run, RunEnd, approvals, copies, open_registry, this_process
from yarn_ops.services import require_services
from yarn_ops.settings import Settings
from yarn_ops.store.trees import fetch_tree

SIGNALLED = (KeyboardInterrupt, TerminationSignal)
"""what asks a run to stop: a key or a command, Prefect"""
WAITS = (AwaitsApproval, Pause)
"""what leaves a run that a person has to promote"""

LOOK_EVERY_S = 5.0
"""at the state of the flow run"""

log = logging.getLogger(__name__)

_CURRENT: ContextVar[RunContext] = ContextVar("run")
_REUSES_ALL: ContextVar[bool] = ContextVar("reuses_all", default=False)
_NAME: ContextVar[str | None] = ContextVar("name", default=None)
"""of a run that Prefect does not know of"""

P = ParamSpec("P")
Result = TypeVar("Result")


class ToBeComputed(Stopped):
    """A run that was to reuse all found a stage that is not finished."""


class RunContext:
    """What the stages of one run work with: services, MLflow run, device, progress, directories."""

    def __init__(
        self, settings: Settings, recipe: Recipe, registry: Registry, row: Run, bars: ProgressBars,
        helper: str = "",
    ) -> None:  # fmt: skip
        self.reuses_all = _REUSES_ALL.get()
        """Prefect does not know of it, and the first stage that is to be computed ends it"""
        self.settings = settings
        self.recipe = recipe
        self.registry = registry
        self.id = row.id
        self.attempts = row.attempts
        self.services = Services(settings, registry)
        self.mlflow = MlflowRun(lambda: self.services.tracking, recipe, registry, row, settings.mlflow)
        self.device = RunDevice(settings, registry)
        self.costs = RunCosts(settings, registry, row, self.device, self.services, recipe.budget, helper)
        self.events = LineageEvents(settings, row.id, row.attempts, recipe.publish.name)
        self.progress = Progress(bars, in_prefect=not self.reuses_all, on_report=self._require_going_on)
        self.makers: dict[str, Callable[[], Record]] = {}
        """{digest of a tree: has the stage that made it make it again, if it is damaged}"""
        self.made_again: set[str] = set()
        self._looks_again_at = 0.0
        self._verified: dict[str, Path] = {}

    @property
    def asks_a_person(self) -> bool:
        """Whether an earlier attempt asked a person to promote its release."""
        return approvals.find(self.registry, self.id) is not None

    def _require_going_on(self) -> None:
        """OverBudget where the budget is used up; Pause where a person has suspended the flow run in Prefect,
        which is looked at every few seconds."""
        self.costs.require()
        context, now = FlowRunContext.get(), time.monotonic()
        flow_run = context.flow_run if context is not None else None
        if flow_run is None or flow_run.deployment_id is None or now < self._looks_again_at:
            return
        self._looks_again_at = now + LOOK_EVERY_S
        with suppress(httpx.HTTPError), get_client(sync_client=True) as client:  # where it is away: go on
            state = client.read_flow_run(flow_run.id).state
            if state is not None and state.is_paused():
                raise Pause("suspended in Prefect", state=state)

    def require_computing(self, stage: str) -> None:
        """ToBeComputed in a run that reuses all; OverBudget where its budget is used up."""
        if self.reuses_all:
            raise ToBeComputed(f"{stage}: is to be computed")
        self.costs.require()

    def plan(self, base: BaseModel, corpus: Corpus) -> RunPlan | None:
        """Keep what the run is planned to cost, the first time that it can be told."""
        if self.reuses_all:
            return None
        return self.costs.plan(self.recipe, self.fetch(base).path, corpus.size_bytes)

    @property
    def page(self) -> str | None:
        """The run's page in Prefect; None where it has none."""
        flow_run = _flow_run()
        return None if flow_run is None else page_of(str(flow_run.id))

    def write_to_ledger(self) -> None:
        """Write the run's state into the store, so that a lost registry can be rebuilt."""
        self.services.ledger.keep_run(copies.copy_run(self.registry, self.id))

    def work_dir(self, key: str) -> Path:
        """The working directory of a stage; it outlives a crash, so that the next attempt goes on in it."""
        path = self.settings.home / "work" / key[:16]
        path.mkdir(parents=True, exist_ok=True)
        return path

    def fetch(self, record: AnyRecord) -> Local[AnyRecord]:
        """The record with its tree on this machine, verified once a process."""
        if record.tree is None:
            return Local(record, self.settings.home)
        return Local(record, self._fetch_tree(record.tree))

    def _fetch_tree(self, tree: Tree) -> Path:
        cache, path = self.settings.home / "cache", self._verified.get(tree.digest)
        if path is None or not path.exists():  # the cache may have been swept since
            self._verified[tree.digest] = fetch_tree(self.services.store, tree, cache)
        elif path.is_relative_to(cache):
            os.utime(path)  # as `fetch_tree` does: it is in use from now
        return self._verified[tree.digest]


def current_run() -> RunContext:
    """The run in progress in this process."""
    return _CURRENT.get()


@contextmanager
def open_run(
    settings: Settings, recipe: Recipe, compared: Mapping[str, Any] | None = None
) -> Iterator[RunContext]:
    """Begin a run, or go on with an unfinished one of the same recipe; write down how it ended.

    compared: what else tells this run from others of the same recipe.
    """
    require_services(settings, recipe.publish.experiment)
    sign()
    registry = open_registry(settings.database)
    asked, identity = recipe.model_dump(mode="json"), recipe.digest()
    if compared is not None:
        asked |= {"compare": dict(compared)}
        identity = digest_of({name: value for name, value in asked.items() if name != "budget"})
    flow_run = _flow_run()
    name, flow_run_id = _NAME.get() or recipe.publish.name, None
    if flow_run is not None:
        name, flow_run_id = flow_run.name, str(flow_run.id)
    row = registry.begin_run(asked, identity, name=name, git_commit=git_commit(), flow_run_id=flow_run_id)
    bars = ProgressBars()
    run = RunContext(settings, recipe, registry, row, bars)
    token = _CURRENT.set(run)
    try:
        with bars, keeping_missed(*SIGNALLED):
            run.services.ledger.sign(registry.name)
            run.write_to_ledger()
            if not run.reuses_all:  # of which nothing is new
                run.events.begin()
            with run.costs.kept():
                yield run
            run.progress.told()
        run.mlflow.finish("completed")
        registry.finish_run(run.id, "completed")
        _write_end_to_ledger(run)
        run.events.end("completed")
        _tell_end(run)
    except BaseException as error:
        if isinstance(error, GateFailed | AwaitsApproval):
            error.run_id = run.id
        if not isinstance(error, ToBeComputed):
            run.progress.told()
        status, reason = _end_by(error)
        registry.finish_run(run.id, status, reason)
        _write_end_to_ledger(run)
        run.events.end(status, reason)
        try:
            if not isinstance(error, WAITS):
                run.mlflow.finish(status)
        except Exception as also:  # what ended the run matters more, and may have ended MLflow's import
            log.warning("run %s: its end was not told to MLflow: %r", run.id, also)
        if not isinstance(error, (ToBeComputed, *SIGNALLED)):
            _tell_end(run)
        raise
    finally:
        _CURRENT.reset(token)


def _write_end_to_ledger(run: RunContext) -> None:
    try:
        run.write_to_ledger()
    except YarnOpsError as error:  # how it ended matters more; `gc` and a later run write it again
        log.warning("run %s: its end was not written to the store: %s", run.id, error)


def _tell_end(run: RunContext) -> None:
    """Tell who wants to know; nothing of a run that reused all, of which nothing is new.

    A release that fell below its gate tells of itself by an event (`flows.reevaluate`).
    """
    if run.settings.notify is None:
        return
    try:
        view = run.registry.run_view(run.id)
        nothing_new = run.reuses_all and view.approval is None
        if nothing_new or (view.kind, view.status) == ("reevaluate", "rejected"):
            return
        faults = notify.tell(run.settings, notify.run_notice(view, run.page))
    except YarnOpsError as error:  # the registry is away: how the run ended matters more
        faults = (str(error),)
    for fault in faults:
        run.progress.say(fault)
        run_logger().warning(fault)


def reuse_all(
    flow: Callable[P, Result], name: str | None, *inputs: P.args, **named: P.kwargs
) -> Result | None:
    """The result of a flow whose stages are all finished, done without Prefect; None where one is not.

    Then nothing was computed, and the same run goes on in `outcome.run_here`. name: what the run is called;
    None: as its model. GateFailed where it was rejected.
    """
    token, named_token = _REUSES_ALL.set(True), _NAME.set(name)
    try:
        return inspect.unwrap(flow.fn)(*inputs, **named)  # type: ignore[attr-defined,no-any-return]
    except ToBeComputed:
        return None
    finally:
        _REUSES_ALL.reset(token)
        _NAME.reset(named_token)


@contextmanager
def join_run(settings: Settings, run_id: str) -> Iterator[RunContext]:
    """A run that another process does, to help it: here it is neither begun nor ended."""
    sign()
    registry = open_registry(settings.database)
    try:
        view = registry.run_view(run_id)
        row = Run(view.id, view.attempts, view.mlflow_run_id)
        bars = ProgressBars()
        run = RunContext(settings, recorded_recipe(view.recipe, run_id), registry, row, bars, this_process())
        token = _CURRENT.set(run)
        try:
            with bars, keeping_missed(*SIGNALLED), run.costs.kept():
                yield run
        finally:
            _CURRENT.reset(token)
    finally:
        registry.close()


def _end_by(error: BaseException) -> tuple[RunEnd, str]:
    """How a run ends that is left with `error`, and the reason in one line."""
    if isinstance(error, GateFailed):
        return "rejected", str(error)
    if isinstance(error, AwaitsApproval | Stopped):
        return "stopped", str(error)
    if isinstance(error, Pause):
        return "stopped", "suspended in Prefect until it is resumed there"
    if not isinstance(error, Exception):
        return "stopped", "interrupted; run the same recipe again to go on"
    return "failed", str(error) if isinstance(error, YarnOpsError) else service_fault(error) or repr(error)


def _flow_run() -> FlowRun | None:
    try:
        return get_run_context().flow_run  # type: ignore[union-attr]
    except (MissingContextError, AttributeError):
        return None
