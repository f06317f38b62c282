"""`yarn-ops extend` as processes that can be watched and killed, on one state directory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from yarn_ops.errors import RegistryError
from yarn_ops.registry import Registry, RunView, StageView, open_registry
from yarn_ops.release import Tracking, open_tracking
from yarn_ops.settings import Settings
from yarn_ops.train.events import read_events
from yarn_ops.train.launch import PID

WAIT_S = 600  # other programs may keep the machine busy
POLL_S = 0.02
GONE_S = 30


class Extension:
    """A running `yarn-ops extend`; its output goes to a file, so that no pipe ties anybody to it."""

    def __init__(self, command: list[str], environment: dict[str, str], output: Path) -> None:
        self._output = output
        with output.open("wb") as file:
            self.process = psutil.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, timeout_s: float = WAIT_S) -> int:
        return int(self.process.wait(timeout_s))

    def kill(self) -> None:
        """SIGKILL to this one process."""
        self.process.kill()
        self.process.wait()

    def wait_until(self, condition: Callable[[], Any], timeout_s: float = WAIT_S) -> None:
        """Until the condition holds. AssertionError when the process has ended before."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.output}"
            assert time.monotonic() < deadline, self.output
            time.sleep(POLL_S)

    @property
    def output(self) -> str:
        return self._output.read_text("utf-8")


class Workplace:
    """A state directory, a recipe, and what the services there know."""

    def __init__(self, folder: Path, environment: dict[str, str], recipe: str) -> None:
        self.state = folder / "state"
        self._folder = folder
        self._environment = {**environment, "YARN_OPS_STATE_DIR": str(self.state)}
        self._settings = Settings(state_dir=self.state)
        self._started = 0
        self._registry: Registry | None = None
        (folder / "recipe.toml").write_text(recipe, "utf-8")

    def start(self, *changes: str, **variables: str) -> Extension:
        """`yarn-ops extend` with these `--set` and environment variables."""
        self._started += 1
        command = [sys.executable, "-m", "yarn_ops.cli", "extend", str(self._folder / "recipe.toml")]
        for change in changes:
            command += ["--set", change]
        output = self._folder / f"output-{self._started}.txt"
        return Extension(command, {**self._environment, **variables}, output)

    def run(self) -> RunView | None:
        """The newest run; None before the first."""
        try:
            if self._registry is None:
                self._registry = open_registry(self._settings.database)
            return self._registry.run_view("last")
        except RegistryError:
            return None

    def stages(self) -> tuple[StageView, ...]:
        """Of the newest run, in the flow's order."""
        run = self.run()
        return () if run is None else run.stages

    def steps(self) -> list[int]:
        """The training steps that trainers at work here have told of."""
        logs = (self.state / "work").glob("*/events.jsonl")
        return [event["step"] for log in logs for event in read_events(log) if event["event"] == "step"]

    def trainer(self) -> psutil.Process | None:
        """The trainer at work here, if one is."""
        (record,) = (self.state / "work").glob(f"*/{PID}")
        pid = json.loads(record.read_bytes())["pid"]
        return psutil.Process(pid) if psutil.pid_exists(pid) else None

    def curve(self) -> bytes:
        """The newest run's loss curve, as its adapter keeps it."""
        (adapter,) = (stage.record for stage in self.stages() if stage.stage == "train")
        assert adapter is not None
        return (Path(adapter["tree"]["uri"].removeprefix("file://")) / "curve.jsonl").read_bytes()

    @property
    def tracking(self) -> Tracking:
        return open_tracking(self._settings)

    def mlflow_runs(self) -> list[Any]:
        from mlflow import MlflowClient

        client = MlflowClient(self._settings.mlflow, self._settings.mlflow)
        return list(client.search_runs([client.get_experiment_by_name("yarn-ops").experiment_id]))

    def processes(self) -> list[psutil.Process]:
        """Every process that was started for this state directory and still runs."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("YARN_OPS_STATE_DIR") == str(self.state)
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def fault(self, finished: set[str]) -> str:
        """What is wrong with a newest run that should be complete and have repeated none of `finished`."""
        run = self.run()
        if run is None or run.status != "completed":
            return f"run is {run.status if run else 'unknown'}"
        repeated = [one.stage for one in run.stages if one.key in finished and one.attempts != 1]
        if repeated:
            return f"repeated {repeated}"
        versions = [version.version for version in self.tracking.models()]
        runs = [(one.data.tags["run"], one.info.status) for one in self.mlflow_runs()]
        if versions != [1] or runs != [(run.id, "FINISHED")]:
            return f"versions {versions}, MLflow runs {runs}"
        return ""

    def close(self) -> None:
        if self._registry is not None:
            self._registry.close()

    def nobody_is_left(self) -> bool:
        """Whether all of these processes end by themselves in a while."""
        _, left = psutil.wait_procs(self.processes(), timeout=GONE_S)
        return not left
