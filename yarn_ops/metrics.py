"""What a monitoring system asks for, as Prometheus reads it: queue, runs, stages, failures, leases, GPU.

`python -m yarn_ops.metrics --port N` answers GET /metrics on loopback, to whoever knows Prefect's user and
password.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from sqlalchemy import func, select

from yarn_ops.errors import SettingsError, YarnOpsError
from yarn_ops.guard import METRICS, Guard, Receive, Send, serve
from yarn_ops.heads import Scope, basic
from yarn_ops.registry import Registry, open_registry
from yarn_ops.registry.tables import RunRow, RunStageRow, StageRunRow
from yarn_ops.servers import LOOPBACK, WORK_POOLS
from yarn_ops.settings import Settings, read_settings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ANSWER_S = 5.0
GPU_FACTS = ("utilization.gpu", "memory.used", "memory.total")


class Collector:
    """Asks registry, Prefect and the GPU when it is asked itself."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._registry: Registry | None = None
        self._prefect = httpx.Client(
            base_url=settings.prefect_api_url or "", headers=basic(settings.prefect_auth), timeout=ANSWER_S
        )

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("yarn_ops_up", "whether the service answers", labels=["service"])
        for service, source in (("registry", self._of_registry), ("prefect", self._of_prefect)):
            try:
                yield from list(source())
                up.add_metric([service], 1)
            except (YarnOpsError, httpx.HTTPError, ValueError):
                up.add_metric([service], 0)
        yield up
        yield from _of_gpu()

    def _of_registry(self) -> Iterator[Metric]:
        if self._registry is None:
            self._registry = open_registry(self._settings.database)
        with self._registry.begin() as session:
            runs = session.execute(select(RunRow.status, func.count()).group_by(RunRow.status)).all()
            stages = session.execute(
                select(StageRunRow.stage, StageRunRow.status, func.count())
                .group_by(StageRunRow.stage, StageRunRow.status)
            ).all()  # fmt: skip
            computed = session.execute(
                select(StageRunRow.stage, func.count(), func.sum(RunStageRow.seconds))
                .join(RunStageRow, RunStageRow.key == StageRunRow.key)
                .where(RunStageRow.reused.is_(False))
                .group_by(StageRunRow.stage)
            ).all()
            reused = session.execute(
                select(StageRunRow.stage, func.count())
                .join(RunStageRow, RunStageRow.key == StageRunRow.key)
                .where(RunStageRow.reused.is_(True))
                .group_by(StageRunRow.stage)
            ).all()
            devices = session.execute(
                select(StageRunRow.device, StageRunRow.device_since.is_(None), func.count())
                .where(StageRunRow.device.is_not(None))
                .group_by(StageRunRow.device, StageRunRow.device_since.is_(None))
            ).all()
        on_device = [(device, "waits" if waits else "at work", count) for device, waits, count in devices]
        yield _gauge(
            "yarn_ops_device_stages", "stages on a device, or waiting", ["device", "state"], on_device
        )
        yield _gauge("yarn_ops_runs", "runs by their status", ["status"], runs)
        yield _gauge("yarn_ops_stages", "stages by their status", ["stage", "status"], stages)
        seconds = SummaryMetricFamily(
            "yarn_ops_stage_seconds", "what computing a stage took", labels=["stage"]
        )
        for stage, count, total in computed:
            seconds.add_metric([stage], count_value=count, sum_value=float(total))
        yield seconds
        counter = CounterMetricFamily("yarn_ops_stages_reused", "stages not computed again", labels=["stage"])
        for stage, count in reused:
            counter.add_metric([stage], count)
        yield counter

    def _of_prefect(self) -> Iterator[Metric]:
        """Runs that wait or go on, by pool and state."""
        found = []
        for pool in WORK_POOLS if self._settings.prefect_api_url else ():
            for state in ("SCHEDULED", "PENDING", "RUNNING", "FAILED", "CRASHED"):
                found.append((pool, state.lower(), self._count(pool, state)))
        yield _gauge("yarn_ops_flow_runs", "flow runs by pool and state", ["pool", "state"], found)

    def _count(self, pool: str, state: str) -> int:
        wanted: dict[str, Any] = {
            "work_pools": {"name": {"any_": [pool]}},
            "flow_runs": {"state": {"type": {"any_": [state]}}},
        }
        if state == "SCHEDULED":  # those of a schedule lie hours ahead; a queue is what should have begun
            wanted["flow_runs"]["state"] = {"name": {"any_": ["Late", "AwaitingConcurrencySlot"]}}
        answer = self._prefect.post("/flow_runs/count", json=wanted)
        return int(answer.raise_for_status().json())


def render(collector: Collector) -> bytes:
    """All metrics in Prometheus's text format."""
    found = CollectorRegistry(auto_describe=False)
    found.register(collector)  # type: ignore[arg-type]
    return generate_latest(found)


def application(settings: Settings) -> Guard:
    """GET /metrics, every answer fresh, for who knows the password of Prefect; GET /health for anybody."""
    if settings.prefect_auth is None:
        raise SettingsError("YARN_OPS_PREFECT_AUTH: not set; metrics are not served without a password")
    collector = Collector(settings)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, body = {"/health": (200, b"ok\n"), "/metrics": (200, b"")}.get(scope["path"], (404, b""))
        if scope["path"] == "/metrics":
            body = await asyncio.to_thread(render, collector)
        headers = [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    password = settings.prefect_auth
    return Guard(
        answer, METRICS, password=password, key=settings.session_key or password, names=settings.server_names
    )


def _gauge(name: str, text: str, labels: list[str], rows: Any) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, text, labels=labels)
    for *values, count in rows:
        gauge.add_metric(values, count)
    return gauge


def _of_gpu() -> Iterator[Metric]:
    """Utilisation and memory of every GPU that nvidia-smi shows; nothing on a machine without it."""
    if shutil.which("nvidia-smi") is None:
        return
    command = ["nvidia-smi", f"--query-gpu=index,{','.join(GPU_FACTS)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=True)
        rows = [[float(cell) for cell in line.split(",")] for line in answer.stdout.splitlines()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return
    used = GaugeMetricFamily(
        "yarn_ops_gpu_utilisation_ratio", "share of time that it computes", labels=["gpu"]
    )
    memory = GaugeMetricFamily("yarn_ops_gpu_memory_bytes", "its memory", labels=["gpu", "what"])
    for index, percent, taken_mib, total_mib in rows:
        used.add_metric([f"{index:.0f}"], percent / 100)
        memory.add_metric([f"{index:.0f}", "used"], taken_mib * 2**20)
        memory.add_metric([f"{index:.0f}", "total"], total_mib * 2**20)
    yield used
    yield memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    asked = parser.parse_args()
    serve(application(read_settings()), LOOPBACK, asked.port)


if __name__ == "__main__":
    try:
        main()
    except YarnOpsError as error:
        sys.exit(f"metrics: {error}")
