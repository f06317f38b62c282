"""What a monitoring system asks for, as Prometheus reads it: queue, runs, stages, failures, leases, GPU.

`python -m yarn_ops.metrics --port N` answers GET /metrics on loopback, to whoever knows Prefect's user and
password where the settings have one.
"""

from __future__ import annotations

import argparse
import base64
import hmac
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from sqlalchemy import func, select

from yarn_ops.errors import YarnOpsError
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

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("yarn_ops_up", "whether the service answers", labels=["service"])
        for service, source in (("registry", self._of_registry), ("prefect", self._of_prefect)):
            try:
                yield from list(source())
                up.add_metric([service], 1)
            except (YarnOpsError, OSError, ValueError):
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
        request = urllib.request.Request(
            f"{self._settings.prefect_api_url}/flow_runs/count",
            data=json.dumps(wanted).encode(),
            headers={"Content-Type": "application/json", **_basic(self._settings)},
        )
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            return int(json.loads(answer.read()))


def render(collector: Collector) -> bytes:
    """All metrics in Prometheus's text format."""
    found = CollectorRegistry(auto_describe=False)
    found.register(collector)  # type: ignore[arg-type]
    return generate_latest(found)


def serve(settings: Settings, port: int) -> ThreadingHTTPServer:
    """A server on loopback, not yet started; every answer is fresh."""
    collector, wanted = Collector(settings), _basic(settings).get("Authorization", "")

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/health":
                self._answer(200, b"ok\n")
            elif not hmac.compare_digest(self.headers.get("Authorization", ""), wanted):
                self._answer(401, b"")
            elif self.path == "/metrics":
                self._answer(200, render(collector))
            else:
                self._answer(404, b"")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            if status == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="yarn-ops"')
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    return ThreadingHTTPServer((LOOPBACK, port), Page)


def _basic(settings: Settings) -> dict[str, str]:
    if settings.prefect_auth is None:
        return {}
    token = base64.b64encode(settings.prefect_auth.get_secret_value().encode()).decode()
    return {"Authorization": f"Basic {token}"}


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
    serve(read_settings(), parser.parse_args().port).serve_forever()


if __name__ == "__main__":
    main()
