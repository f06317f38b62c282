"""A real Dask cluster on loopback: a scheduler and nodes, each a worker process of one thread.

with DaskCluster(settings, 2) as cluster:  # at `settings.cluster`
    cluster.stop(1)
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from yarn_ops.cluster import workers_of
from yarn_ops.errors import SettingsError
from yarn_ops.servers import free_ports
from yarn_ops.settings import Settings, as_environment

READY_TIMEOUT_S = 120.0


def with_cluster(settings: Settings) -> Settings:
    """The settings with the address of a cluster that is still to be started."""
    (port,) = free_ports(1)
    return settings.model_copy(update={"cluster": f"tcp://127.0.0.1:{port}"})


class DaskCluster:
    """The nodes share nothing but the object storage of `settings`: each has a state directory of its own."""

    def __init__(self, settings: Settings, nodes: int) -> None:
        self._settings, self._count = settings, nodes
        self._nodes: dict[int, psutil.Popen] = {}

    def __enter__(self) -> DaskCluster:
        port = self.address.rpartition(":")[2]
        self._scheduler = self._run("scheduler", "--host", "127.0.0.1", "--port", port)
        for node in range(self._count):
            self.start(node)
        self.wait()
        return self

    def __exit__(self, *failure: object) -> None:
        for node in list(self._nodes):
            self.stop(node)
        self._scheduler.kill()
        self._scheduler.wait()

    @property
    def address(self) -> str:
        return str(self._settings.cluster)

    def wait(self) -> None:
        """Until every node that was started is there."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                found = workers_of(self._settings)
            except SettingsError as error:
                found = 0 if "has no worker" in str(error) else -1
            if found == len(self._nodes):
                return
            time.sleep(0.2)
        raise TimeoutError("the Dask cluster is not ready")

    def start(self, node: int) -> None:
        home = self._home(node)
        self._nodes[node] = self._run(
            "worker", self.address, "--nworkers", "1", "--nthreads", "1", "--no-nanny",
            "--local-directory", str(home / "dask"), YARN_OPS_STATE_DIR=str(home),
        )  # fmt: skip

    def stop(self, node: int) -> None:
        """SIGKILL."""
        process = self._nodes.pop(node)
        process.kill()
        process.wait()

    def processes(self) -> list[psutil.Popen]:
        return list(self._nodes.values())

    def _home(self, node: int) -> Path:
        return self._settings.state_dir.parent / f"node-{node}"

    def _run(self, what: str, *arguments: str, **variables: str) -> psutil.Popen:
        return psutil.Popen(
            [sys.executable, "-m", f"distributed.cli.dask_{what}", *arguments, "--no-dashboard"],
            env={**os.environ, **as_environment(self._settings), **variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
