"""The run registry: what was asked for, which stages ran, what came out. One database, SQLite or PostgreSQL.

A stage's key is its identity: a finished key is not computed again, and a key is computed by one holder at
a time, under a lease with a fencing number (`hold`).
"""

from yarn_ops.registry.database import upgrade
from yarn_ops.registry.devices import QueuedStage, keys_at_work, occupied
from yarn_ops.registry.hold import Held, hold
from yarn_ops.registry.holder import this_process
from yarn_ops.registry.leases import Lease
from yarn_ops.registry.registry import Registry, Run, RunEnd, open_registry
from yarn_ops.registry.views import ReleaseView, RunSummary, RunView, ScoreView, StageView

__all__ = [
    "Held",
    "Lease",
    "QueuedStage",
    "Registry",
    "ReleaseView",
    "Run",
    "RunEnd",
    "RunSummary",
    "RunView",
    "ScoreView",
    "StageView",
    "hold",
    "keys_at_work",
    "occupied",
    "open_registry",
    "this_process",
    "upgrade",
]
