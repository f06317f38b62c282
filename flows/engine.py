"""A flow run's process: `python -m flows.engine [--trainer] [--standby ADDRESS]`, a deployment's command.

Without a command of its own a run's process first fetches the flow's code, which is installed here, and then
becomes Prefect's engine: it would import Prefect twice. Like that process it has a session of its own: a
signal to the worker's group is not for the runs.

--trainer: the process that the run will train in imports torch while this one imports Prefect.
--standby: a process that waits at ADDRESS does the run, if there is one (`yarn_ops.standby`).
--wait: be that process.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from pathlib import Path

from yarn_ops import standby

TRAINER, STANDBY, WAIT = "--trainer", "--standby", "--wait"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.engine")
    parser.add_argument(TRAINER, action="store_true")
    parser.add_argument(STANDBY, type=Path)
    parser.add_argument(WAIT, type=Path)
    asked, rest = parser.parse_known_args()
    if os.getpgrp() != os.getpid():  # a container's first process leads one already
        os.setsid()
    if asked.standby is not None and (status := standby.hand_over(asked.standby, rest)) is not None:
        sys.exit(status)
    sys.argv[1:] = rest  # the next argument would be a flow run's id
    if asked.trainer or asked.wait is not None:
        from flows import warm_trainer

        warm_trainer.start()
    from yarn_ops.processes import importing

    with importing():
        import flows.run  # noqa: F401
    if asked.wait is None:
        run()
        return
    from prefect.settings import get_current_settings

    ours = get_current_settings().to_environment_variables(exclude_unset=True)  # as a worker tells its runs
    line = standby.wait(asked.wait, {**os.environ, **ours})
    status = 1
    try:
        run()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
    finally:
        standby.end(line, status)


def run() -> None:
    """Be Prefect's engine, for the run that arguments or environment name."""
    runpy.run_module("prefect.engine", run_name="__main__")


if __name__ == "__main__":
    main()
