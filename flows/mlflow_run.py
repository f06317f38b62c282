"""The MLflow run of a run, and the sink through which a trainer's steps reach it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from prefect.settings import PREFECT_UI_URL

from yarn_ops.evals.report.verdict import GLANCE
from yarn_ops.recipe import Recipe
from yarn_ops.registry import Registry, Run, RunEnd, RunView
from yarn_ops.release import PICTURES, Tracking

STEP_FIGURES = (
    "loss", "learning_rate", "gradient_norm", "tokens_per_s", "step_s", "data_wait_s", "peak_bytes",
    "flops_per_s", "mfu", "gpu_utilisation",
)  # fmt: skip
"""of a step's event: what is logged as metrics"""
NOTE = "mlflow.note.content"
"""tag that MLflow shows as a run's description, in Markdown"""
PARAMETER_CHARACTERS = 6000
"""MLflow keeps no longer value of a parameter"""


class MlflowRun:
    """Opened when the first stage has something to log: a run that only reuses leaves none."""

    def __init__(
        self, tracking: Callable[[], Tracking], recipe: Recipe, registry: Registry, row: Run, mlflow: str
    ) -> None:
        self._tracking = tracking
        self._recipe = recipe
        self._registry = registry
        self._row = row
        self._mlflow = mlflow

    @cached_property
    def id(self) -> str:
        """Opened once, found again by every later attempt."""
        if self._row.mlflow_run_id is not None:
            return self._row.mlflow_run_id
        tracking, experiment, run = self._tracking(), self._recipe.publish.experiment, self._row.id
        view = self._registry.run_view(run)
        tags = {
            "kind": view.kind, "recipe": self._recipe.digest(), "git_commit": git_commit() or "unknown",
            NOTE: self._links(view),
        }  # fmt: skip
        run_id = tracking.start_run(experiment, run, tags, view.name)
        tracking.log_params(run_id, flat_params(self._recipe))
        tied = self._registry.set_mlflow_run(run, run_id)
        tracking.keep_run(experiment, run, tied)
        return tied

    def shown_with(self, run_id: str) -> str:
        """Markdown for a model version of this run of MLflow: links and the picture, where it has pages."""
        links = self._links(self._registry.run_view(self._row.id))
        picture = f"get-artifact?path={PICTURES}/{GLANCE}&run_uuid={run_id}"
        shown = f"\n\n![Perplexity and recall, before and after]({picture})"
        return f"{links}; [its run in MLflow](#/runs/{run_id}){shown}" if self._has_pages else links

    @property
    def _has_pages(self) -> bool:
        return self._mlflow.startswith("http")

    def _links(self, view: RunView) -> str:
        """Markdown: what the run is here, and its page in Prefect where services have pages."""
        links = f"Run `{view.id}`; `yarn-ops runs show {view.id}`"
        if self._has_pages and view.flow_run_id and (page := page_of(view.flow_run_id)):
            links += f"; [its page in Prefect]({page})"
        return links

    def log_picture(self, path: Path) -> None:
        self._tracking().log_picture(self.id, path)

    def step_sink(self, arm: str, earlier_steps: int) -> StepSink:
        """For the steps of one leg. arm: of a comparison, or ""; earlier_steps: of the legs before it."""
        return StepSink(self._tracking, lambda: self.id, f"train/{arm}".rstrip("/"), earlier_steps)

    def finish(self, status: RunEnd) -> None:
        """Tell MLflow how the run ended, if this attempt or an earlier one has opened a run there."""
        if self._row.mlflow_run_id is not None or "id" in self.__dict__:
            extended = self._registry.run_view(self._row.id).kind == "extend"
            outcome = "promoted" if extended and status == "completed" else status
            self._tracking().finish(self.id, status, outcome)


class StepSink:
    """Writes a leg's steps as MLflow metrics, after those of the legs before, each step once.

    A trainer that resumes reports the steps before its snapshot again.
    """

    def __init__(
        self, tracking: Callable[[], Tracking], run_id: Callable[[], str], prefix: str, earlier_steps: int
    ) -> None:
        self._tracking = tracking
        self._run_id = run_id
        self._prefix = prefix
        self._earlier_steps = earlier_steps
        self._logged: int | None = None

    def log(self, event: Mapping[str, Any]) -> None:
        """Write one `step` event of the trainer."""
        tracking, run_id = self._tracking(), self._run_id()
        step = self._earlier_steps + event["step"]
        if self._logged is None:
            self._logged = tracking.last_step(run_id, f"{self._prefix}/loss")
        if step <= self._logged:
            return
        self._logged = step
        figures = {name: event[name] for name in STEP_FIGURES if event.get(name) is not None}
        tracking.log_metrics(
            run_id, step, {f"{self._prefix}/{name}": value for name, value in figures.items()}
        )


def page_of(flow_run_id: str) -> str | None:
    """The page of a run in Prefect; None where it has no pages."""
    pages = PREFECT_UI_URL.value()
    return f"{pages.rstrip('/')}/runs/flow-run/{flow_run_id}" if pages else None


def flat_params(recipe: Recipe) -> dict[str, str]:
    """{section.key: value} as MLflow shows parameters."""
    sections = recipe.model_dump(mode="json")
    return {
        f"{name}.{key}": str(value)[:PARAMETER_CHARACTERS]
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
