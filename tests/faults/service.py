"""A running stack in which something is broken on purpose: runs submitted, watched, healed and judged."""

from __future__ import annotations

import json
import os
import signal
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from yarn_ops.errors import YarnOpsError
from yarn_ops.processes import birth
from yarn_ops.recipe import Recipe, parse_recipe
from yarn_ops.records import Tree
from yarn_ops.registry import Registry, RunView, StageView, open_registry
from yarn_ops.registry import upkeep as records
from yarn_ops.registry.devices import keys_at_work
from yarn_ops.release import open_tracking
from yarn_ops.settings import Settings
from yarn_ops.stack.parts import Stack
from yarn_ops.stack.plan import StackPaths, ensure_plan, read_status
from yarn_ops.store import open_store, store_options
from yarn_ops.store.trees import tree_present
from yarn_ops.train.events import read_events
from yarn_ops.train.launch import PID

RECIPE = Path(__file__).with_name("cell.toml")
STAGES = ("data", "train", "merge", "evaluate", "register")
STAGE_NAMES = {
    "data": "shards",
    "train": "train",
    "merge": "merge",
    "evaluate": "evaluate",
    "register": "publish",
}
SEED_OF = {"data": "data", "train": "train", "merge": "train", "evaluate": "evaluate"}
"""the section whose seed makes a stage, and little before it, anew"""
AT_STEP = 4
CELL_S = 420.0
RECONCILE_AFTER_S = 5.0
POLL_S = 0.02
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"
TRAINER = "yarn_ops.train"


@dataclass(frozen=True)
class Outcome:
    """How one run under a fault ended. `fault` is empty when all is well."""

    seconds: float
    reconciles: int = 0
    attempts: int = 0
    fault: str = ""
    note: str = ""

    def __str__(self) -> str:
        if self.fault:
            return f"✗ {self.fault}"
        how = "by itself" if not self.reconciles else f"reconcile ×{self.reconciles}"
        return ", ".join([f"{self.seconds:.0f} s", how, *filter(None, [self.note])])


class Missed(Exception):
    """The stage was over before the fault could be made."""


@dataclass(frozen=True)
class Submitted:
    """A run that was asked for."""

    recipe: Recipe
    flow_run: str
    began: float


