"""The workshop of one run: the services that stages are run with, opened from the settings."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from prefect import runtime
from prefect.context import get_run_context
from prefect.exceptions import MissingContextError, TerminationSignal

from flows import warm_trainer as warming
from flows.liveness import queue_priority, sign
from flows.progress import Progress
from yarn_ops.bars import Bars
from yarn_ops.cluster import ClusterUnits
from yarn_ops.data.files import Files
from yarn_ops.data.shards import LocalUnits, Units
from yarn_ops.digests import digest_of
from yarn_ops.errors import GateFailed, RecipeError, Stopped, YarnOpsError
from yarn_ops.processes import keeping_missed
from yarn_ops.recipe import Recipe, recorded_recipe
from yarn_ops.records import AnyRecord, Local, Record, Tree
from yarn_ops.registry import Registry, Run, RunEnd, copies, open_registry
from yarn_ops.release import Tracking, open_tracking
from yarn_ops.services import require_services
from yarn_ops.settings import Settings
from yarn_ops.store import Store, StoreOptions, files_for, open_store, store_options
from yarn_ops.store.ledger import Ledger
from yarn_ops.store.trees import fetch_tree
from yarn_ops.train.warm_trainer import WarmTrainer, call_by_name

STEP_FIGURES = (
    "loss",
    "learning_rate",
    "gradient_norm",
    "tokens_per_s",
    "step_s",
    "data_wait_s",
    "peak_bytes",
    "flops_per_s",
    "mfu",
    "gpu_utilisation",
)

LOOK_BACK_RUNS = 100
SIGNALLED = (KeyboardInterrupt, TerminationSignal)
"""what asks a run to stop: a key or a command, Prefect"""

log = logging.getLogger(__name__)

_CURRENT: ContextVar[Workshop] = ContextVar("workshop")


class Workshop:
    """One run's registry row, store, MLflow run and working directories.

    The MLflow run is opened when the first stage has something to log: a run that only reuses leaves none.
    """

    def __init__(self, settings: Settings, recipe: Recipe, registry: Registry, run: Run, bars: Bars) -> None:
        self.settings = settings
        self.recipe = recipe
        self.registry = registry
        self.run = run
        self.progress = Progress(bars)
        self._verified: dict[str, Path] = {}
        self.makers: dict[str, Callable[[], Record]] = {}
        """{digest of a directory: has the stage that this run has it from make it again, if it is gone}"""
        self.made_again: set[str] = set()
        self._logged_step: int | None = None
        self.earlier_steps = 0
        """of the legs before the one at work: where its losses begin in MLflow"""
        self.part = ""
        """of a run with several arms: which one is at work; "" in a run of one"""
        self.waited_s = 0.0
        """for the device, in all"""
        self.trainer: WarmTrainer | None = None
        """that waits for this run's first leg"""

    @cached_property
    def store_options(self) -> StoreOptions:
        return store_options(self.settings)

    @cached_property
    def store(self) -> Store:
        return open_store(self.settings.store, self.store_options)

    @cached_property
    def ledger(self) -> Ledger:
        """What this registry writes of itself into the store."""
        return Ledger(self.store, self.registry.id)

    def keep(self) -> None:
        """Have the store know the run as far as it came, so that a lost registry can be made again."""
        self.ledger.keep_run(copies.copy_run(self.registry, self.run.id))

    @cached_property
    def files(self) -> Files:
        return files_for(self.store_options)

    def units(self, work: Path) -> Units:
        """Where documents are prepared: in this process, or on the cluster that the settings name."""
        if self.settings.cluster is None:
            return LocalUnits(work / "units", self.files, os.cpu_count() or 1)
        return ClusterUnits(self.settings, work / "units", self.ledger)

    @cached_property
    def tracking(self) -> Tracking:
        return open_tracking(self.settings)

    @cached_property
    def device(self) -> Literal["cpu", "cuda"]:
        found: Literal["cpu", "cuda"] = self.call(
            "yarn_ops.models.device:resolve_device", self.settings.device
        )
        return found

    @cached_property
    def device_name(self) -> str:
        """The device as everybody who shares it calls it."""
        if self.device == "cpu":
            return f"{platform.node()}/cpu"
        return f"gpu-{self.call('yarn_ops.models.device:gpu_uuid')}"

    @cached_property
    def processes(self) -> int:
        """That may train together: one for every GPU, unless the settings say otherwise."""
        if self.settings.processes is not None or self.device == "cpu":
            return self.settings.processes or 1
        count: int = self.call("torch.cuda:device_count")
        return count

    def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        """What needs torch, by its name: in the trainer to come, which has it sooner, or here."""
        call = call_by_name if self.trainer is None else self.trainer.call
        return call(name, *arguments, **named)

    @cached_property
    def rank(self) -> int:
        """Who waits for the device with a lower one gets it first: the priority of the run's work queue."""
        return queue_priority()

    @cached_property
    def mlflow_run_id(self) -> str:
        """The MLflow run of this run: opened once, found again by every later attempt."""
        if self.run.mlflow_run_id is not None:
            return self.run.mlflow_run_id
        run_id = self.tracking.start_run(
            self.recipe.publish.experiment,
            self.run.id,
            {"run": self.run.id, "recipe": self.recipe.digest(), "git_commit": git_commit() or "unknown"},
        )
        self.tracking.log_params(run_id, flat_params(self.recipe))
        tied = self.registry.set_mlflow_run(self.run.id, run_id)
        self.tracking.keep_run(self.recipe.publish.experiment, self.run.id, tied)
        return tied

    def log_training_step(self, event: Mapping[str, Any], earlier_steps: int) -> None:
        """One step's figures to MLflow, `earlier_steps` after those of the legs before; each step once.

        A trainer that resumes reports the steps before its checkpoint again.
        """
        prefix = f"train/{self.part}".rstrip("/")
        step = earlier_steps + event["step"]
        if self._logged_step is None:
            self._logged_step = self.tracking.last_step(self.mlflow_run_id, f"{prefix}/loss")
        if step <= self._logged_step:
            return
        self._logged_step = step
        figures = {f"{prefix}/{name}": event[name] for name in STEP_FIGURES if event.get(name) is not None}
        self.tracking.log_metrics(self.mlflow_run_id, step, figures)

    @contextmanager
    def named(self, part: str) -> Iterator[None]:
        """Within the block, figures and progress are those of one part of the run."""
        self.part, self._logged_step = part, None
        try:
            yield
        finally:
            self.part, self._logged_step = "", None

    def close_mlflow_run(self, status: RunEnd) -> None:
        """Tell MLflow how the run ended, if this attempt or an earlier one has opened a run there."""
        if self.run.mlflow_run_id is not None or "mlflow_run_id" in self.__dict__:
            self.tracking.finish(self.mlflow_run_id, status)

    def work_dir(self, key: str) -> Path:
        """The working directory of a stage; it outlives a crash, so that the next attempt goes on in it."""
        path = self.settings.home / "work" / key[:16]
        path.mkdir(parents=True, exist_ok=True)
        return path

    def discard(self, work_dir: Path) -> None:
        shutil.rmtree(work_dir, ignore_errors=True)

    def fetch(self, record: AnyRecord) -> Local[AnyRecord]:
        """The record with its tree on this machine, verified once a process."""
        if record.tree is None:
            return Local(record, self.settings.home)
        return Local(record, self._fetch_tree(record.tree))

    def _fetch_tree(self, tree: Tree) -> Path:
        path = self._verified.get(tree.digest)
        if path is None or not path.exists():  # the cache may have been swept since
            self._verified[tree.digest] = fetch_tree(self.store, tree, self.settings.home / "cache")
        elif path.is_relative_to(self.settings.home / "cache"):
            os.utime(path)  # as `fetch_tree` does: it is in use from now
        return self._verified[tree.digest]


