"""A run's Kubernetes job, as Prefect's worker writes it from the pool's template, started as a local process.

Command and environment are the job's to the letter; the cluster's secret and config map are dictionaries
here, and the volume at /state a directory.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kubernetes_objects import pod_of, template_of
from postgres import PostgresCluster
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_here import AUTH
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from flows.deploy import RUNS_AT_ONCE, deployments, ensure_pool
from yarn_ops.registry import open_registry, upgrade
from yarn_ops.servers import GPU_POOL

CHECKOUT = Path(__file__).parents[2]
USELESS = "http://127.0.0.1:1"


class Cluster:
    """What a job finds in its namespace."""

    def __init__(self, folder: Path, prefect_api: str, database_url: str) -> None:
        self.state, self.prefect_api, self.database_url = folder / "state", prefect_api, database_url
        self.state.mkdir()
        self.secret = {
            "YARN_OPS_DATABASE_URL": database_url,
            "YARN_OPS_STORE_URL": (folder / "store").as_uri(),
            **{f"YARN_OPS_S3_{name}": "unused" for name in ("ACCESS_KEY", "SECRET_KEY", "REGION")},
            "YARN_OPS_S3_ENDPOINT_URL": USELESS,
            "YARN_OPS_MLFLOW_USERNAME": "yarn-ops",
            "YARN_OPS_MLFLOW_PASSWORD": "a password",
            "YARN_OPS_PREFECT_AUTH": AUTH,
        }
        self.config_map = {
            "YARN_OPS_MLFLOW_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "YARN_OPS_PREFECT_API_URL": prefect_api,
            "YARN_OPS_GRID_WORKERS": "1",
        }

    def submit(self, name: str, **parameters: Any) -> FlowRun:
        """A run of a deployment, as the UI asks for it."""
        with temporary_settings({PREFECT_API_URL: self.prefect_api}), get_client(sync_client=True) as client:
            ensure_pool(client, GPU_POOL, RUNS_AT_ONCE[GPU_POOL])
            (deployment,) = (one for one in deployments() if one.name == name)
            return client.create_flow_run_from_deployment(deployment.apply(), parameters=parameters)

    def job(self, run: FlowRun) -> dict[str, Any]:
        """The job that Prefect's worker would create in the cluster for this run."""

        async def prepared() -> KubernetesWorkerJobConfiguration:
            assert run.deployment_id is not None
            async with get_client() as client:
                flow = await client.read_flow(run.flow_id)
                deployment = await client.read_deployment(run.deployment_id)
            configuration = await KubernetesWorkerJobConfiguration.from_template_and_values(
                template_of("cpu"), deployment.job_variables or {}
            )
            configuration.prepare_for_flow_run(run, deployment, flow)
            return configuration

        with temporary_settings({PREFECT_API_URL: self.prefect_api}):
            return asyncio.run(prepared()).job_manifest

    def start(self, job: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
        """The job's container as a process of this machine."""
        (container,) = pod_of(dict(job))["containers"]
        image = (CHECKOUT / "infra" / "images" / "Dockerfile").read_text("utf-8")
        (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)", image, re.MULTILINE)
        environment = dict(re.findall(r"(\w+)=(\S+)", block))
        environment |= {entry["name"]: self._value(entry) for entry in container["env"]}
        mounted = {
            name: value.replace("/state", str(self.state)) if value.startswith("/state") else value
            for name, value in environment.items()
        }
        return subprocess.run(
            container.get("command", []) + container.get("args", []),
            env={"PATH": f"{Path(sys.executable).parent}:{os.defpath}", **mounted},
            cwd=CHECKOUT, capture_output=True, text=True, timeout=560,
        )  # fmt: skip

    def state_of(self, run: FlowRun) -> str:
        with temporary_settings({PREFECT_API_URL: self.prefect_api}), get_client(sync_client=True) as client:
            state = client.read_flow_run(run.id).state
        assert state is not None
        return f"{state.name}: {state.message}"

    def _value(self, entry: Mapping[str, Any]) -> str:
        if "value" in entry:
            return entry["value"]
        ((kind, reference),) = entry["valueFrom"].items()
        return (self.secret if kind == "secretKeyRef" else self.config_map)[reference["key"]]


def test_the_jobs_process_does_a_run(prefect_api: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    upgrade(url)
    cluster = Cluster(tmp_path, prefect_api, url)
    run = cluster.submit("measure-cells", number=3)
    done = cluster.start(cluster.job(run))
    assert done.returncode == 0, done.stderr[-3000:]
    assert cluster.state_of(run).startswith("Completed")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_jobs_process_does_every_stage_on_postgresql(
    postgres: PostgresCluster, prefect_api: str, small_recipe: Path, tmp_path: Path
) -> None:
    url = postgres.create_database()
    upgrade(url)
    cluster = Cluster(tmp_path, prefect_api, url)
    run = cluster.submit("extend-context", recipe=tomllib.loads(small_recipe.read_text("utf-8")))
    done = cluster.start(cluster.job(run))
    assert done.returncode == 0, done.stderr[-3000:]
    assert cluster.state_of(run).startswith("Completed")
    registry = open_registry(url)
    view = registry.run_view()
    registry.close()
    assert (view.status, view.flow_run_id) == ("completed", str(run.id))
    assert {"shards", "train", "merge", "evaluate", "publish"} <= {stage.stage for stage in view.stages}
    assert {path.name for path in cluster.state.iterdir()} >= {"cache"}
