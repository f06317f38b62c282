"""The process that holds a stack: starts its parts in order, starts again what ends, ends all of it.

It lives as long as it holds the stack's lock. When it is killed, the parts end with it.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import psutil

from yarn_ops import processes
from yarn_ops.atomic import atomic_write
from yarn_ops.errors import SettingsError, YarnOpsError
from yarn_ops.settings import Settings
from yarn_ops.stack.part import RunningPart, StackPart
from yarn_ops.stack.parts import MARK, Stack
from yarn_ops.stack.plan import StackPaths, ensure_plan, write_environment

WATCH_S = 0.5
STEADY_S = 60.0
"""a part that ran for as long and then ended is started again at once"""
LONGEST_DELAY_S = 30.0


def supervise(settings: Settings) -> None:
    """Run the stack of the state directory until SIGTERM or SIGINT. SettingsError when it cannot start."""
    paths = StackPaths(settings.home)
    paths.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with processes.locked(
        paths.lock, lambda: f"{paths.folder}: the stack runs already; `infra/stack down` ends it"
    ):
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, processes.interrupt)
        supervisor = Supervisor(paths)
        try:
            supervisor.start(settings)
            supervisor.watch()
        except KeyboardInterrupt:
            supervisor.tell("stopping")
        except Exception as error:
            supervisor.tell("failed", str(error) if isinstance(error, YarnOpsError) else repr(error))
            raise
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            supervisor.stop()
        supervisor.tell("stopped")


def members(paths: StackPaths) -> list[psutil.Process]:
    """Every living process that was started by this stack or by what it started."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(paths.folder) and processes.alive(process):
                found.append(process)
        except psutil.Error:
            continue
    return found


class Supervisor:
    """The running parts, in the order of their start."""

    def __init__(self, paths: StackPaths) -> None:
        self._paths = paths
        self._running: list[RunningPart] = []
        self._due: dict[str, float] = {}
        """when to start an ended part again, by the monotonic clock"""
        self._restarts: dict[str, int] = {}
        self._quick_ends: dict[str, int] = {}
        self._began = time.monotonic()

    def start(self, settings: Settings) -> None:
        """Everything, each part ready before what needs it starts."""
        self.tell("starting", "secrets, clusters")
        plan = ensure_plan(self._paths)
        stack = Stack(settings, self._paths, plan)
        self._end_leftovers()
        stack.prepare()
        self._launch(stack.storage())
        self.tell("starting", "databases, bucket")
        stack.furnish()
        write_environment(self._paths, stack.settings)
        deploy = RunningPart.start(stack.deploy(), self._paths.logs)  # it waits for the servers itself
        try:
            self._launch(stack.servers())
            self.tell("starting", "deployments")
            self._finish(deploy)
        finally:
            deploy.stop()
        self._launch([*stack.workers(), stack.metrics()])
        self.tell("healthy", f"in {time.monotonic() - self._began:.0f} s")

    def watch(self) -> None:
        """Start again what ends, for ever: later and later when it ends soon."""
        while True:
            for index, running in enumerate(self._running):
                name = running.part.name
                if not running.ended:
                    continue
                now = time.monotonic()
                if name not in self._due:
                    lived_s = now - running.started_at
                    quick = 0 if lived_s > STEADY_S else self._quick_ends.get(name, 0) + 1
                    self._quick_ends[name] = quick
                    delay_s = 0.0 if quick <= 1 else min(LONGEST_DELAY_S, 2.0**quick)
                    self._due[name] = now + delay_s
                    self.tell("healthy", f"{name} ended with status {running.process.returncode}")
                if now >= self._due[name]:
                    del self._due[name]
                    self._restarts[name] = self._restarts.get(name, 0) + 1
                    self._running[index] = RunningPart.start(running.part, self._paths.logs)
                    self.tell("healthy", f"{name} was started again")
            time.sleep(WATCH_S)

    def stop(self) -> None:
        """Workers and the runs in them first, what keeps the data last; side by side what may."""
        workers = [running for running in self._running if running.part.name.startswith("worker-")]
        storage = [running for running in self._running if running.part.name in ("postgres", "s3")]
        _stop(workers)
        known = {running.process.pid for running in self._running} | {os.getpid()}
        servers = {
            child.pid for running in self._running for child in processes.offspring(running.process.pid)
        }
        _end([one for one in members(self._paths) if one.pid not in known | servers])
        _stop([running for running in self._running if running not in storage])
        _stop(storage)
        self._running.clear()
        self._end_leftovers()

    def tell(self, phase: str, note: str = "") -> None:
        """One line in the supervisor's log, and the state for `infra/stack status`."""
        print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {phase} {note}".rstrip(), flush=True)
        status = {
            "pid": os.getpid(),
            "phase": phase,
            "note": note,
            "parts": {
                running.part.name: {
                    "pid": running.process.pid,
                    "restarts": self._restarts.get(running.part.name, 0),
                }
                for running in self._running
            },
        }
        with atomic_write(self._paths.status) as draft:
            draft.write_text(json.dumps(status, indent=2), "utf-8")

    def _launch(self, parts: Sequence[StackPart]) -> None:
        """Side by side; return when all are ready."""
        self.tell("starting", ", ".join(part.name for part in parts))
        for part in parts:
            if part.ready():
                raise SettingsError(f"{part.name}: something else answers at its port; end that first")
            self._running.append(RunningPart.start(part, self._paths.logs))
        for running in self._running[-len(parts) :]:
            running.wait()

    def _finish(self, running: RunningPart) -> None:
        if running.process.wait() != 0:
            last = processes.last_lines(running.log)
            raise SettingsError(f"{running.part.name} failed; the end of {running.log}: {last}")

    def _end_leftovers(self) -> None:
        """Processes of an earlier supervisor that was killed."""
        _end([one for one in members(self._paths) if one.pid != os.getpid()])


def _stop(parts: Sequence[RunningPart]) -> None:
    if parts:
        with ThreadPoolExecutor(len(parts)) as pool:
            list(pool.map(RunningPart.stop, parts))


def _end(found: Sequence[psutil.Process]) -> None:
    for process in found:
        _signal(process, signal.SIGTERM)
    _, left = psutil.wait_procs(found, timeout=processes.STOP_S)
    for process in left:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(left, timeout=processes.STOP_S)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        return
