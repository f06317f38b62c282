"""Every figure that a step's event may have is in MLflow, a GPU's too."""

from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient

from flows.run import RunContext
from yarn_ops.progress import ProgressBars
from yarn_ops.recipe import load_recipe
from yarn_ops.registry import open_registry, upgrade
from yarn_ops.settings import Settings

GPU_STEP = {
    "loss": 2.5, "learning_rate": 1e-4, "gradient_norm": 0.5, "tokens_per_s": 9_000.0, "step_s": 3.5,
    "data_wait_s": 0.001, "peak_bytes": 70 << 30, "flops_per_s": 5e14, "mfu": 0.7, "gpu_utilisation": 1.0,
}  # fmt: skip


def test_a_gpu_steps_figures_are_logged_once(small_recipe: Path, tmp_path: Path) -> None:
    settings, recipe = Settings(state_dir=tmp_path / "state"), load_recipe(small_recipe)
    upgrade(settings.database)
    registry = open_registry(settings.database)
    row = registry.begin_run(
        recipe.model_dump(mode="json"), recipe.digest(), git_commit=None, flow_run_id=None
    )
    run = RunContext(settings, recipe, registry, row, ProgressBars())
    for _ in range(2):  # a trainer that resumed, in this attempt or the next, tells the step again
        steps = run.mlflow.step_sink("", 10)
        for _ in range(2):
            steps.log({"event": "step", "step": 1, "steps": 4, "time": 0.0, **GPU_STEP})
    tracking = run.services.tracking
    client = MlflowClient(tracking.uri, tracking.uri)
    logged = client.get_run(run.mlflow.id).data.metrics
    assert logged == {f"train/{name}": value for name, value in GPU_STEP.items()}
    for name in logged:
        assert [point.step for point in client.get_metric_history(run.mlflow.id, name)] == [11], name
