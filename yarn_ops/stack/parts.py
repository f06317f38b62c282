"""Everything that runs in a stack, in the order in which one needs the other."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from yarn_ops import registry, servers
from yarn_ops.servers import LOOPBACK, WORK_POOLS, Service, answers
from yarn_ops.settings import Settings, as_environment, clean_environment, without_unset
from yarn_ops.stack.part import StackPart
from yarn_ops.stack.plan import BUCKET, DATABASES, StackPaths, StackPlan, database_url, settings_of
from yarn_ops.stack.postgres import Postgres
from yarn_ops.stack.swift import Swift

MLFLOW_WORKERS = 2
MARK = "YARN_OPS_STACK"
"""in the environment of every process of a stack, inherited by all that they start: whose they are"""


class Stack:
    """The parts of one stack, over the plan in its state directory."""

    def __init__(self, settings: Settings, paths: StackPaths, plan: StackPlan) -> None:
        self.paths = paths
        self.plan = plan
        self.settings = settings_of(settings, paths, plan)
        self.postgres = Postgres(
            paths.postgres, port=plan.ports["postgres"], password=plan.secrets.plain("postgres")
        )
        self.swift = Swift(paths.swift, port=plan.ports["s3"], secret_key=plan.secrets.plain("s3"))

    @property
    def service(self) -> Service:
        assert self.settings.prefect_api_url and self.settings.mlflow_uri
        return Service.of(self.settings, self.settings.prefect_api_url, self.settings.mlflow_uri)

    def prepare(self) -> None:
        """Clusters and configuration on disk."""
        with ThreadPoolExecutor() as pool:
            for made in [pool.submit(self.postgres.prepare), pool.submit(self.swift.prepare)]:
                made.result()

    def storage(self) -> list[StackPart]:
        """What keeps the data."""
        return [self._marked(part) for part in (self.postgres.part(), self.swift.part())]

    def furnish(self) -> None:
        """Databases, bucket and the registry's tables, once `storage` runs."""
        for name in DATABASES:
            self.postgres.ensure_database(name, self.plan.secrets.plain(name))
        self.swift.create_bucket(BUCKET)
        registry.upgrade(self.settings.database)

    def servers(self) -> list[StackPart]:
        return [self._prefect(), self._mlflow()]

    def deploy(self) -> StackPart:
        """Waits for the servers; ends by itself, when pools and deployments stand."""
        return self._part("deployments", servers.deploy(self.settings, self.service), "")

    def workers(self) -> list[StackPart]:
        parts = []
        for pool in WORK_POOLS:
            port = self.plan.ports[f"worker-{pool}"]
            command, environment = servers.work_on(self.settings, self.service, pool)
            environment = environment | {
                "PREFECT_WORKER_WEBSERVER_HOST": LOOPBACK,
                "PREFECT_WORKER_WEBSERVER_PORT": str(port),
            }
            parts.append(
                self._part(
                    f"worker-{pool}",
                    ([*command, "--with-healthcheck"], environment),
                    f"http://{LOOPBACK}:{port}/health",
                )
            )
        return parts

    def metrics(self) -> StackPart:
        port = self.plan.ports["metrics"]
        command = [sys.executable, "-m", "yarn_ops.metrics", "--port", str(port)]
        return self._part("metrics", (command, {}), f"http://{LOOPBACK}:{port}/health")

    def all(self) -> list[StackPart]:
        """In dependency order, without what ends by itself."""
        return [*self.storage(), *self.servers(), *self.workers(), self.metrics()]

    def _prefect(self) -> StackPart:
        url = database_url(self.plan, "prefect", "postgresql+asyncpg")
        process = servers.prefect_server(self.settings, self.plan.ports["prefect"], url, services=True)
        return self._part("prefect", process, f"{self.settings.prefect_api_url}/health")

    def _mlflow(self) -> StackPart:
        url = database_url(self.plan, "mlflow")
        process = servers.mlflow_server(self.settings, self.plan.ports["mlflow"], url, workers=MLFLOW_WORKERS)
        return self._part("mlflow", process, f"{self.settings.mlflow_uri}/health")

    def _part(self, name: str, process: tuple[list[str], dict[str, str]], health: str) -> StackPart:
        command, environment = process
        whole = without_unset(clean_environment() | as_environment(self.settings) | environment)
        return self._marked(
            StackPart(name, command, whole, lambda: answers(health), folder=self.paths.folder)
        )

    def _marked(self, part: StackPart) -> StackPart:
        environment: Mapping[str, str] = {**part.environment, MARK: str(self.paths.folder)}
        folder = part.folder or Path("/")
        return StackPart(part.name, part.command, environment, part.ready, part.user, folder, part.end_by)
