"""Child processes that end with us: a session of their own, output in a file, and a signal when we die."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

from yarn_ops.atomic import disk_errors, room_in
from yarn_ops.errors import SettingsError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
STOP_S = 30.0  # Prefect grants a cancelled flow as long
POLL_S = 0.05


def start(
    command: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str],
    user: str | None = None,
    folder: Path | None = None,
    end_by: signal.Signals = signal.SIGTERM,
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start `command` in a new session, its output appended to `log`; `end_by` reaches it when we die.

    On Linux, where "we" is the calling thread: call this from one that lives as long as the child may.
    Output goes to a file, never a pipe: a child that holds its parent's pipe hides the parent's death.
    `user`: run as that one (only root may). `folder`: its working directory. `stdin`: an open file for its
    standard input, which is empty else.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            cwd=folder,
            user=user,
            group=None if user is None else pwd.getpwnam(user).pw_gid,
            start_new_session=True,
            preexec_fn=_death_signal(end_by),
        )


_interrupted = threading.Event()
_missed: list[BaseException] = []


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal handler: KeyboardInterrupt, and a note of it, because libraries may swallow the exception."""
    _interrupted.set()
    raise KeyboardInterrupt


@contextlib.contextmanager
def keeping_missed(*raised: type[BaseException]) -> Iterator[None]:
    """In the block, what a signal's handler raises where nothing can be raised is kept for `raise_missed`.

    A signal that arrives in a destructor, or in a callback of a weak reference, would only be printed.
    """
    before = sys.unraisablehook

    def keep(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, raised):
            _missed.append(unraisable.exc_value)
        else:
            before(unraisable)

    sys.unraisablehook = keep
    try:
        yield
    finally:
        sys.unraisablehook = before
        _missed.clear()


def raise_missed() -> None:
    """For a place where work can stop: raise what was kept, or the interrupt that only left its note."""
    if _missed:
        raise _missed.pop()
    if _interrupted.is_set():
        raise KeyboardInterrupt


def stop(
    process: subprocess.Popen[bytes], timeout_s: float = STOP_S, end_by: signal.Signals = signal.SIGTERM
) -> int:
    """`end_by` to the process's group; the exit status when it and all that it started are gone.

    What it started in sessions of their own is its own to end; SIGKILL to whatever is left after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    below = offspring(process.pid)
    _signal_group(process.pid, end_by)
    while (process.poll() is None or any(map(alive, below))) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    _signal_group(process.pid, signal.SIGKILL)
    for child in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    return process.wait()


def birth(pid: int) -> float:
    """When the process began: no later one of the same number has the same. psutil.NoSuchProcess without one.

    On Linux in seconds since the machine's start: the time of day, from which psutil reckons, may be set.
    """
    try:
        facts = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return float(psutil.Process(pid).create_time())
    # The name, in parentheses, may hold anything; the start is the 22nd field (proc_pid_stat(5)).
    return int(facts.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def using(folder: Path) -> Iterator[None]:
    """Have a directory, made when missing, that `remove_unused` leaves alone while the block lasts.

    Any number of processes may use it. It is a lock of the kernel's: it ends with the process that holds it.
    """
    handle = _hold(folder)
    try:
        yield
    finally:
        os.close(handle)


def _hold(folder: Path) -> int:
    """A handle that keeps the directory, which is there when this returns, from `remove_unused`."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_SH)
            if os.path.samestat(os.fstat(handle), folder.stat()):
                return handle
        except FileNotFoundError:  # removed in this moment
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def scratch_in(folder: Path) -> None:
    """Have this process's `scratch` lie in `folder`, on the disk that holds its state or its work.

    Until this is called it lies in the system's temporary directory, which is often small.
    """
    global _scratch_root
    _scratch_root = folder


_scratch_root: Path | None = None


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """An empty directory that is gone after the block; one that a killed process leaves is found by gc.

    StoreError in one line where it cannot be made, or where the disk becomes full within the block.
    """
    with contextlib.ExitStack() as stack:
        with disk_errors(_scratch_root or "the temporary directory (TMPDIR)"):
            if _scratch_root is not None:
                _scratch_root.mkdir(parents=True, exist_ok=True)
            made = tempfile.TemporaryDirectory(
                prefix="scratch-", dir=_scratch_root, ignore_cleanup_errors=True
            )
            folder = Path(stack.enter_context(made))
            stack.enter_context(using(folder))
        stack.enter_context(room_in(folder))
        yield folder


@contextlib.contextmanager
def locked(path: Path, refusal: Callable[[], str]) -> Iterator[None]:
    """Hold a lock file while the block lasts; SettingsError(refusal()) when another process does.

    It is a lock of the kernel's: it ends with the process that holds it.
    """
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(refusal()) from None
        yield


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file."""
    try:
        with path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def is_used(path: Path) -> bool | None:
    """Whether a process has a lock on the file or directory, as by `using`; False where there is none.

    None: the file system cannot tell.
    """
    with _alone(path) as told:
        return told


def remove_unused(folder: Path) -> bool:
    """Remove a directory and all in it unless a process uses it; whether it is gone."""
    with _alone(folder) as used:
        if not used:
            shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool | None]:
    """Whether a process uses it; if none does, none can begin to before the block ends."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        yield False if isinstance(error, FileNotFoundError) else None
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        used: bool | None = True
    except OSError:
        used = None
    else:
        used = False
    try:
        yield used
    finally:
        os.close(handle)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Within the block modules are imported: Python does not look for garbage, of which imports leave little,
    and never looks through what they made again. A fifth of what torch and transformers take."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def usable_threads() -> int:
    """How many threads may compute: OMP_NUM_THREADS, which torch goes by too, or a processor each."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(asked) if asked.isdecimal() and int(asked) else os.cpu_count() or 1


def last_lines(log: Path, count: int = 5) -> str:
    """The last lines of a log, in one."""
    try:
        lines = log.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    filled = [line.strip() for line in lines if line.strip()]
    return " | ".join(filled[-count:])


def offspring(pid: int) -> list[psutil.Process]:
    """All that a process started, and these in turn; none of one that is gone."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def alive(process: psutil.Process) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _death_signal(number: signal.Signals) -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)  # before the fork: nothing is loaded in the child
    parent = os.getpid()

    def ask() -> None:
        libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return ask
