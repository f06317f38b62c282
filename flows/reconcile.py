"""The reconciler: makes Prefect, the registry, MLflow and the store agree again after something died.

Everything here can be repeated, and interrupted anywhere.
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import psutil
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Scheduled

from flows.approval import resume
from flows.liveness import abandoned, runs_on_this_machine, sign
from yarn_ops import notify, upkeep
from yarn_ops.errors import YarnOpsError
from yarn_ops.processes import birth
from yarn_ops.registry import Registry, RunEnd, approvals, open_registry
from yarn_ops.registry import upkeep as records
from yarn_ops.servers import WORK_POOLS
from yarn_ops.services import try_mlflow
from yarn_ops.settings import Settings, read_settings
from yarn_ops.shown import counted, size
from yarn_ops.store import open_store, store_options
from yarn_ops.train.launch import PID, end_orphan

UNDER_WAY = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
ENDED_BADLY = (StateType.CRASHED, StateType.FAILED)
MOST_ATTEMPTS = 6
LOOK_BACK = timedelta(days=1)
LOST = ("flow run taken up again", "run closed")
"""kinds of what is put right: of these somebody is told"""

log = logging.getLogger(__name__)

SERVICE_FAULTS = re.compile(
    r"encountered an exception:? "
    r"(StoreError|Damaged|RegistryError|LeaseLost|ReleaseError|SettingsError|TrainerKilled|Stopped"
    r"|PrefectHTTPStatusError|ConnectError|ReadTimeout|RemoteProtocolError|ConnectTimeout|ReadError)\b"
)
"""A run that failed by one of these asked for nothing wrong: a service was away, or a process was killed."""


@flow(name="reconcile", persist_result=False)
def reconcile(sweep: bool = False) -> dict[str, int]:
    """Bring the services into agreement: runs, leases, trainers, model versions; with `sweep`, garbage too.

    Args:
        sweep: Remove uploads, directories and working files that nothing refers to and that are a week old.

    Returns:
        How many things of each kind were put right.
    """
    sign()
    log = get_run_logger()
    settled = settle(read_settings(), sweep=sweep)
    for kind, names in settled.items():
        for name in names:
            log.info("%s: %s", kind, name)
    lines = [f"- {kind}: {name}" for kind, names in settled.items() for name in names]
    told = f"{counted(len(lines), 'thing')} put right"
    create_markdown_artifact("\n".join(lines) or told, key="reconciled", description=told)
    return {kind: len(names) for kind, names in settled.items()}


def settle(settings: Settings, *, sweep: bool = False, alone: bool = False) -> dict[str, list[str]]:
    """Do what the flow does, without one; {kind: names of what was put right}. alone: no worker runs."""
    registry = open_registry(settings.database)
    try:
        with get_client(sync_client=True) as client:
            done = {
                "orphan trainer ended": list(_orphan_trainers(settings.home / "work")),
                "lease freed": [f"{one.stage} of run {one.run_id}" for one in records.free_leases(registry)],
                "flow run taken up again": list(_resume(client, alone)),
                "decided run resumed": list(_resume_decided(client, registry)),
                "missed schedule dropped": list(_drop_missed(client)),
                "run closed": list(_close_runs(client, registry)),
            }
        halves = upkeep.half_registered(registry, try_mlflow(settings))
        done["version without its run"] = [f"{name} {version}" for name, version in halves]
        if sweep:
            done |= _sweep(settings, registry)
        _tell(settings, done)
        return done
    finally:
        registry.close()


def _tell(settings: Settings, done: dict[str, list[str]]) -> None:
    """Tell of runs that lost their process or a service: they could not tell it themselves."""
    rows = tuple((kind, name) for kind in LOST for name in done[kind])
    if rows:
        title = f"{len(rows)} run{'s' if len(rows) > 1 else ''} lost a process or a service"
        for fault in notify.tell(settings, notify.Notice("fell", title, rows)):
            log.warning(fault)


def _orphan_trainers(work: Path) -> Iterator[str]:
    """End trainers whose parent is gone, which the kernel or their own watchdog should have ended; which."""
    for record in work.glob(f"*/{PID}"):
        try:
            written = json.loads(record.read_bytes())
            trainer = psutil.Process(written["pid"])
            command = trainer.cmdline()
            declared = int(command[command.index("--parent") + 1])
            if birth(trainer.pid) != written["started"] or trainer.ppid() == declared:
                continue
        except (OSError, ValueError, KeyError, IndexError, psutil.Error):
            continue
        end_orphan(record)
        yield f"pid {written['pid']} in {record.parent.name}"


def _resume(client: SyncPrefectClient, alone: bool) -> Iterator[str]:
    """Schedule again the runs that lost their process or a service; cancel those that were to be."""
    here = runs_on_this_machine()
    for run in _runs(client, UNDER_WAY):
        if abandoned(run, here, alone=alone):
            cancelling = run.state_type == StateType.CANCELLING
            _set(client, run, "its process is gone", cancel=cancelling)
            yield f"{run.name} ({run.id}), {'cancelled' if cancelling else 'its process is gone'}"
    for run in _runs(client, ENDED_BADLY):
        if _may_try_again(run):
            _set(client, run, "a service or a process was lost")
            yield f"{run.name} ({run.id}), attempt {run.run_count + 1}"


def _resume_decided(client: SyncPrefectClient, registry: Registry) -> Iterator[str]:
    """Let runs go on that wait in Prefect for a person who has decided by a command."""
    for run_id, flow_run_id in approvals.decided(registry):
        try:
            waits = (state := client.read_flow_run(UUID(flow_run_id)).state) is not None and state.is_paused()
        except ObjectNotFound:
            continue
        approval = approvals.find(registry, run_id)
        if waits and approval is not None:
            resume(flow_run_id, approval)
            yield f"{run_id}: {approval.decision} by {approval.person}"


def _set(client: SyncPrefectClient, run: FlowRun, reason: str, *, cancel: bool = False) -> None:
    state = Cancelled() if cancel else Scheduled(message=f"{reason}; finished stages are reused")
    client.set_flow_run_state(run.id, state, force=True)


def _may_try_again(run: FlowRun) -> bool:
    if run.deployment_id is None or run.run_count >= MOST_ATTEMPTS or run.state is None:
        return False
    if datetime.now(UTC) - run.state.timestamp > LOOK_BACK:
        return False
    crashed = run.state_type == StateType.CRASHED
    return crashed or SERVICE_FAULTS.search(run.state.message or "") is not None


def _drop_missed(client: SyncPrefectClient) -> Iterator[str]:
    """Of a schedule's runs that are overdue, the newest is enough."""
    overdue: dict[UUID, list[FlowRun]] = defaultdict(list)
    for run in _runs(client, (StateType.SCHEDULED,)):
        when = run.expected_start_time
        if run.auto_scheduled and run.run_count == 0 and when is not None and when < datetime.now(UTC):
            assert run.deployment_id is not None
            overdue[run.deployment_id].append(run)
    for runs in overdue.values():
        for run in sorted(runs, key=lambda run: run.expected_start_time)[:-1]:  # type: ignore[arg-type,return-value]
            client.set_flow_run_state(
                run.id, Cancelled(message="missed; a later one of this schedule runs"), force=True
            )
            yield f"{run.name} ({run.id})"


