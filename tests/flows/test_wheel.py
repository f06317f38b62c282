"""The wheel, in an environment that has nothing else of ours, used away from the checkout."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from pages import CHECKOUT
from service_up import Up

import yarn_ops

CUT_SHORT = (
    "train.steps=2", "train.warmup_steps=1", "train.context_tokens=1024", "rope.factor=2",
    "evaluate.windows=2", "evaluate.recall_windows=2", "evaluate.lengths=[1, 2]",
    "gate.min_recall_kept=0", "gate.min_uses_share=0",
    "gate.max_long_growth=9", "gate.max_short_growth=2", "gate.max_short_recall_loss=1",
    'data.sources=["stdlib:asyncio/*.py", "stdlib:email/*.py", "stdlib:json/*.py"]',
)  # fmt: skip


class Elsewhere:
    """An environment with the wheel and its dependencies, in an empty folder with a state of its own."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        python = folder / "env" / "bin" / "python"
        self.yarn_ops = str(python.with_name("yarn-ops"))
        _python("-m", "venv", "--without-pip", folder / "env")
        _python("-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
        # Dependencies are the running interpreter's, without what its own .pth files add: the checkout.
        packages = next((folder / "env").glob("lib/python*/site-packages"))
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "YARN_OPS_STATE_DIR": str(self.state),
        }
        self.found = self._run(
            python, "-c", "import yarn_ops, flows; print(yarn_ops.__file__, flows.__file__)"
        )

    def command(self, *arguments: str) -> str:
        """What `yarn-ops …` prints, which has to end well."""
        return self._run(self.yarn_ops, *arguments)

    def _run(self, *command: str | Path) -> str:
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=800
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def _python(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    """The wheel is built from a copy: a build leaves files beside its sources, and takes what lies there."""
    sources = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(CHECKOUT / name, sources)
    for name in ("yarn_ops", "flows"):
        shutil.copytree(CHECKOUT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    wheels = tmp_path_factory.mktemp("wheels")
    _python("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, sources)
    (wheel,) = wheels.glob("*.whl")
    return Elsewhere(tmp_path_factory.mktemp("elsewhere"), wheel)


def test_the_packages_are_the_wheels(elsewhere: Elsewhere) -> None:
    assert all(path.startswith(str(elsewhere.folder)) for path in elsewhere.found.split())


def test_every_file_of_the_packages_is_in_the_wheel(elsewhere: Elsewhere) -> None:
    packages = Path(elsewhere.found.split()[0]).parents[1]
    ours = [file for name in ("yarn_ops", "flows") for file in (CHECKOUT / name).rglob("*") if file.is_file()]
    kept = [file.relative_to(CHECKOUT) for file in ours if file.suffix != ".pyc"]
    assert [path for path in kept if not (packages / path).is_file()] == []


def test_it_tells_its_version_and_its_commands(elsewhere: Elsewhere) -> None:
    assert elsewhere.command("--version") == f"yarn-ops {yarn_ops.__version__}\n"
    assert elsewhere.command("--help").startswith("Usage: yarn-ops")


def test_it_has_the_recipes(elsewhere: Elsewhere) -> None:
    listed = [line.split()[0] for line in elsewhere.command("recipe", "list").splitlines()]
    assert listed == ["8k-16k-32k", "8k-to-128k", "8k-to-32k", "demo"]
    for name in listed:
        assert tomllib.loads(elsewhere.command("recipe", "show", name))["rope"]["method"] == "yarn"


def test_it_has_the_demos_base(elsewhere: Elsewhere) -> None:
    shown = elsewhere.command("rope", "show", "shipped:base512", "--method", "yarn", "--factor", "4")
    assert "kept" in shown
    assert "interpolated" in shown


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_extends_and_serves(elsewhere: Elsewhere) -> None:
    """The service does the same recipe again, all of it reused, with a worker of the wheel."""
    somebody = ["-c", "user.name=Somebody", "-c", "user.email=somebody@localhost"]
    for words in (["init"], [*somebody, "commit", "--allow-empty", "--message", "A project of theirs"]):
        subprocess.run(["git", *words], cwd=elsewhere.folder, check=True, capture_output=True)
    changes = [word for change in CUT_SHORT for word in ("--set", change)]
    assert "demo-long version 1" in elsewhere.command("extend", "demo", *changes)
    recipe = tomllib.loads(elsewhere.command("recipe", "show", "demo", *changes))
    service = Up(elsewhere.state, program=(elsewhere.yarn_ops,), environment=elsewhere.environment)
    run = service.run_of(recipe)
    assert service.end(signal.SIGINT) == []
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    runs = json.loads(elsewhere.command("runs", "--json"))
    assert [run["git_commit"] for run in runs] == [None, None]  # theirs is not ours
