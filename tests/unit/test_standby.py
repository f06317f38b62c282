"""A run handed over to a process that waited for it: both ends, as processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PATIENCE_S = 60.0
NOBODY = 77
WAITS = """
import os, sys, time
from pathlib import Path
from yarn_ops import standby
line = standby.wait(Path(sys.argv[1]), os.environ)
print(os.getpid(), sys.argv[1:], os.environ["PREFECT__RUN"], Path.cwd().name, flush=True)
if "sleep" in sys.argv:
    import signal
    signal.signal(signal.SIGTERM, lambda *_: (standby.end(line, 5), os._exit(5)))
    time.sleep(600)
standby.end(line, 3)
print("after the status", flush=True)
"""
HANDS_OVER = f"""
import sys
from pathlib import Path
from yarn_ops import standby
status = standby.hand_over(Path(sys.argv[1]), sys.argv[2:])
sys.exit({NOBODY} if status is None else status)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def address(tmp_path: Path) -> Path:
    return tmp_path / "standby.sock"


@pytest.fixture
def start(tmp_path: Path, address: Path) -> Iterator[Start]:
    """Starts one end, in a folder and with variables of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        folder = tmp_path / f"folder-{len(started)}"
        folder.mkdir()
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", script, str(address), *arguments],
                env={**os.environ, "PREFECT__RUN": folder.name, **variables},
                cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
        )  # fmt: skip
        if script == WAITS:
            until(address.exists)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_one_that_waits_has_arguments_variables_folder_and_output_of_the_one_that_asks(
    start: Start, address: Path
) -> None:
    waits = start(WAITS)
    asks = start(HANDS_OVER, "a run", "ü\udcff")
    said, _ = asks.communicate(timeout=PATIENCE_S)
    assert said == f"{waits.pid} ['a run', 'ü\\udcff'] folder-1 folder-1\nafter the status\n"
    assert asks.returncode == 3
    assert waits.communicate(timeout=PATIENCE_S)[0] == ""
    assert not address.exists()


def test_it_has_one_run_and_another_begins_by_itself(start: Start) -> None:
    waits = start(WAITS)
    first = start(HANDS_OVER, "sleep")
    assert first.stdout is not None and first.stdout.readline().startswith(str(waits.pid))
    second = start(HANDS_OVER, "sleep")
    assert second.wait(PATIENCE_S) == NOBODY
    first.send_signal(signal.SIGTERM)
    assert first.wait(PATIENCE_S) == waits.wait(PATIENCE_S) == 5


def test_one_with_other_variables_is_not_served_and_the_next_is(start: Start) -> None:
    waits = start(WAITS, PREFECT_API_URL="http://one")
    other = start(HANDS_OVER, PREFECT_API_URL="http://other")
    assert other.wait(PATIENCE_S) == NOBODY
    assert start(HANDS_OVER, PREFECT_API_URL="http://one").wait(PATIENCE_S) == 3
    assert waits.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("killed", ["who asked", "who does it"])
def test_neither_outlives_the_other_when_it_is_killed(start: Start, killed: str) -> None:
    waits, asks = start(WAITS), start(HANDS_OVER, "sleep")
    assert asks.stdout is not None and asks.stdout.readline()
    (asks if killed == "who asked" else waits).kill()
    assert asks.wait(PATIENCE_S) == waits.wait(PATIENCE_S) == -signal.SIGKILL


def test_where_nobody_waits_the_run_is_ones_own(start: Start) -> None:
    assert start(HANDS_OVER).wait(PATIENCE_S) == NOBODY
