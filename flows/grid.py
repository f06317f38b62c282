"""A suite's cells spread over the GPU pool: runs that help the run whose suite it is, until no cell is free.

Who measures which cell is agreed on in the registry. So nothing here is needed for the result: helpers that
come late, die, or are never started cost time only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from httpx import HTTPError
from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import Cancelled

from flows.tasks import Bench, stage
from flows.workshop import Workshop, join_workshop
from yarn_ops.evals.suite.version import VERSION as SUITE_VERSION
from yarn_ops.models.device import resolve_dtype
from yarn_ops.recipe import Section, SuiteName
from yarn_ops.records import BaseModel, Checkpoint, Local, ShardSet, Share
from yarn_ops.registry.measurements import open_measurements
from yarn_ops.settings import read_settings


class Shared(Section):
    """A suite that a run measures, as its helpers need to know it."""

    run_id: str
    attempt: int
    """of the run: a helper of an earlier one has ended"""
    key: str
    """of the suite's stage"""
    suite: SuiteName
    seed: int
    model: BaseModel | Checkpoint
    shards: ShardSet
    longest_tokens: int
    original_context_tokens: int


@flow(name="measure-cells", persist_result=False)
def measure_cells(number: int = 1, shared: Shared | None = None) -> int:
    """Help a run to measure its suite; started by such a run, where YARN_OPS_GRID_WORKERS is above 1.

    Args:
        number: Which helper.
        shared: What is measured; without it there is nothing to do.

    Returns:
        How many blocks of cells were measured.
    """
    if shared is None:
        return 0
    with join_workshop(read_settings(), shared.run_id):
        share = share_suite(
            number, shared.attempt, shared.key, shared.suite, shared.seed, shared.model, shared.shards,
            shared.longest_tokens, shared.original_context_tokens,
        )  # fmt: skip
    return share.blocks


@stage("suite-share", version=SUITE_VERSION, alone_on="device")
def share_suite(
    bench: Bench,
    number: int,
    attempt: int,
    key: str,
    name: SuiteName,
    seed: int,
    model: Local[BaseModel] | Local[Checkpoint],
    shards: Local[ShardSet],
    longest_tokens: int,
    original_context_tokens: int,
) -> Share:
    """The cells of a run's suite that this helper came to measure."""
    from yarn_ops.evals.capacity.stage import share_cells

    measurements = open_measurements(bench.shop.settings.database, bench.shop.settings.lease_s)
    try:
        blocks = share_cells(
            name,
            seed,
            model,
            shards,
            longest_tokens,
            original_context_tokens=original_context_tokens,
            device=bench.shop.device,
            precision=resolve_dtype("auto", bench.shop.device),
            journal=measurements,
            report=bench.report_or_stop,
        )
    finally:
        measurements.close()
    return Share(blocks=blocks)


@contextmanager
def helped(shop: Workshop, shared: Shared) -> Iterator[None]:
    """Within the block, runs of the GPU pool help, as many as the settings say; at its end, none begins."""
    helpers = shop.settings.grid_workers - 1
    runs = _ask(helpers, shared) if helpers else []
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
