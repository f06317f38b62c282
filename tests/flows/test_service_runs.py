"""Runs of the service as people ask for them: by API, on a schedule, from another shell, in a browser."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from browser import Person, browser, chromium
from playwright import sync_api as playwright
from service_up import Up, wait_until

from flows.liveness import PROCESS
from flows.outcome import is_made_up
from yarn_ops import standby

Recipe = dict[str, Any]

STAGES = {
    *("base", "documents", "shards", "evaluate", "patch", "train"),
    *("merge", "gate", "report", "publish"),
}

needs_chromium = pytest.mark.skipif(chromium() is None, reason="no chromium here: apt-get install chromium")
both_pages = pytest.mark.parametrize("pages", ["", "/v2"], ids=["older", "newer"])
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def run(up: Up, recipe: Recipe) -> dict[str, Any]:
    """A run of the small recipe, asked for over the API and done by the worker."""
    return up.run_of(recipe)


def test_a_schedule_is_a_deployment_of_its_own(up: Up, small_recipe: Path) -> None:
    for options, active in (([], True), (["--pause"], False)):
        made = up.command("schedule", small_recipe, "--name", "every-night", "--cron", "0 2 * * *", *options)
        assert made.returncode == 0, made.stderr
        (found,) = up.post("/deployments/filter", deployments={"name": {"any_": ["every-night"]}})
        (times,) = found["schedules"]
        assert (times["schedule"]["cron"], times["active"]) == ("0 2 * * *", active)
        assert found["parameters"]["recipe"]["publish"]["name"] == "small"
        assert f"{up.service.prefect_ui_url}/deployments/deployment/{found['id']}" in made.stdout
    wrong = up.command("schedule", small_recipe, "--cron", "at night")
    assert wrong.returncode == 2 and wrong.stderr.startswith("yarn-ops: --cron 'at night': ")


def test_somebody_is_told_of_a_run_whose_process_was_killed(
    up: Up, heard: list[dict[str, Any]], recipe: Recipe
) -> None:
    """Within seconds of the worker's noticing it, not at the next reconcile of the clock; and of its end."""
    recipe["publish"]["name"] = "killed"
    recipe["train"]["steps"] = 12
    run_id = up.begin(recipe)
    wait_until(up.trains, timeout_s=120)
    (process,) = (one for one in up.processes() if of_run(one, run_id))
    process.kill()
    told = f"killed ({run_id}), attempt 2"
    wait_until(lambda: any(row["text"] == told for one in heard for row in one["card"]), timeout_s=120)
    wait_until(lambda: any(one["title"] == "killed was promoted" for one in heard), timeout_s=200)
    (promoted,) = (one for one in heard if one["title"] == "killed was promoted")
    assert promoted["card"][0] == {"label": "promoted", "text": "killed, 512 to 1,024 tokens"}
    assert promoted["links"] == {"Run": f"{up.service.prefect_ui_url}/runs/flow-run/{run_id}"}


def of_run(process: psutil.Process, run_id: str) -> bool:
    """Whether it is the engine of a flow run."""
    try:
        mine = process.environ().get("PREFECT__FLOW_RUN_ID") == run_id
        return mine and "flows.engine" in process.cmdline()
    except psutil.Error:
        return False


def test_a_run_completes_with_a_task_for_every_stage(up: Up, run: dict[str, Any]) -> None:
    assert run["state_type"] == "COMPLETED", run["state"]
    tasks = up.find("task_runs", run["id"])
    assert {task["name"].split()[0] for task in tasks} >= STAGES
    assert len({task["name"] for task in tasks}) == len(tasks)
    assert {task["state_type"] for task in tasks} == {"COMPLETED"}


def test_a_run_begins_in_the_process_that_waited(up: Up, recipe: Recipe) -> None:
    """It gets the signal of a cancel, too, and is gone afterwards."""
    address = Path(up.environment["YARN_OPS_STATE_DIR"], standby.ADDRESS)
    wait_until(address.exists, timeout_s=120)
    recipe["publish"]["name"], recipe["train"]["steps"] = "waited", 2000
    run = up.begin(recipe)
    wait_until(up.trains, timeout_s=60)
    assert not address.exists()
    engine = psutil.Process(int(up.run(run)["labels"][PROCESS].partition("@")[0]))
    assert engine.cmdline()[-2:] == ["--wait", str(address)]
    up.cancel(run)
    assert up.finished(run)["state_name"] == "Cancelled"
    wait_until(lambda: not engine.is_running(), timeout_s=60)