def workshop() -> Workshop:
    """The workshop of the run in progress."""
    return _CURRENT.get()


@contextmanager
def open_workshop(
    settings: Settings, recipe: Recipe, compared: Mapping[str, Any] | None = None
) -> Iterator[Workshop]:
    """Begin a run, or go on with an unfinished one of the same recipe; write down how it ended."""
    require_services(settings, recipe.publish.experiment)
    sign()
    registry = open_registry(settings.database)
    asked, identity = recipe.model_dump(mode="json"), recipe.digest()
    if compared is not None:
        asked |= {"compare": dict(compared)}
        identity = digest_of(asked)
    run = registry.begin_run(asked, identity, git_commit=git_commit(), flow_run_id=_flow_run_id())
    bars = Bars()
    shop = Workshop(settings, recipe, registry, run, bars)
    token = _CURRENT.set(shop)
    try:
        with bars, keeping_missed(*SIGNALLED):
            shop.ledger.sign(registry.name)
            shop.keep()
            yield shop
        shop.close_mlflow_run("completed")
        registry.finish_run(run.id, "completed")
        _keep_end(shop)
    except BaseException as error:
        status, reason = _end_by(error)
        registry.finish_run(run.id, status, reason)
        _keep_end(shop)
        try:
            shop.close_mlflow_run(status)
        except Exception as also:  # what ended the run matters more, and may have ended MLflow's import
            log.warning("run %s: its end was not told to MLflow: %r", run.id, also)
        raise
    finally:
        _CURRENT.reset(token)