class Service:
    """The stack that runs in `state`, and what its services know of a run."""

    def __init__(self, state: Path) -> None:
        self.paths = StackPaths(state)
        self.stack = Stack(Settings(state_dir=state), self.paths, ensure_plan(self.paths))
        self.settings = self.stack.settings
        assert self.settings.prefect_api_url and self.settings.prefect_auth
        user, _, password = self.settings.prefect_auth.get_secret_value().partition(":")
        self._api = httpx.Client(
            base_url=self.settings.prefect_api_url, auth=(user, password), timeout=20,
        )  # fmt: skip
        self._registry: Registry | None = None
        self._number = int(time.time())

    # A run

    def submit(self, stage: str = "data", environment: Mapping[str, str] | None = None) -> Submitted:
        """A run that has to compute `stage` and what follows itself; its processes get `environment` too."""
        recipe = self._new_recipe(stage)
        deployment = self._get("/deployments/name/extend-context/extend-context")["id"]
        values: dict[str, Any] = {"parameters": {"recipe": recipe.model_dump(mode="json", exclude_none=True)}}
        if environment:
            values["job_variables"] = {"env": dict(environment)}
        answer = self._api.post(f"/deployments/{deployment}/create_flow_run", json=values)
        return Submitted(recipe, answer.raise_for_status().json()["id"], time.monotonic())

    def _new_recipe(self, stage: str) -> Recipe:
        self._number += 1
        values = tomllib.loads(RECIPE.read_text("utf-8"))
        if stage != "register":
            values[SEED_OF[stage]]["seed"] = self._number
        values["publish"]["name"] = f"cell-{self._number}"
        return parse_recipe(values)

    def run(self, submitted: Submitted) -> RunView | None:
        """The registry's run; None before it begins and while the database is away."""
        digest = submitted.recipe.digest()
        try:
            found = [run for run in self.registry.runs(20) if run.recipe_digest == digest]
            return self.registry.run_view(found[0].id) if found else None
        except YarnOpsError:
            return None

    def state(self, submitted: Submitted) -> str:
        """Prefect's; UNKNOWN while its server is away."""
        try:
            return str(self._get(f"/flow_runs/{submitted.flow_run}")["state_type"])
        except httpx.HTTPError:
            return "UNKNOWN"

    def message(self, submitted: Submitted) -> str:
        """What Prefect says of the run's state."""
        return str(self._get(f"/flow_runs/{submitted.flow_run}")["state"]["message"])

    @property
    def registry(self) -> Registry:
        if self._registry is None:
            self._registry = open_registry(self.settings.database)
        return self._registry

    def processes(self, submitted: Submitted) -> list[psutil.Process]:
        """The flow, its trainer, and whatever they have started."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get(RUN_VARIABLE) == submitted.flow_run
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def trainers(self, submitted: Submitted) -> list[psutil.Process]:
        return [process for process in self.processes(submitted) if is_trainer(process)]

    @contextmanager
    def held_in(self, submitted: Submitted, stage: str) -> Iterator[None]:
        """Within the block, the run's processes stand still in the midst of that stage.

        Missed: the stage was over. TimeoutError: it did not begin.
        """
        wait(lambda: self._at_work(submitted, stage), CELL_S, f"did not reach {stage}")
        held = self.processes(submitted)
        try:
            for process in held:
                _signal(process, signal.SIGSTOP)
            if self._at_work(submitted, stage) is None or not held:
                raise Missed(stage)
            yield
        finally:
            for process in held:
                _signal(process, signal.SIGCONT)

    def _at_work(self, submitted: Submitted, stage: str) -> StageView | None:
        """The stage, while it is computed (and has told of some steps). Missed when it is over."""
        run = self.run(submitted)
        if run is None:
            return None
        wanted = [one for one in run.stages if one.stage == STAGE_NAMES[stage]]
        if stage == "evaluate":
            wanted = wanted[1:]  # the base is measured first
        if any(one.status == "completed" for one in wanted):
            raise Missed(stage)
        for one in wanted:
            if one.status == "running" and (stage != "train" or self._step(one) >= AT_STEP):
                return one
        return None

    def _step(self, stage: StageView) -> int:
        log = self.paths.home / "work" / stage.key[:16] / "events.jsonl"
        return max((event.get("step", 0) for event in read_events(log)), default=0)

    # The parts

    def kill_part(self, name: str) -> None:
        """SIGKILL to a part of the stack and all that it has started, but not to the runs of a worker."""
        parts: Any = read_status(self.paths)["parts"]
        try:
            root = psutil.Process(parts[name]["pid"])
            family = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in family:
            try:
                run = RUN_VARIABLE in process.environ()
            except psutil.Error:
                continue
            if not run:
                _signal(process, signal.SIGKILL)

    # Recovery

    def let_it_end(self, submitted: Submitted, within_s: float = CELL_S) -> int:
        """Until the run is completed, with reconciles at an interval; how many it took."""
        reconciles, deadline = 0, time.monotonic() + within_s
        stuck_since: float | None = None
        while True:
            state, alive = self.state(submitted), bool(self.processes(submitted))
            now = time.monotonic()
            if state == "COMPLETED" and not alive:
                return reconciles
            if now > deadline:
                raise TimeoutError(f"still {state} after {reconciles} reconciles")
            stuck = not alive and state in (*FINAL, "RUNNING")
            stuck_since = (stuck_since or now) if stuck else None
            if stuck_since is not None and now - stuck_since > RECONCILE_AFTER_S and self.reconcile():
                reconciles, stuck_since = reconciles + 1, None
            time.sleep(0.25)

    def reconcile(self) -> bool:
        """What the scheduled reconciler does; whether it came to its end."""
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        from flows.reconcile import settle

        assert self.settings.prefect_auth is not None
        auth = self.settings.prefect_auth.get_secret_value()
        here = {PREFECT_API_URL: self.settings.prefect_api_url, PREFECT_API_AUTH_STRING: auth}
        try:
            with temporary_settings(here):
                settle(self.settings)
        except (YarnOpsError, httpx.HTTPError):  # a service is not back yet: the next one will
            return False
        return True

    # Judgement

    def ended(self, submitted: Submitted, reconciles: int, note: str = "") -> Outcome:
        """The outcome of a run that has come to its end."""
        run = self.run(submitted)
        attempts = run.attempts if run is not None else 0
        seconds = time.monotonic() - submitted.began
        return Outcome(seconds, reconciles, attempts, self._fault(submitted, run), note)

    def _fault(self, submitted: Submitted, run: RunView | None) -> str:
        """What is wrong with how it ended; nothing when all is well."""
        if run is None or run.status != "completed":
            return f"run is {run.status if run else 'unknown'}"
        digest, name = submitted.recipe.digest(), submitted.recipe.publish.name
        same = [one for one in self.registry.runs(200) if one.recipe_digest == digest]
        if len(same) != 1:
            return f"{len(same)} runs"
        tracking = open_tracking(self.settings)
        versions = [one for one in tracking.models() if one.name == name]
        if [one.version for one in versions] != [1] or not versions[0].passed:
            return f"versions {[(one.version, one.tags.get('gate')) for one in versions]}"
        wrong = self._mlflow_fault(run.id) or self._left_behind(submitted)
        if wrong:
            return wrong
        store = open_store(self.settings.store, store_options(self.settings))
        for stage in run.stages:
            tree = (stage.record or {}).get("tree")
            if tree and not tree_present(store, Tree(**tree)):
                return f"the artifact of {stage.stage} is lost"
        return ""

    def _mlflow_fault(self, run_id: str) -> str:
        from mlflow import MlflowClient

        client = MlflowClient(self.settings.mlflow, self.settings.mlflow)
        experiment = client.get_experiment_by_name("yarn-ops").experiment_id
        runs = client.search_runs([experiment], f"tags.run = '{run_id}'")
        states = [one.info.status for one in runs]
        return "" if states == ["FINISHED"] else f"MLflow runs {states}"

    def _left_behind(self, submitted: Submitted) -> str:
        if records.free_leases(self.registry):
            return "a stale lease"
        if keys_at_work(self.registry):
            return "a device that nobody uses is taken"
        if self.processes(submitted) or self._orphans():
            return "an orphan process"
        return ""

    def _orphans(self) -> list[int]:
        found = []
        for record in (self.paths.home / "work").glob(f"*/{PID}"):
            written = json.loads(record.read_bytes())
            pid, started = written["pid"], written["started"]
            if psutil.pid_exists(pid) and birth(pid) == started:
                found.append(pid)
        return found

    def _get(self, path: str) -> Any:
        return self._api.get(path).raise_for_status().json()


def is_trainer(process: psutil.Process) -> bool:
    try:
        return TRAINER in process.cmdline()
    except psutil.Error:
        return False


def wait(holds: Callable[[], Any], timeout_s: float, otherwise: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(POLL_S)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return
