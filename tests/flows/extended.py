"""The small recipe on one state directory: what one test computes the next one reuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from person import Answer, Person, Typist
from prefect_here import at, client
from small_recipe import SMALL

from yarn_ops.catalogue import ModelVersion
from yarn_ops.registry import RunView, StageView, open_registry
from yarn_ops.release import open_tracking
from yarn_ops.settings import Settings

ANY_QUALITY = (
    "gate.min_long_gain=0.001", "gate.max_long_growth=1000", "gate.max_short_growth=1000",
)  # fmt: skip


class Workplace:
    """A recipe, a state directory, and who types commands there."""

    first_versions: dict[int, ModelVersion]
    """as they were after the first run, whatever other tests have made since"""
    first_mlflow_runs: dict[str, Any]

    def __init__(self, folder: Path, typist: Typist, prefect_api: str) -> None:
        self.recipe_path = folder / "small.toml"
        self.recipe_path.write_text(SMALL, "utf-8")
        self.prefect_api = prefect_api
        self.settings = Settings(state_dir=folder / "state")
        self.alone = {**os.environ, "YARN_OPS_STATE_DIR": str(self.settings.home)}
        """the environment in which no Prefect server is named"""
        self._environment = {**self.alone, **at(prefect_api)}
        self._person, self._alone = Person(typist, self._environment), Person(typist, self.alone)

    def types(self, *arguments: object, **variables: str) -> Answer:
        return self._person.types(*arguments, **variables)

    def types_alone(self, *arguments: object, **variables: str) -> Answer:
        """A command where no Prefect server is named."""
        return self._alone.types(*arguments, **variables)

    def extend(self, *changes: str, status: int = 0, **variables: str) -> RunView:
        """The run that `yarn-ops extend` made of the recipe with these `--set`."""
        options = [word for change in changes for word in ("--set", change)]
        answer = self.types("extend", self.recipe_path, *options, **variables)
        assert answer.status == status, answer.out + answer.err
        self.complaint = answer.complaint
        return self.run()

    def extend_twice_at_once(self) -> RunView:
        command = [sys.executable, "-m", "yarn_ops.cli", "extend", str(self.recipe_path)]
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        for process in [subprocess.Popen(command, env=self._environment, **options) for _ in range(2)]:
            told, _ = process.communicate(timeout=500)
            assert process.returncode == 0, told
        return self.run()

    def run(self) -> RunView:
        registry = open_registry(self.settings.database)
        try:
            return registry.run_view("last")
        finally:
            registry.close()

    def runs(self) -> list[RunView]:
        """All of them, whole."""
        registry = open_registry(self.settings.database)
        try:
            return [registry.run_view(run.id) for run in registry.runs()]
        finally:
            registry.close()

    def pull(self, to: Path, **variables: str) -> dict[str, bytes]:
        """The files of the pulled champion."""
        answer = self.types("pull", "small", "--alias", "champion", "--to", to, **variables)
        assert answer.status == 0, answer.err
        return {
            path.relative_to(to).as_posix(): path.read_bytes() for path in to.rglob("*") if path.is_file()
        }

    def versions(self) -> dict[int, ModelVersion]:
        return {version.version: version for version in open_tracking(self.settings).models()}

    def champion(self) -> int:
        (number,) = (number for number, version in self.versions().items() if "champion" in version.aliases)
        return number

    def mlflow_runs(self) -> dict[str, Any]:
        """By their names: our runs' ids."""
        client = self.mlflow()
        experiment = client.get_experiment_by_name("yarn-ops")
        return {run.data.tags["run"]: run for run in client.search_runs([experiment.experiment_id])}

    def mlflow(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.settings.mlflow, self.settings.mlflow)

    def prefect_run(self, run: RunView) -> dict[str, Any]:
        answer = client(self.prefect_api).get(f"/flow_runs/{run.flow_run_id}").raise_for_status()
        return dict(answer.json())


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, typist: Typist, prefect_api: str) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("extend"), typist, prefect_api)


@pytest.fixture(scope="module")
def first(workplace: Workplace) -> RunView:
    """The run of two identical commands, started at once on a fresh state directory."""
    run = workplace.extend_twice_at_once()
    workplace.first_versions, workplace.first_mlflow_runs = workplace.versions(), workplace.mlflow_runs()
    return run


def names(run: RunView) -> tuple[str, ...]:
    return tuple(stage.stage for stage in run.stages)


def computed(run: RunView) -> list[str]:
    return [stage.stage for stage in run.stages if not stage.reused]


def the(stage: str, run: RunView) -> StageView:
    (found,) = (one for one in run.stages if one.stage == stage)
    return found


def directory(stage: StageView) -> Path:
    assert stage.record is not None
    return Path(unquote(urlsplit(stage.record["tree"]["uri"]).path))
