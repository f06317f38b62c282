"""Which flow runs still have a process, told by a label that each puts on itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import psutil
from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

from yarn_ops.registry import this_process
from yarn_ops.train.launch import PID, end_orphan

PROCESS = "yarn_ops.process"
"""label: the process of a flow run, as leases name their holders"""
RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"
TRAINER = "yarn_ops.train"
START_S = 120.0
"""within which a run that was taken from its queue says who it is"""


def sign() -> None:
    """Say which process does this flow run; nothing outside of one."""
    flow_run_id = runtime.flow_run.id
    if flow_run_id is not None:
        with get_client(sync_client=True) as client:
            client.update_flow_run_labels(UUID(flow_run_id), {PROCESS: this_process()})


def queue_priority() -> int:
    """Of the work queue that this flow run came from, 1 the most urgent; 1 without one: a person waits."""
    context = FlowRunContext.get()
    queue = context.flow_run.work_queue_id if context is not None and context.flow_run is not None else None
    if queue is None:
        return 1
    with get_client(sync_client=True) as client:
        return client.read_work_queue(queue).priority or 1


def abandoned(run: FlowRun, here: set[str], *, alone: bool = False) -> bool:
    """Whether the run, under way by its state, has no process. `here`: `runs_on_this_machine()`.

    Of a process on another machine nothing is known: its own reconciler, or Prefect, has to tell. `alone`:
    there is no other machine, and no worker here that could have taken the run a moment ago.
    """
    if str(run.id) in here:
        return False
    if alone:
        return True
    signed = str((run.labels or {}).get(PROCESS, ""))
    if signed:
        return _machine(signed) == _machine(this_process())
    since = run.state.timestamp if run.state is not None else None
    return since is not None and (datetime.now(UTC) - since).total_seconds() > START_S


def runs_on_this_machine() -> set[str]:
    """The ids of the flow runs for which a process runs here."""
    return set(_run_ids())


def end_trainers_except(keys: set[str], work: Path) -> None:
    """End every trainer at work below `work` for another stage than these: it lost its right to go on."""
    folders = {key[:16] for key in keys}
    for record in work.glob(f"*/{PID}"):
        if record.parent.name not in folders:
            end_orphan(record)


def _run_ids() -> Iterator[str]:
    for process in psutil.process_iter():
        try:
            run_id = process.environ().get(RUN_VARIABLE)
            # A trainer outlives its flow by the time that its checkpoint takes.
            if run_id and process.status() != psutil.STATUS_ZOMBIE and TRAINER not in process.cmdline():
                yield run_id
        except psutil.Error:
            continue


def _machine(holder: str) -> str:
    return holder.partition("@")[2]