def test_a_run_shows_its_progress_and_its_report(up: Up, run: dict[str, Any]) -> None:
    artifacts = {artifact["key"]: artifact for artifact in up.find("artifacts", run["id"])}
    assert artifacts["progress-train"]["type"] == "progress"
    assert artifacts["progress-train"]["data"] == 100
    report = artifacts["report"]
    assert report["description"] == "small version 1, gate passed"
    assert report["data"].count("](data:image/png;base64,") == 4
    assert "**Promoted: small, 512 to 1,024 tokens**" in report["data"]
    assert f"{up.service.mlflow_uri}/#/models/small/versions/1" in report["data"]


def test_the_version_is_downloaded_by_plain_mlflow(up: Up, run: dict[str, Any], tmp_path: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "mlflow",
            "artifacts",
            "download",
            "-u",
            "models:/small@champion",
            "-d",
            tmp_path,
        ],
        env={**up.environment, **up.for_mlflow},
        check=True,
        timeout=120,
    )
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["max_position_embeddings"] == 1024
    assert (tmp_path / "model.safetensors").stat().st_size > 9_000_000


def test_the_version_is_pulled(up: Up, run: dict[str, Any], tmp_path: Path) -> None:
    pulled = up.command("pull", "small", "--tag", "context_length=1024", "--to", tmp_path / "model")
    assert pulled.returncode == 0, pulled.stderr
    assert (tmp_path / "model" / "config.json").is_file()


def test_another_shell_uses_the_service(up: Up, run: dict[str, Any], small_recipe: Path) -> None:
    extended = up.command("extend", small_recipe, "--set", "publish.name=shell")
    assert extended.returncode == 0, extended.stderr
    newest = next(found for found in up.runs() if found["name"] == "shell")
    assert newest["state_type"] == "COMPLETED"
    assert newest["deployment_id"] is None
    (report,) = [found for found in up.find("artifacts", newest["id"]) if found["key"] == "report"]
    assert f"{up.service.mlflow_uri}/#/models/shell/versions/1" in report["data"]


@needs_chromium
def test_a_person_runs_the_form_in_a_browser(up: Up, run: dict[str, Any], recipe: Recipe) -> None:
    """Change the target, submit, see the run complete, read the report, find the version in MLflow."""
    recipe["rope"] = {"target_context_tokens": 1024}
    recipe["evaluate"]["lengths"] = [1, 2, 3]
    up.change_deployment(parameters={"recipe": recipe})  # or the form asks for the whole demo
    with playwright.sync_playwright() as driver, browser(driver) as page:
        for address in up.addresses.values():
            page.goto(address)
        person = Person(page, up)
        person.extend("from-the-form", 1536)
        person.watch()
        assert "extended from 512 to 1,536 tokens" in person.read_report(
            "from-the-form version 1, gate passed"
        )
        version = person.find_version("from-the-form")
        assert "1536" in version and "yarn-ops pull from-the-form --alias champion" in version
    ours = (up.service.prefect_ui_url, up.service.mlflow_uri, "data:", "blob:")
    assert [url for url in person.addresses if not url.startswith(ours)] == []


@needs_chromium
@both_pages
def test_five_fields_and_an_extension_runs_within_a_minute(up: Up, pages: str) -> None:
    name = f"short{pages.replace('/', '-')}"
    with playwright.sync_playwright() as driver, browser(driver) as page:
        page.goto(up.addresses["Prefect"])
        person = Person(page, up)
        assert [made_up for made_up in person.made_up_names(pages) if not is_made_up(made_up)] == []
        person.empty_the_short_form(pages)
        began = time.monotonic()
        person.fill_in_short_form(pages, ["shipped:base512", "stdlib:asyncio/*.py", name], 1024)
        wait_until(lambda: any(run["name"] == name for run in up.runs()), timeout_s=60)
        assert time.monotonic() - began < 60
    (run,) = (run for run in up.runs() if run["name"] == name)
    up.cancel(run["id"])  # test_deployments.py has one that goes on to its end
    assert up.finished(run["id"])["state_name"] == "Cancelled"


