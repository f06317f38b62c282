"""An evaluation's cells spread over the GPU pool: runs that help the one that measures, until none is free.

Who measures which cell is agreed on in the registry. So nothing here is needed for the result: helpers that
come late, die, or are never started cost time only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import UUID

from httpx import HTTPError
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import Cancelled

from flows.run import RunContext, join_run
from flows.tasks import StageContext, stage
from yarn_ops.evals import VERSION
from yarn_ops.models.device import resolve_dtype
from yarn_ops.recipe import Evaluate, Section
from yarn_ops.records import BaseModel, Checkpoint, ShardSet
from yarn_ops.registry.measurements import open_measurements
from yarn_ops.scores import Share
from yarn_ops.settings import read_settings
from yarn_ops.shown import counted

if TYPE_CHECKING:
    from yarn_ops.evals.run import Worker


class Shared(Section):
    """An evaluation that a run does, as its helpers need to know it."""

    run_id: str
    attempt: int
    """of the run: a helper of an earlier one has ended"""
    key: str
    """of the evaluation's stage"""
    section: Evaluate
    model: BaseModel | Checkpoint
    shards: ShardSet
    original_context_tokens: int
    target_context_tokens: int


@flow(name="measure-cells", persist_result=False)
def measure_cells(number: int = 1, shared: Shared | None = None) -> int:
    """Help a run to measure; started by such a run, where YARN_OPS_GRID_WORKERS is above 1.

    Args:
        number: Which helper.
        shared: What is measured; without it there is nothing to do.

    Returns:
        How many blocks of cells were measured.
    """
    if shared is None:
        create_markdown_artifact("nothing to measure", key="measured-cells")
        return 0
    with join_run(read_settings(), shared.run_id):
        asked = {name: getattr(shared, name) for name in Shared.model_fields if name != "run_id"}
        share = share_cells(number, **asked)
    told = f"{counted(share.blocks, 'block')} of cells measured for run {shared.run_id}"
    create_markdown_artifact(told, key="measured-cells", description=told)
    return share.blocks


@stage("evaluate-share", version=VERSION)
def share_cells(
    context: StageContext,
    number: int,
    attempt: int,
    key: str,
    section: Evaluate,
    model: BaseModel | Checkpoint,
    shards: ShardSet,
    original_context_tokens: int,
    target_context_tokens: int,
) -> Share:
    """The cells of a run's evaluation that this helper came to measure."""
    from yarn_ops.evals.measure import EvaluationRequest, help_evaluate

    asked = EvaluationRequest(
        section, context.fetch(model), context.fetch(shards), original_context_tokens, target_context_tokens
    )
    with context.alone_on("device"), worker_of(context) as worker:
        return Share(blocks=help_evaluate(asked, worker))


@contextmanager
def worker_of(context: StageContext) -> Iterator[Worker]:
    """The stage's process as a worker that keeps its cells in the registry."""
    from yarn_ops.evals.run import Worker

    settings, device = context.run.settings, context.run.device.kind
    measurements = open_measurements(settings.database, settings.lease_s)
    try:
        yield Worker(
            device, resolve_dtype("auto", device), measurements, context.report_or_stop,
            context.run.costs.phase,
        )  # fmt: skip
    finally:
        measurements.close()


@contextmanager
def helped(run: RunContext, shared: Shared | None) -> Iterator[None]:
    """Within the block, runs of the GPU pool help, as many as the settings say; at its end, none begins."""
    helpers = run.settings.grid_workers - 1
    runs = _ask(helpers, shared) if helpers and shared is not None else []
    try:
        yield
    finally:
        if runs:
            _cancel(runs)


def _ask(helpers: int, shared: Shared) -> list[UUID]:
    """Runs that were asked for. Without a deployment, as in a run outside of the service, there are none."""
    runs: list[UUID] = []
    try:
        with get_client(sync_client=True) as client:
            for number in range(1, helpers + 1):
                deployment = client.read_deployment_by_name("measure-cells/measure-cells")
                run = client.create_flow_run_from_deployment(
                    deployment.id,
                    parameters={"number": number, "shared": shared.model_dump(mode="json")},
                    name=f"{shared.run_id}-helper-{number}",
                    idempotency_key=f"{shared.key}-{shared.attempt}-{number}",
                )
                runs.append(run.id)
    except ObjectNotFound:
        get_run_logger().warning("no helpers: this Prefect server has no deployment measure-cells")
    except (PrefectException, HTTPError) as error:
        get_run_logger().warning("%s of %s helpers: %s", len(runs), helpers, error)
    return runs


def _cancel(runs: list[UUID]) -> None:
    """Those that wait for a worker; one that has begun finds nothing to do and ends."""
    try:
        with get_client(sync_client=True) as client:
            for run_id in runs:
                state = client.read_flow_run(run_id).state
                if state is not None and state.is_scheduled():
                    client.set_flow_run_state(run_id, Cancelled(message="everything is measured"), force=True)
    except (PrefectException, HTTPError) as error:
        get_run_logger().warning("helpers were not cancelled: %s", error)
