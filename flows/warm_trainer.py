"""A trainer started before Prefect is imported, for the one run that this process does: `flows.engine`."""

from __future__ import annotations

from yarn_ops.errors import YarnOpsError
from yarn_ops.settings import Settings, read_settings
from yarn_ops.train.warm_trainer import WarmTrainer

_started: WarmTrainer | None = None


def start() -> None:
    """Nothing where the settings are at fault: the run will say so."""
    global _started
    try:
        _started = trainer(read_settings())
    except YarnOpsError:
        return


def take() -> WarmTrainer | None:
    """The one that was started, once."""
    global _started
    taken, _started = _started, None
    return taken


def trainer(settings: Settings) -> WarmTrainer:
    return WarmTrainer(settings.home / "logs" / "warm-trainer.log")
