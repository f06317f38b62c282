"""`infra/stack up | down | status`: the production shape on one machine, without Docker."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import Any

import psutil

from yarn_ops import processes
from yarn_ops.errors import SettingsError, YarnOpsError
from yarn_ops.passwords import USER, for_browser
from yarn_ops.servers import LOOPBACK
from yarn_ops.settings import Settings, clean_environment, read_settings
from yarn_ops.stack.parts import MARK, Stack
from yarn_ops.stack.plan import StackPaths, ensure_plan, read_status
from yarn_ops.stack.supervisor import members, supervise

POLL_S = 0.2
STOP_S = 180.0


def up(settings: Settings) -> None:
    """Start the supervisor, wait until all parts are healthy, say where they are."""
    paths = StackPaths(settings.home)
    began = time.monotonic()
    if not processes.is_locked(paths.lock):
        paths.status.unlink(missing_ok=True)
        process = _start_supervisor(settings, paths)
        told = ""
        while True:
            status = read_status(paths)
            line = f"{status.get('phase', '')} {status.get('note', '')}".strip()
            if line != told and line:
                print(line, flush=True)
                told = line
            if status.get("phase") == "healthy":
                break
            if process.poll() is not None:
                raise SettingsError(str(status.get("note") or processes.last_lines(_log(paths))))
            time.sleep(POLL_S)
    else:
        print("it runs already")
    _say_where(settings, paths, time.monotonic() - began)


def down(settings: Settings) -> None:
    """End every process of the stack; its data stay."""
    paths = StackPaths(settings.home)
    pid = read_status(paths).get("pid")
    if processes.is_locked(paths.lock) and isinstance(pid, int):
        supervisor = psutil.Process(pid)
        supervisor.send_signal(signal.SIGTERM)
        try:
            supervisor.wait(STOP_S)
        except psutil.TimeoutExpired:
            supervisor.kill()
    _, left = psutil.wait_procs(members(paths), timeout=processes.STOP_S)
    for process in left:
        process.kill()
    print("stopped; everything is kept in", paths.home)


def status(settings: Settings) -> bool:
    """One line a part; whether all are healthy."""
    paths = StackPaths(settings.home)
    if not processes.is_locked(paths.lock):
        print("not running; `infra/stack up` starts it")
        return False
    found: Any = read_status(paths)
    print(found.get("phase", ""), found.get("note", ""))
    stack = Stack(settings, paths, ensure_plan(paths))
    well = True
    for part in stack.all():
        entry = found.get("parts", {}).get(part.name)
        ready = entry is not None and part.ready()
        well = well and ready
        facts = f"pid {entry['pid']}, restarts {entry['restarts']}" if entry else "not started"
        print(f"{'✓' if ready else '✗'} {part.name:<20} {facts}")
    return well


def _start_supervisor(settings: Settings, paths: StackPaths) -> subprocess.Popen[bytes]:
    """Start the supervisor in a session of its own, so that it outlives this command."""
    settings.make_home()
    paths.logs.mkdir(parents=True, exist_ok=True)
    environment = {
        **clean_environment(),
        MARK: str(paths.folder),
        "YARN_OPS_STATE_DIR": str(settings.home),
        "YARN_OPS_DEVICE": settings.device,
        "YARN_OPS_LEASE_S": str(settings.lease_s),
    }
    with _log(paths).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "yarn_ops.stack", "supervise"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def _say_where(settings: Settings, paths: StackPaths, seconds: float) -> None:
    stack = Stack(settings, paths, ensure_plan(paths))
    service = stack.service
    print(f"healthy after {seconds:.0f} s")
    print(f"Prefect UI   {for_browser(stack.settings, service.prefect_ui_url + '/deployments')}")
    print(f"MLflow UI    {for_browser(stack.settings, service.mlflow_uri + '/')}")
    print(f"S3           {stack.settings.s3_endpoint_url}")
    print(f"metrics      http://{LOOPBACK}:{stack.plan.ports['metrics']}/metrics   user {USER}, as Prefect's")
    print(f"logs         {paths.logs}")
    print(f"passwords    {paths.environment}   (for yarn-ops in a shell: set -a; . {paths.environment})")


def _log(paths: StackPaths) -> Any:
    return paths.logs / "supervisor.log"


def main() -> None:
    command = sys.argv[1] if len(sys.argv) == 2 else ""
    try:
        settings = read_settings()
        match command:
            case "up":
                up(settings)
            case "down":
                down(settings)
            case "status":
                sys.exit(0 if status(settings) else 1)
            case "supervise":
                supervise(settings)
            case _:
                sys.stderr.write("usage: infra/stack up | down | status\n")
                sys.exit(2)
    except YarnOpsError as error:
        sys.stderr.write(f"stack: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