def _keep_end(shop: Workshop) -> None:
    try:
        shop.keep()
    except YarnOpsError as error:  # how it ended matters more; `gc` and a later run write it again
        log.warning("run %s: its end was not written to the store: %s", shop.run.id, error)


@contextmanager
def join_workshop(settings: Settings, run_id: str) -> Iterator[Workshop]:
    """The workshop of a run that another process does: here it is neither begun nor ended."""
    sign()
    registry = open_registry(settings.database)
    try:
        view = registry.run_view(run_id)
        run = Run(view.id, view.attempts, view.mlflow_run_id)
        bars = Bars()
        token = _CURRENT.set(Workshop(settings, recorded_recipe(view.recipe, run_id), registry, run, bars))
        try:
            with bars, keeping_missed(*SIGNALLED):
                yield workshop()
        finally:
            _CURRENT.reset(token)
    finally:
        registry.close()


@contextmanager
def warm_trainer(shop: Workshop) -> Iterator[None]:
    """Within the block a trainer imports what it needs, and does what needs torch, while the run still
    prepares its base and its data; one that was started early is that one.

    Only for a run that a worker does, which somebody waits for, and only if it will train, as far as the
    registry knows. A typed command finds its faults first.
    """
    started = warming.take()
    if runtime.deployment.id is None or _was_trained(shop):
        if started is not None:
            started.close()
        yield
        return
    shop.trainer = started or warming.trainer(shop.settings)
    try:
        yield
    finally:
        shop.trainer.close()


def _was_trained(shop: Workshop) -> bool:
    """Whether a recent run of the same base, method, data and training came to its end."""
    asked = shop.recipe.training_inputs()
    ended = (run for run in shop.registry.runs(LOOK_BACK_RUNS) if run.status in ("completed", "rejected"))
    for run in ended:
        with suppress(RecipeError):  # of a version that asked for other things
            if recorded_recipe(run.recipe, run.id).training_inputs() == asked:
                return True
    return False


def _end_by(error: BaseException) -> tuple[RunEnd, str]:
    """How a run ends that is left with `error`, and the reason in one line."""
    if isinstance(error, GateFailed):
        return "rejected", str(error)
    if isinstance(error, Stopped):
        return "stopped", str(error)
    if not isinstance(error, Exception):
        return "stopped", "interrupted; run the same recipe again to go on"
    return "failed", str(error) if isinstance(error, YarnOpsError) else repr(error)


def flat_params(recipe: Recipe) -> dict[str, str]:
    """{section.key: value} as MLflow shows parameters; MLflow keeps at most 6,000 characters of a value."""
    sections = recipe.model_dump(mode="json")
    return {
        f"{name}.{key}": str(value)[:6000]
        for name, values in sections.items()
        for key, value in values.items()
    }


def git_commit() -> str | None:
    """The commit of the project's checkout; None where the package is installed without one."""
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():  # site-packages may lie in a repository of somebody else
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(checkout), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _flow_run_id() -> str | None:
    try:
        return str(get_run_context().flow_run.id)  # type: ignore[union-attr]
    except (MissingContextError, AttributeError):
        return None
