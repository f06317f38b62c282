"""A trainer started before Prefect is imported, for the one run that this process does: `flows.engine`."""

from __future__ import annotations

from yarn_ops.errors import YarnOpsError
from yarn_ops.settings import Settings, read_settings
from yarn_ops.train.ahead import Ahead

_started: Ahead | None = None


def start() -> None:
    """Nothing where the settings are at fault: the run will say so."""
    global _started
    try:
        _started = trainer(read_settings())
    except YarnOpsError:
        return


def take() -> Ahead | None:
    """The one that was started, once."""
    global _started
    taken, _started = _started, None
    return taken


def trainer(settings: Settings) -> Ahead:
    return Ahead(settings.home / "logs" / "trainer-ahead.log")
