"""Services and machines that are not as the settings say are told in one line, soon, and before any work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from person import Answer, Person, fails, told

SOON_S = 8.0  # asking every service, on a machine that has other things to do
NOBODY = "http://127.0.0.1:9"
S3_OF_NOBODY = {
    "YARN_OPS_STORE_URL": "s3://bucket/store",
    "YARN_OPS_S3_ENDPOINT_URL": NOBODY,
    "YARN_OPS_S3_ACCESS_KEY": "somebody",
    "YARN_OPS_S3_SECRET_KEY": "hunter2",
}

SETTINGS = {
    "a state directory that cannot be": (
        {"YARN_OPS_STATE_DIR": "/dev/null/state"},
        ["/dev/null/state: the state directory cannot be written", "set YARN_OPS_STATE_DIR"],
    ),
    "a store that cannot be written": (
        {"YARN_OPS_STORE_URL": "file:///dev/null/store"},
        ["file:///dev/null/store", "a file stands where a directory is needed", "choose another place"],
    ),
    "another kind of store": (
        {"YARN_OPS_STORE_URL": "gs://bucket"},
        ["YARN_OPS_STORE_URL: 'gs://bucket' is neither file:///… nor s3://bucket/prefix"],
    ),
    "no S3 server": (
        S3_OF_NOBODY,
        ["s3://bucket/store", "does not answer", "is YARN_OPS_S3_ENDPOINT_URL right?"],
    ),
    "no database server": (
        {"YARN_OPS_DATABASE_URL": "postgresql://me:hunter2@127.0.0.1:9/runs"},
        ["://me:***@127.0.0.1:9/runs: ", "Connection refused", "check YARN_OPS_DATABASE_URL"],
    ),
    "another kind of database": (
        {"YARN_OPS_DATABASE_URL": "mysql://me:hunter2@host/runs"},
        ["YARN_OPS_DATABASE_URL: only sqlite:/// and postgresql://"],
    ),
    "a database that is not there": (
        {"YARN_OPS_DATABASE_URL": "sqlite:////nowhere/runs.db"},
        ["sqlite:////nowhere/runs.db: no such database; run `yarn-ops db upgrade`"],
    ),
    "no MLflow server": (
        {"YARN_OPS_MLFLOW_URI": "http://me:hunter2@127.0.0.1:9"},
        ["MLflow at http://127.0.0.1:9: nothing answers; start it, or correct YARN_OPS_MLFLOW_URI"],
    ),
    "another kind of MLflow": (
        {"YARN_OPS_MLFLOW_URI": "databricks"},
        ["MLflow at databricks: write http://… or sqlite:///file"],
    ),
    "a cluster that shares no storage": (
        {"YARN_OPS_CLUSTER": "tcp://127.0.0.1:9"},
        ["YARN_OPS_CLUSTER: its workers share object storage alone; set YARN_OPS_STORE_URL to s3://"],
    ),
    "no Prefect server": (
        {"YARN_OPS_PREFECT_API_URL": f"{NOBODY}/api"},
        ["YARN_OPS_PREFECT_API_URL: nothing answers at http://127.0.0.1:9/api; start it, or unset"],
    ),
    "another kind of device": (
        {"YARN_OPS_DEVICE": "tpu"},
        ["YARN_OPS_DEVICE: input should be 'auto', 'cpu' or 'cuda'"],
    ),
    "no GPU": (
        {"YARN_OPS_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": ""},
        ["device: torch finds no CUDA GPU here; set YARN_OPS_DEVICE to auto or cpu"],
    ),
}


@pytest.fixture(scope="module")
def warm(person: Person, tmp_path_factory: pytest.TempPathFactory) -> Person:
    """Somebody whose process has imported what a run imports."""
    recipe = tmp_path_factory.mktemp("warm") / "recipe.toml"
    recipe.write_text(
        "base.model = '/nowhere'\nrope.factor = 2\ndata.sources = ['d']\npublish.name = 'n'\n", "utf-8"
    )
    told(person.types("extend", recipe, YARN_OPS_DEVICE="auto"), "/nowhere: no such directory")
    return person


@pytest.mark.parametrize("fault", SETTINGS)
def test_settings(fault: str, warm: Person, small_recipe: Path) -> None:
    settings, phrases = SETTINGS[fault]
    answer = fails(warm, ["extend", small_recipe], *phrases, **settings)
    assert answer.stages == []
    assert answer.seconds < SOON_S
    assert "hunter2" not in answer.err


def test_a_damaged_database(warm: Person, small_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "runs.db").write_bytes(os.urandom(5000))
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    told(
        warm.types("extend", small_recipe, YARN_OPS_DATABASE_URL=url),
        "not a database",
        "YARN_OPS_DATABASE_URL",
    )
    told(warm.types("extend", small_recipe, YARN_OPS_MLFLOW_URI=url), "something else", "YARN_OPS_MLFLOW_URI")


def test_a_shared_database_is_migrated_by_hand_alone(
    warm: Person, small_recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs.db").touch()
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    told(
        warm.types("extend", small_recipe, YARN_OPS_DATABASE_URL=url),
        "not migrated; run `yarn-ops db upgrade`",
    )
    assert warm.types("db", "upgrade", YARN_OPS_DATABASE_URL=url).status == 0
    assert "no runs yet" in warm.types("runs", YARN_OPS_DATABASE_URL=url).out


# A full disk, met in different places. Afterwards the same command gets further.


@pytest.mark.slow
def test_a_disk_full_of_the_base(warm: Person, small_recipe: Path) -> None:
    command = ["extend", small_recipe, "--set", "evaluate.recall_pairs=4000"]
    answer = fails(
        warm, command, "model.safetensors: no space left on the disk; free some", largest_file_bytes=2_000_000
    )
    assert answer.stages == []
    assert "documents" in fails(warm, command, "cannot hold 4000 code pairs").stages


@pytest.mark.slow
def test_a_disk_full_of_shards(warm: Person, small_recipe: Path, tmp_path: Path) -> None:
    text = tmp_path / "large.txt"  # one unit, whose tokens are a file of three megabytes
    text.write_bytes(b"".join(file.read_bytes() for file in sorted(Path(os.__file__).parent.glob("*.py"))))
    sources = f'data.sources=["{text}", "stdlib:asyncio/*.py", "stdlib:email/*.py"]'
    large = ["--set", sources, "--set", "evaluate.recall_pairs=4000"]
    command = ["extend", small_recipe, *large]
    answer = fails(warm, command, "no space left on the disk; free some", largest_file_bytes=2_000_000)
    assert answer.stages == ["base", "patch", "rehearse", "documents"]
    assert "shards" in fails(warm, command, "cannot hold 4000 code pairs").stages


@pytest.mark.slow
def test_a_disk_full_of_records(warm: Person, small_recipe: Path) -> None:
    answer = warm.types("extend", small_recipe, largest_file_bytes=10_000)
    told(answer, "registry.db: ", "disk")
    assert fails(warm, ["extend", small_recipe, "--set", "evaluate.recall_pairs=4000"], "cannot hold").stages


# In processes of their own: nothing is imported yet, and the embedded Prefect server is not started


@pytest.mark.parametrize(
    "fault", ["no MLflow server", "no Prefect server", "a state directory that cannot be"]
)
def test_nothing_is_started_in_vain(fault: str, small_recipe: Path, state: Path) -> None:
    settings, phrases = SETTINGS[fault]
    environment = {**os.environ, "YARN_OPS_STATE_DIR": str(state), **settings}
    done = subprocess.run(
        [sys.executable, "-m", "yarn_ops.cli", "extend", small_recipe],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    told(Answer(done.returncode, done.stdout, done.stderr), *phrases)
    assert not (state / "logs").exists()
