"""Child processes that are stopped whole, and that end when their starter does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from yarn_ops import processes

PATIENCE_S = 20.0

SAYS_READY = "import os, time; print('ready', os.getpid(), flush=True); time.sleep(600)"
IGNORES_SIGTERM = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SAYS_READY}"
HAS_A_CHILD = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", {SAYS_READY!r}], start_new_session=True)
import time; time.sleep(600)
"""
"""its child leads a session of its own, so that no signal to the group reaches it"""
STARTS_A_CHILD = f"""
import os, sys, time
from pathlib import Path
from yarn_ops import processes
processes.start([sys.executable, "-c", {SAYS_READY!r}], log=Path(sys.argv[1]), env=os.environ)
time.sleep(600)
"""


INTERRUPTED_IN_A_CALLBACK = """
import os, signal, weakref
from yarn_ops import processes
signal.signal(signal.SIGTERM, processes.interrupt if {noted} else signal.default_int_handler)
class Thing: pass
with processes.keeping_missed(KeyboardInterrupt):
    thing = Thing()
    seen = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    del thing
    print("nothing was raised", flush=True)
    try:
        processes.raise_missed()
    except KeyboardInterrupt:
        print("raised later", flush=True)
"""


@pytest.mark.parametrize("noted", [True, False])
def test_an_interrupt_that_cannot_be_raised_where_it_arrives_is_raised_later(noted: bool) -> None:
    code = INTERRUPTED_IN_A_CALLBACK.format(noted=noted)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.splitlines(), done.stderr) == (["nothing was raised", "raised later"], "")


def test_what_else_cannot_be_raised_is_printed_as_ever() -> None:
    code = """
import weakref
from yarn_ops import processes
class Thing: pass
with processes.keeping_missed(KeyboardInterrupt):
    thing = Thing()
    seen = weakref.ref(thing, lambda _: 1 / 0)
    del thing
    processes.raise_missed()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "ZeroDivisionError" in done.stderr


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ready_process(log: Path) -> psutil.Process:
    """The process that has written its id to the log."""
    wait_until(lambda: log.exists() and log.read_text().endswith("\n"))
    return psutil.Process(int(log.read_text().split()[1]))


def start(code: str, log: Path) -> subprocess.Popen[bytes]:
    return processes.start([sys.executable, "-c", code], log=log, env=os.environ)


def test_a_process_is_ended_by_sigterm(tmp_path: Path) -> None:
    process = start(SAYS_READY, tmp_path / "log")
    ready_process(tmp_path / "log")
    assert processes.stop(process) == -signal.SIGTERM


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    process = start(IGNORES_SIGTERM, tmp_path / "log")
    ready_process(tmp_path / "log")
    assert processes.stop(process, timeout_s=0.2) == -signal.SIGKILL


def test_what_a_process_left_behind_is_killed(tmp_path: Path) -> None:
    process = start(HAS_A_CHILD, tmp_path / "log")
    child = ready_process(tmp_path / "log")
    assert processes.stop(process, timeout_s=0.2) == -signal.SIGTERM
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_an_ended_process_keeps_its_status(tmp_path: Path) -> None:
    process = start("raise SystemExit(7)", tmp_path / "log")
    process.wait()
    assert processes.stop(process) == 7


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the death signal is Linux's")
def test_a_child_ends_when_its_starter_is_killed(tmp_path: Path) -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTS_A_CHILD, str(tmp_path / "log")])
    child = ready_process(tmp_path / "log")
    starter.kill()
    starter.wait()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_output_is_appended_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "log"
    for word in ("one", "two"):
        start(f"import sys; print({word!r}); print('error', file=sys.stderr)", log).wait()
    assert sorted(log.read_text().split()) == ["error", "error", "one", "two"]


def test_the_last_lines_of_a_log_are_told_in_one(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first\n\n  second\nthird\n\n", "utf-8")
    assert processes.last_lines(log, count=2) == "second | third"
    assert processes.last_lines(tmp_path / "missing") == ""


def test_a_process_is_known_by_its_birth() -> None:
    child = subprocess.Popen([sys.executable, "-c", SAYS_READY], stdout=subprocess.DEVNULL)
    try:
        since_start = psutil.Process(child.pid).create_time() - psutil.boot_time()
        assert processes.birth(child.pid) == pytest.approx(since_start, abs=2)
        assert processes.birth(child.pid) > processes.birth(os.getpid())
    finally:
        child.kill()
        child.wait()
    with pytest.raises(psutil.NoSuchProcess):
        processes.birth(child.pid)


@pytest.mark.parametrize(
    ("asked", "threads"),
    [("3", 3), ("4,2", 4), ("", os.cpu_count()), ("0", os.cpu_count()), ("many", os.cpu_count())],
)
def test_threads_are_as_many_as_asked(monkeypatch: pytest.MonkeyPatch, asked: str, threads: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert processes.usable_threads() == threads
