"""The command line starts quickly, because it imports what a command needs and no more."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from yarn_ops.cli import app

SLOW = {
    "torch",
    "transformers",
    "peft",
    "prefect",
    "mlflow",
    "sqlalchemy",
    "boto3",
    "pandas",
    "pyarrow",
    "numpy",
}
HELP_S = 1.5  # 0.15 s on a quiet core
ATTEMPTS = 3

PROGRAM = """
import json, sys
from yarn_ops import cli
sys.argv = ["yarn-ops", *sys.argv[1:]]
try:
    cli.main()
finally:
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


def test_help_comes_at_once() -> None:
    def seconds() -> float:
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "yarn_ops.cli", "--help"], capture_output=True, text=True
        )
        assert done.returncode == 0
        assert "Usage: yarn-ops" in done.stdout
        return time.perf_counter() - began

    assert min(seconds() for _ in range(ATTEMPTS)) < HELP_S


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["extend", "--help"],
        ["runs", "--help"],
        ["recipe", "list"],
        ["recipe", "show", "demo"],
        ["extnd"],
    ],
)
def test_nothing_slow_is_imported(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True)
    imported = json.loads(done.stderr.splitlines()[-1])
    assert SLOW.intersection(imported) == set()


def test_runs_are_listed_without_models_and_flows(tmp_path_factory: pytest.TempPathFactory) -> None:
    environment = {"YARN_OPS_STATE_DIR": str(tmp_path_factory.mktemp("state"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "runs"], env=environment, capture_output=True, text=True
    )
    imported = json.loads(done.stderr.splitlines()[-1])
    assert done.stdout == "no runs yet; `yarn-ops extend RECIPE` makes one\n"
    assert (SLOW - {"sqlalchemy"}).intersection(imported) == set()


@pytest.mark.parametrize("group", [[], ["runs"], ["recipe"], ["rope"], ["db"]], ids=" ".join)
def test_no_line_of_help_is_cut_at_80_columns(group: list[str]) -> None:
    shown = CliRunner().invoke(app, [*group, "--help"], env={"COLUMNS": "80"}, prog_name="yarn-ops").output
    lines = shown.partition("Commands:")[2].splitlines()
    assert lines and not [line for line in lines if line.endswith("...") or len(line) > 80]
