"""MLflow that is not there: one line, no password; and not a word where there is nothing to say."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from yarn_ops.errors import ReleaseError
from yarn_ops.release import Tracking


def failure(uri: str, tmp_path: Path) -> str:
    with pytest.raises(ReleaseError) as raised:
        Tracking(uri, tmp_path.as_uri()).ensure_experiment("e")
    return str(raised.value)


@pytest.mark.parametrize(
    "uri", ["", "mlruns", "file:///mlruns", "postgresql://me:secret@db/mlflow", "databricks"]
)
def test_other_kinds_of_mlflow_are_refused(uri: str, tmp_path: Path) -> None:
    message = failure(uri, tmp_path)
    assert "write http://… or sqlite:///file" in message
    assert "secret" not in message


def test_a_server_that_is_down_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    message = failure("http://me:secret@127.0.0.1:9", tmp_path)
    assert message == ("MLflow at http://me:***@127.0.0.1:9: cannot be reached; is the server running there?")


def test_a_database_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database at all, but long enough to look like a file" * 20)
    assert "the file is something else" in failure(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "File exists" in failure(f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}", tmp_path)


def test_runs_that_tell_the_same_data_set_at_once_all_do(tmp_path: Path) -> None:
    """MLflow looks whether it knows a data set, and then makes it: of two at once one made it in vain."""
    tracking = Tracking(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path.as_uri())
    runs = [tracking.start_run("e", f"run-{number}", {}) for number in range(4)]
    for digest in map(str, range(8)):
        together = Barrier(len(runs))

        def tell(run_id: str, digest: str = digest, together: Barrier = together) -> None:
            together.wait()
            tracking.log_dataset(run_id, "shards", digest, {})

        with ThreadPoolExecutor(len(runs)) as pool:
            list(pool.map(tell, runs))


def test_nothing_is_printed_and_nothing_is_left_in_the_working_directory(tmp_path: Path) -> None:
    program = """
import logging, sys
logging.basicConfig(level=logging.INFO)
from yarn_ops.release import Tracking
tracking = Tracking(sys.argv[1], sys.argv[2])
run_id = tracking.start_run("e", "r", {})
tracking.log_metrics(run_id, 0, {"loss": 1.0})
uri = tracking.artifact_uri(run_id)
tracking.register("m", uri + "/model", run_id, {"gate": "passed"})
tracking.find("m")
tracking.finish(run_id, "completed", "promoted")
"""
    here = tmp_path / "here"
    here.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program, f"sqlite:///{tmp_path / 'mlflow.db'}", (tmp_path / "store").as_uri()],
        cwd=here,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(here.iterdir()) == []


def test_mlflow_is_not_imported_before_it_is_used() -> None:
    program = "import sys, yarn_ops.release; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
