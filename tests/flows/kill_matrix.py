"""The kill matrix: SIGKILL of each part of the stack in each stage of a run, and what comes of it.

`infra/faults` runs all of it. A cell is good when, by itself or by the reconciler, the run is finished once,
with one model version, no orphan process, no stale lease and no lost artifact.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from yarn_ops.errors import YarnOpsError
from yarn_ops.recipe import Recipe, parse_recipe
from yarn_ops.records import Tree
from yarn_ops.registry import Registry, RunView, open_registry
from yarn_ops.registry import upkeep as records
from yarn_ops.release import open_tracking
from yarn_ops.settings import Settings
from yarn_ops.stack.parts import Stack
from yarn_ops.stack.plan import Layout, ensure_plan, read_status
from yarn_ops.store import open_store, store_options
from yarn_ops.store.trees import tree_present
from yarn_ops.train.events import read_events
from yarn_ops.train.launch import PID

VICTIMS = ("trainer", "flow", "worker", "worker+flow", "prefect", "mlflow", "s3", "postgres")
STAGES = ("data", "train", "merge", "evaluate", "register")
STAGE_NAMES = {
    "data": "shards",
    "train": "train",
    "merge": "merge",
    "evaluate": "evaluate",
    "register": "publish",
}
PARTS = {
    "worker": ("worker-yarn-ops-gpu",),
    "prefect": ("prefect",),
    "mlflow": ("mlflow",),
    "s3": ("s3-proxy", "s3-object", "s3-container", "s3-account"),
    "postgres": ("postgres",),
}
KILL_AT_STEP = 4
CELL_S = 420.0
RECONCILE_AFTER_S = 5.0
POLL_S = 0.05
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"


@dataclass(frozen=True)
class Outcome:
    """Of one cell. `fault` is empty when it is good."""

    seconds: float
    reconciles: int
    attempts: int
    fault: str = ""

    def __str__(self) -> str:
        if self.fault:
            return self.fault
        how = "by itself" if not self.reconciles else f"reconcile ×{self.reconciles}"
        return f"{self.seconds:.0f} s, {how}"


class Matrix:
    """Cells on a stack that runs in `state`."""

    def __init__(self, state: Path, recipe: dict[str, Any]) -> None:
        self.layout = Layout(state)
        self.stack = Stack(Settings(state_dir=state), self.layout, ensure_plan(self.layout))
        self.settings = self.stack.settings
        self._recipe = recipe
        assert self.settings.prefect_api_url and self.settings.prefect_auth
        user, _, password = self.settings.prefect_auth.get_secret_value().partition(":")
        self._api = httpx.Client(
            base_url=self.settings.prefect_api_url, auth=(user, password), timeout=20,
        )  # fmt: skip
        self._registry: Registry | None = None

    def cell(self, victim: str, stage: str, number: int) -> Outcome | None:
        """Kill `victim` in `stage` of a run of its own; None where there is nothing to kill."""
        if victim == "trainer" and stage != "train":
            return None
        recipe = self._recipe_of(number)
        began = time.monotonic()
        flow_run = self._submit(recipe)
        try:
            self._wait(lambda: self._reached(recipe, stage), f"did not reach {stage}")
            self._kill(victim, flow_run)
            reconciles = self._let_it_end(flow_run)
            fault = self._fault(recipe, flow_run)
        except TimeoutError as late:
            return Outcome(time.monotonic() - began, 0, 0, str(late))
        run = self._run(recipe)
        return Outcome(time.monotonic() - began, reconciles, run.attempts if run else 0, fault)

    # The run

    def _recipe_of(self, number: int) -> Recipe:
        values = json.loads(json.dumps(self._recipe))
        values["data"]["seed"] = number
        values["publish"]["name"] = f"cell-{number}"
        return parse_recipe(values)

    def _submit(self, recipe: Recipe) -> str:
        deployment = self._get("/deployments/name/extend-context/extend-context")["id"]
        parameters = {"recipe": recipe.model_dump(mode="json", exclude_none=True)}
        return self._post(f"/deployments/{deployment}/create_flow_run", parameters=parameters)["id"]

    def _run(self, recipe: Recipe) -> RunView | None:
        """The run of this recipe; None before it begins and while the database is away."""
        digest = recipe.digest()
        try:
            registry = self._open()
            found = [run for run in registry.runs(50) if run.recipe_digest == digest]
            return registry.run_view(found[0].id) if found else None
        except YarnOpsError:
            return None

    def _reached(self, recipe: Recipe, stage: str) -> bool:
        run = self._run(recipe)
        if run is None:
            return False
        wanted = STAGE_NAMES[stage]
        done = [one.stage for one in run.stages if one.status == "completed"]
        if stage == "evaluate" and "merge" not in done:
            return False
        at_work = [one for one in run.stages if one.stage == wanted and one.status == "running"]
        if stage == "train" and at_work:
            log = self.layout.home / "work" / at_work[0].key[:16] / "events.jsonl"
            return any(event.get("step", 0) >= KILL_AT_STEP for event in read_events(log))
        return bool(at_work) or "publish" in done

    # Death

    def _kill(self, victim: str, flow_run: str) -> None:
        if victim == "trainer":
            for process in self._processes_of(flow_run):
                if "yarn_ops.train" in process.cmdline():
                    process.kill()
            return
        for part in PARTS.get(victim.removesuffix("+flow"), ()):
            _kill_tree(read_status(self.layout)["parts"][part]["pid"])  # type: ignore[index]
        if victim in ("flow", "worker+flow"):
            for process in self._processes_of(flow_run):
                if "yarn_ops.train" not in process.cmdline():
                    process.kill()

    def _processes_of(self, flow_run: str) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get(RUN_VARIABLE) == flow_run
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    # Recovery

    def _let_it_end(self, flow_run: str) -> int:
        """Until the run is completed, with reconciles at an interval; how many it took."""
        reconciles, began = 0, time.monotonic()
        stuck_since: float | None = None
        while True:
            state, alive = self._state(flow_run), bool(self._processes_of(flow_run))
            now = time.monotonic()
            if state == "COMPLETED" and not alive:
                return reconciles
            if now - began > CELL_S:
                raise TimeoutError(f"still {state} after {reconciles} reconciles")
            stuck = not alive and state in (*FINAL, "RUNNING")
            stuck_since = (stuck_since or now) if stuck else None
            if stuck_since is not None and now - stuck_since > RECONCILE_AFTER_S and self._reconcile():
                reconciles, stuck_since = reconciles + 1, None
            time.sleep(0.5)

    def _reconcile(self) -> bool:
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

    def _state(self, flow_run: str) -> str:
        try:
            return str(self._get(f"/flow_runs/{flow_run}")["state_type"])
        except httpx.HTTPError:
            return "UNKNOWN"

    # Judgement

    def _fault(self, recipe: Recipe, flow_run: str) -> str:
        """What is wrong with how it ended; nothing when all is well."""
        registry, run = self._open(), self._run(recipe)
        assert run is not None
        if run.status != "completed":
            return f"run is {run.status}"
        same = [one for one in registry.runs(200) if one.recipe_digest == recipe.digest()]
        if len(same) != 1:
            return f"{len(same)} runs"
        versions = [one for one in open_tracking(self.settings).models() if one.name == recipe.publish.name]
        if [one.version for one in versions] != [1] or not versions[0].passed:
            return f"versions {[(one.version, one.tags.get('gate')) for one in versions]}"
        if records.free_leases(registry):
            return "a stale lease"
        if self._processes_of(flow_run) or self._trainers():
            return "an orphan process"
        store = open_store(self.settings.store, store_options(self.settings))
        for stage in run.stages:
            tree = (stage.record or {}).get("tree")
            if tree and not tree_present(store, Tree(**tree)):
                return f"the artifact of {stage.stage} is lost"
        return ""

    def _trainers(self) -> list[int]:
        found = []
        for record in (self.layout.home / "work").glob(f"*/{PID}"):
            written = json.loads(record.read_bytes())
            pid, started = written["pid"], written["started"]
            if psutil.pid_exists(pid) and psutil.Process(pid).create_time() == started:
                found.append(pid)
        return found

    def _open(self) -> Registry:
        if self._registry is None:
            self._registry = open_registry(self.settings.database)
        return self._registry

    def _wait(self, holds: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + CELL_S
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError(otherwise)
            time.sleep(POLL_S)

    def _get(self, path: str) -> Any:
        return self._api.get(path).raise_for_status().json()

    def _post(self, path: str, **values: Any) -> Any:
        return self._api.post(path, json=values).raise_for_status().json()


def _kill_tree(pid: int) -> None:
    """SIGKILL to a server and what it started."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def table(
    outcomes: dict[tuple[str, str], Outcome | None], victims: Sequence[str], stages: Sequence[str]
) -> str:
    """In Markdown: a row a victim, a column a stage."""
    lines = [f"| killed | {' | '.join(stages)} |", f"|---|{'---|' * len(stages)}"]
    for victim in victims:
        cells = []
        for stage in stages:
            outcome = outcomes.get((victim, stage), "not run")
            cells.append("–" if outcome is None else str(outcome))
        lines.append(f"| {victim} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="state directory of a running stack")
    parser.add_argument("--recipe", type=Path, default=Path(__file__).with_suffix(".toml"))
    parser.add_argument("--victims", default=",".join(VICTIMS))
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument(
        "--until", type=float, default=float("inf"), help="seconds after which no cell begins"
    )
    asked = parser.parse_args()
    victims, stages = asked.victims.split(","), asked.stages.split(",")
    matrix = Matrix(asked.state.absolute(), tomllib.loads(asked.recipe.read_text("utf-8")))
    began, outcomes = time.monotonic(), {}
    first = int(time.time())
    for stage in stages:
        for victim in victims:
            if time.monotonic() - began > asked.until:
                continue
            outcome = matrix.cell(victim, stage, first + len(outcomes))
            outcomes[victim, stage] = outcome
            if outcome is not None:
                print(f"{victim} in {stage}: {outcome}, {outcome.attempts} attempts", flush=True)
    print(table(outcomes, victims, stages))
    sys.exit(any(outcome is not None and outcome.fault for outcome in outcomes.values()))


if __name__ == "__main__":
    main()
