"""A trainer that imports torch while its run still prepares base and data.

`start` is called before Prefect is imported, so nothing here imports Prefect on import.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from yarn_ops.errors import RecipeError, YarnOpsError
from yarn_ops.recipe import recorded_recipe
from yarn_ops.settings import Settings, read_settings
from yarn_ops.train.warm_trainer import WarmTrainer

if TYPE_CHECKING:
    from flows.run import RunContext

LOOK_BACK_RUNS = 100

_started: WarmTrainer | None = None


def start() -> None:
    """Start one for the run that this process will do; nothing where the settings are at fault: the run will
    say so."""
    global _started
    with suppress(YarnOpsError):
        _started = _trainer(read_settings())


@contextmanager
def warm_trainer(run: RunContext) -> Iterator[None]:
    """Within the block a trainer imports what it needs, and computes what needs torch for the run.

    Only if it will train, as far as the registry knows.
    """
    global _started
    started, _started = _started, None
    if run.reuses_all or _was_trained(run):
        if started is not None:
            started.close()
        yield
        return
    trainer = run.device.trainer = started or _trainer(run.settings)
    try:
        yield
    finally:
        trainer.close()


def _trainer(settings: Settings) -> WarmTrainer:
    return WarmTrainer(settings.home / "logs" / "warm-trainer.log", settings.torch_environment)


def _was_trained(run: RunContext) -> bool:
    """Whether a recent run of the same base, method, data and training came to its end."""
    asked = run.recipe.training_inputs()
    for earlier in run.registry.runs(LOOK_BACK_RUNS):
        with suppress(RecipeError):  # of a version that asked for other things
            if (
                earlier.status in ("completed", "rejected")
                and recorded_recipe(earlier.recipe, earlier.id).training_inputs() == asked
            ):
                return True
    return False
