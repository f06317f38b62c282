"""What every test shares: the checkout's paths, a closed environment, and the product as a person runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from prefect_here import AUTH, at
from small_recipe import SMALL
from xdist.scheduler import LoadFileScheduling

from yarn_ops import processes, servers
from yarn_ops.secrecy import hide_values
from yarn_ops.settings import Settings
from yarn_ops.shipped import MODELS

hypothesis.settings.register_profile("repository", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("repository")

for name in [name for name in os.environ if name.startswith(("YARN_OPS_", "PREFECT_", "MLFLOW_"))]:
    del os.environ[name]  # no test may reach what the person at this machine uses
os.environ["PREFECT_API_AUTH_STRING"] = AUTH  # of the session's server
os.environ.setdefault("HF_HUB_OFFLINE", "1")

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

WITH_PREFECT = re.compile(
    r"flows/test_(bad_input_\w+|compare|damage|extend\w*|grid|notify|readme|reconcile)\.py|"
    r"seams/test_(kubernetes_job|many_at_once)\.py"
)
"""files that use the session's Prefect server and the person who types"""


class ByFile(LoadFileScheduling):
    """A file's tests go to one worker; so do all that use the session's servers, which cost a minute."""

    def _split_scope(self, nodeid: str) -> str:
        return "with Prefect" if WITH_PREFECT.search(nodeid) else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


@pytest.fixture(autouse=True)
def known_secrets() -> Iterator[None]:
    """What one test's settings make known is no secret in the next."""
    yield
    hide_values([])


@pytest.fixture(scope="session")
def base512() -> Path:
    """The demo's base: a real Llama of 5 M parameters, 512 tokens."""
    return MODELS / "base512"


@pytest.fixture
def small_recipe(tmp_path: Path) -> Path:
    """The path of a recipe that runs whole in seconds."""
    path = tmp_path / "small.toml"
    path.write_text(SMALL, "utf-8")
    return path


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prefect server for the session; each test run has its own state directory beside it."""
    settings = Settings(state_dir=tmp_path_factory.mktemp("prefect"), prefect_auth=AUTH)
    server = servers.start_prefect(settings, servers.free_port(), services=False)
    server.wait()
    yield server.url
    processes.stop(server.process)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A fresh state directory."""
    return tmp_path / "state"


@pytest.fixture
def environment(state: Path, prefect_api: str) -> dict[str, str]:
    """The environment of one person's commands."""
    return {**os.environ, "YARN_OPS_STATE_DIR": str(state), **at(prefect_api)}


@pytest.fixture
def cli(environment: dict[str, str]) -> Cli:
    """Run `yarn-ops …` in a process of its own: cli("extend", recipe, YARN_OPS_DEVICE="cpu")."""

    def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "yarn_ops.cli", *map(str, arguments)],
            env={**environment, **variables},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run