@needs_chromium
@both_pages
def test_nightly_is_saved_and_runs(up: Up, recipe: Recipe, pages: str) -> None:
    """Its first values are not in steps of 0.01; its schedule has none of its own."""
    recipe["publish"]["name"] = f"nightly{pages.replace('/', '-')}"
    recipe["data"]["held_out_fraction"], recipe["train"]["learning_rate"] = 0.125, 0.0015
    up.change_deployment(parameters={"recipe": recipe})
    deployment = up.deployment["id"]
    with playwright.sync_playwright() as driver, browser(driver) as page:
        page.goto(up.addresses["Prefect"])
        person = Person(page, up)
        person.save_deployment(pages, deployment)
        person.change_time(pages, deployment, "* * * * *")
    (schedule,) = up.deployment["schedules"]
    assert (schedule["schedule"]["cron"], schedule["parameters"]) == ("* * * * *", {})
    assert up.deployment["parameters"]["recipe"]["train"]["learning_rate"] == 0.0015
    up.switch_on(schedule)
    try:
        wait_until(lambda: bool(of(up, recipe)), timeout_s=120)
    finally:
        up.switch_on(schedule, active=False)
    assert up.finished(of(up, recipe)[-1]["id"])["state_name"] == "Completed"


@needs_chromium
@both_pages
def test_rejected_has_another_colour_than_completed(up: Up, recipe: Recipe, pages: str) -> None:
    later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2099-01-01T00:00:00Z"}}
    deployment = f"/deployments/{up.deployment['id']}/create_flow_run"
    filters = {}
    with playwright.sync_playwright() as driver, browser(driver) as page:
        page.goto(up.addresses["Prefect"])
        for name in ("Completed", "Rejected"):
            run = up.post(deployment, parameters={"recipe": recipe}, state=later)["id"]
            up.post(f"/flow_runs/{run}/set_state", state={"type": "COMPLETED", "name": name}, force=True)
            page.goto(f"{up.service.prefect_ui_url}{pages}/runs/flow-run/{run}")
            badge = page.locator(".state--completed, [class*=bg-state-completed]").get_by_text(name).first
            badge.wait_for()
            page.wait_for_timeout(500)
            shown = "node => node.closest('.state--completed, [class*=bg-state-completed]').style.filter"
            filters[name] = badge.evaluate(shown)
    assert filters == {"Completed": "", "Rejected": "hue-rotate(-100deg)"}


def of(up: Up, recipe: Recipe) -> list[dict[str, Any]]:
    """The runs that are called after this recipe's model."""
    return [run for run in up.runs() if run["name"] == recipe["publish"]["name"]]


def test_two_hundred_runs_are_asked_for_beside_three_at_work(up: Up, recipe: Recipe) -> None:
    """None is lost, and none is asked for twice: nobody here tries a refused one again."""
    recipe["train"]["steps"] = 60
    at_work = []
    for seed in range(3):
        busy = json.loads(json.dumps(recipe))
        busy["publish"]["name"], busy["data"]["seed"] = f"busy-{seed}", seed
        at_work.append(up.begin(busy))
    wait_until(lambda: all(up.run(run)["state_type"] == "RUNNING" for run in at_work), timeout_s=240)
    later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2099-01-01T00:00:00Z"}}
    address = f"{up.service.prefect_api_url}/deployments/{up.deployment['id']}/create_flow_run"
    auth = tuple(str(up.service.prefect_auth).split(":", 1))

    def ask(number: int) -> int:
        asked = {"name": f"asked-{number}", "parameters": {"recipe": recipe}, "state": later}
        return httpx.post(address, json=asked, auth=auth, timeout=120).status_code  # type: ignore[arg-type]

    with ThreadPoolExecutor(8) as people:
        answers = Counter(people.map(ask, range(200)))
    assert answers == {201: 200}
    named = {"name": {"like_": "asked-"}}
    assert up.post("/flow_runs/count", flow_runs=named) == 200
    for run in at_work:
        up.cancel(run)
    assert {up.finished(run)["state_type"] for run in at_work} <= {"CANCELLED", "COMPLETED"}


def test_a_suspended_run_stops_training(up: Up, recipe: Recipe) -> None:
    recipe["publish"]["name"], recipe["train"]["steps"] = "suspended", 2000
    run = up.begin(recipe)
    wait_until(lambda: up.run(run)["state_type"] == "RUNNING" and up.trains(), timeout_s=240)
    state = {"type": "PAUSED", "name": "Suspended", "state_details": {"pause_reschedule": True}}
    up.post(f"/flow_runs/{run}/set_state", state=state, force=True)
    began = time.monotonic()
    wait_until(lambda: not up.trains(), timeout_s=90)
    assert time.monotonic() - began < 30
    assert not [log for log in up.find("logs", run) if "Crash detected" in log["message"]]
    wait_until(lambda: not any(of_run(process, run) for process in up.processes()), timeout_s=60)
    up.post(f"/flow_runs/{run}/resume")
    wait_until(up.trains, timeout_s=120)
    up.cancel(run)
    assert up.finished(run)["state_name"] == "Cancelled"
