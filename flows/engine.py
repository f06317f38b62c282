"""The process of a flow run: `python -m flows.engine [--trainer]`, the command of every deployment.

Without a command of its own a run's process first fetches the flow's code, which is installed here, and then
becomes Prefect's engine: it would import Prefect twice. Like that process it has a session of its own: a
signal to the worker's group is not for the runs. With `--trainer` the process that the run will train in
imports torch while this one imports Prefect.
"""

from __future__ import annotations

import os
import runpy
import sys

TRAINER = "--trainer"

if __name__ == "__main__":
    if os.getpgrp() != os.getpid():  # a container's first process leads one already
        os.setsid()
    if TRAINER in sys.argv:
        sys.argv.remove(TRAINER)  # the next argument would be a flow run's id
        from flows import warm_trainer

        warm_trainer.start()
    from yarn_ops.processes import importing

    with importing():
        import flows.run  # noqa: F401
    runpy.run_module("prefect.engine", run_name="__main__")