def _close_runs(client: SyncPrefectClient, registry: Registry) -> Iterator[str]:
    """Our runs that go on by the registry while Prefect knows that they ended."""
    for run in records.open_runs(registry):
        if run.flow_run_id is None:
            continue
        try:
            state = client.read_flow_run(UUID(run.flow_run_id)).state
        except ObjectNotFound:  # of a server that was there for that run alone
            continue
        if state is None or not state.is_final():
            continue
        end: RunEnd = "stopped" if state.is_cancelled() else "failed"
        registry.finish_run(run.id, end, state.message or state.name)
        yield f"{run.id}: {end}"


def _sweep(settings: Settings, registry: Registry) -> dict[str, list[str]]:
    """Remove garbage here and, unless others may need something of it, in the store."""
    store = open_store(settings.store, store_options(settings))
    found, refused = upkeep.local_garbage(settings, registry), []
    try:
        found += upkeep.stored_garbage(settings, store, registry)
    except YarnOpsError as error:
        refused.append(str(error))
    gone = [one for one in found if upkeep.remove(store, registry, one)]
    told = [f"{one.kind} {one.name}, {size(one.size_bytes)}" for one in gone]
    return {"garbage removed": told, "the store is not swept": refused}


def _runs(client: SyncPrefectClient, states: tuple[StateType, ...]) -> list[FlowRun]:
    """The newest runs of our pools in these states."""
    return client.read_flow_runs(
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=list(WORK_POOLS))),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states)))
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
    )
