"""From a trigger over the API to the first training step, on a service whose workers are up.

Starts `yarn-ops up` on a temporary state directory, runs a small recipe once, and then asks twice more: for
the same documents with another learning rate (only the training is new), and for other documents (all of it
is). Prints when what began, in seconds after the request; and the processor's seconds of what was started
for the run. With `--alone` no process waits for runs. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from yarn_ops import servers, standby
from yarn_ops.train.events import read_events

RECIPE: dict[str, Any] = {
    "base": {"model": "shipped:base512"},
    "rope": {"factor": 2},
    "data": {"sources": ["stdlib:json/*.py", "stdlib:email/*.py", "stdlib:asyncio/*.py"]},
    "train": {"steps": 4, "context_tokens": 256},
    "evaluate": {"lengths": [1, 2], "windows": 2, "recall_windows": 2, "templates": ["code"]},
    "gate": {
        "min_recall_kept": 0,
        "min_uses_share": 0,
        "max_short_growth": 9,
        "max_long_growth": 9,
        "max_short_recall_loss": 1,
    },
    "publish": {"name": "first"},
}
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
POLL_S = 0.05
LONGEST_S = 300.0
ALONE = "--alone"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder, "state")
        environment = {**os.environ, "YARN_OPS_STATE_DIR": str(state), "YARN_OPS_DEVICE": "cpu"}
        environment |= {"YARN_OPS_STANDBY": "false"} if ALONE in sys.argv else {}
        ports = ("--prefect-port", str(servers.free_port()), "--mlflow-port", str(servers.free_port()))
        with Path(folder, "up.log").open("wb") as log:
            service = subprocess.Popen(
                [sys.executable, "-m", "yarn_ops.cli", "up", *ports],
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            api = _api(state)
            _print(api, state, "first of all", RECIPE)
            _print(api, state, "another learning rate", _changed("train", learning_rate=1e-4))
            _print(api, state, "other documents", _changed("data", seed=7))
        except Exception:
            print(Path(folder, "up.log").read_text("utf-8"), file=sys.stderr)
            raise
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait()


def _changed(section: str, **values: Any) -> dict[str, Any]:
    return {**RECIPE, section: {**RECIPE[section], **values}}


def _api(state: Path) -> httpx.Client:
    """Of the service, once its deployments stand and its workers ask for runs."""
    _until(lambda: (state / "service.json").exists())
    service = servers.Service(**json.loads((state / "service.json").read_text()))
    user, _, password = str(service.prefect_auth).partition(":")
    api = httpx.Client(base_url=service.prefect_api_url, auth=(user, password), timeout=30)
    pool = f"/work_pools/{servers.GPU_POOL}/workers/filter"
    _until(lambda: any(one["status"] == "ONLINE" for one in api.post(pool, json={}).json()))
    return api


def _print(api: httpx.Client, state: Path, what: str, recipe: dict[str, Any]) -> None:
    """When each stage of a run began and its trainer took the first step."""
    deployment = api.get("/deployments/name/extend-context/extend-context").json()["id"]
    _until(lambda: ALONE in sys.argv or (state / standby.ADDRESS).exists())
    asked_at = time.time()
    path, wanted = f"/deployments/{deployment}/create_flow_run", {"parameters": {"recipe": recipe}}
    while (answer := api.post(path, json=wanted)).status_code == 503:  # SQLite, while its server starts
        time.sleep(POLL_S)
        asked_at = time.time()
    run_id = answer.raise_for_status().json()["id"]
    first: dict[str, Any] = {}

    def trains() -> bool:
        for log in (state / "work").glob("*/events.jsonl"):
            for event in read_events(log):
                if event["event"] == "step" and event["time"] > asked_at and not first:
                    first.update(event, **_processes(run_id))
        return bool(first)

    _until(trains)
    _until(lambda: api.get(f"/flow_runs/{run_id}").json()["state_type"] in FINAL)
    found = api.get(f"/flow_runs/{run_id}").json()
    moments = [("its process", first["began"]), ("the flow", _seconds(found["start_time"]))]
    tasks = api.post("/task_runs/filter", json={"flow_runs": {"id": {"any_": [run_id]}}}).json()
    moments += [(task["name"], _seconds(task["start_time"])) for task in tasks]
    moments += [("first training step", first["time"])]
    print(f"{what} ({found['state_type'].lower()}), {first['processor_s']:.1f} s of processor:")
    for name, at in sorted(moments, key=lambda moment: moment[1]):
        print(f"  {at - asked_at:6.1f} s  {name}")
        if name == "first training step":
            break
    sys.stdout.flush()


def _processes(flow_run: str) -> dict[str, float]:
    """When the first process of a flow run began, and what all have used so far."""
    began, used = time.time(), 0.0
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT__FLOW_RUN_ID") == flow_run:
                began = min(began, process.create_time())
                used += sum(process.cpu_times()[:2])
        except psutil.Error:
            continue
    return {"began": began, "processor_s": used}


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _until(holds: Any) -> None:
    deadline = time.monotonic() + LONGEST_S
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError("the service does not answer in time")
        time.sleep(POLL_S)


if __name__ == "__main__":
    main()
