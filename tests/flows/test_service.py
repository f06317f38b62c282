"""The service as people use it: over the API, from another shell, in a browser."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
from browser import Person, browser, chromium
from playwright import sync_api as playwright
from service_up import Up, wait_until

Recipe = dict[str, Any]

STAGES = {
    *("base", "documents", "shards", "evaluate", "patch", "train"),
    *("merge", "gate", "report", "publish"),
}

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def heard() -> Iterator[list[dict[str, Any]]]:
    """What is told at YARN_OPS_NOTIFY."""
    told: list[dict[str, Any]] = []

    class Ear(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Ear) as server, pytest.MonkeyPatch.context() as patch:
        Thread(target=server.serve_forever, daemon=True).start()
        patch.setenv("YARN_OPS_NOTIFY", f"http://127.0.0.1:{server.server_port}/hook")
        yield told
        server.shutdown()


@pytest.fixture(scope="module")
def called() -> Iterator[list[str]]:
    """What asks for another host by way of the proxy that the environment names."""
    hosts: list[str] = []

    class Gate(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            hosts.append(self.path)
            self.send_error(403)

        do_GET = do_POST = do_CONNECT

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Gate) as server, pytest.MonkeyPatch.context() as patch:
        Thread(target=server.serve_forever, daemon=True).start()
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            patch.setenv(name, f"http://127.0.0.1:{server.server_port}")
        patch.setenv("no_proxy", "127.0.0.1,localhost")
        yield hosts
        server.shutdown()


@pytest.fixture(scope="module")
def up(
    tmp_path_factory: pytest.TempPathFactory, heard: list[dict[str, Any]], called: list[str]
) -> Iterator[Up]:
    """One service for all; it has to end without leaving a process or having called out."""
    service = Up(tmp_path_factory.mktemp("service") / "state")
    yield service
    assert called == []
    assert service.end(signal.SIGTERM) == []
    assert service.printed.endswith("stopping …\nstopped.\n")


@pytest.fixture
def recipe(small_recipe: Path) -> Recipe:
    return tomllib.loads(small_recipe.read_text("utf-8"))


@pytest.fixture
def run(up: Up, recipe: Recipe) -> dict[str, Any]:
    """A run of the small recipe, asked for over the API and done by the worker."""
    return up.run_of(recipe)


def test_the_addresses_are_printed(up: Up) -> None:
    assert f"Prefect UI   {up.service.prefect_ui_url}/deployments?token=" in up.printed
    assert f"MLflow UI    {up.service.mlflow_uri}/?token=" in up.printed and "#/models\n" in up.printed
    kept = Path(up.environment["YARN_OPS_STATE_DIR"], "addresses").read_text()
    assert kept in up.printed and str(up.service.prefect_auth).partition(":")[2] not in up.printed


def test_a_second_service_on_the_state_directory_is_refused(up: Up) -> None:
    second = up.command("up")
    assert second.returncode == 2
    assert second.stderr.count("\n") == 1
    assert f"already runs at {up.service.prefect_ui_url} there; stop it first" in second.stderr
    assert "token=" not in second.stdout + second.stderr


def test_every_field_of_the_form_has_a_title_and_a_first_value_or_is_empty(up: Up) -> None:
    schema = up.deployment["parameter_openapi_schema"]
    sections = schema["definitions"]["Recipe"]["properties"]
    values = up.deployment["parameters"]["recipe"]
    assert set(values) == set(sections)
    for section, reference in sections.items():
        fields = schema["definitions"][reference["$ref"].rpartition("/")[2]]["properties"]
        assert all(field["title"] for field in fields.values())
        for name, field in fields.items():
            assert name in values[section] or field.get("default") is None


def test_the_form_offers_choices_and_states_bounds(up: Up) -> None:
    definitions = up.deployment["parameter_openapi_schema"]["definitions"]
    assert "yarn" in definitions["Rope"]["properties"]["method"]["enum"]
    assert definitions["Train"]["properties"]["rank"]["minimum"] == 1


def test_a_value_out_of_bounds_is_refused_at_once(up: Up, recipe: Recipe) -> None:
    recipe["train"]["rank"] = -3
    answer = up.submit(recipe)
    assert answer.status_code == 409
    told = "recipe: train.rank: input should be greater than or equal to 1 (found -3)"
    assert answer.json() == {"detail": told}


def test_an_unknown_key_is_refused_at_once(up: Up, recipe: Recipe) -> None:
    recipe["train"]["stpes"] = 3
    answer = up.submit(recipe)
    assert answer.status_code == 409
    assert answer.json() == {"detail": "recipe: train.stpes: unknown key; did you mean 'steps'?"}


def test_both_pools_have_a_queue_for_urgent_runs(up: Up) -> None:
    for pool in ("yarn-ops", "yarn-ops-gpu"):
        queues = up.post(f"/work_pools/{pool}/queues/filter")
        assert sorted((queue["priority"], queue["name"]) for queue in queues) == [
            (1, "urgent"),
            (2, "default"),
        ]


@pytest.mark.slow
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


def test_nightly_exists_and_is_paused(up: Up) -> None:
    (schedule,) = up.deployment["schedules"]
    assert schedule["slug"] == "nightly"
    assert schedule["schedule"]["cron"] == "0 2 * * *"
    assert schedule["active"] is False


def test_somebody_is_told_of_a_release_that_fell(up: Up, heard: list[dict[str, Any]]) -> None:
    reasons = ["recall at 1024 tokens is 0.2, below 0.9", "'; DROP TABLE runs; -- {{ 7 * 7 }}"]
    payload = {"name": "small", "version": 3, "reasons": reasons}
    up.emit("yarn-ops.release.fell", "yarn-ops.release.small.3", payload)
    up.emit("yarn-ops.release.held", "yarn-ops.release.other.1", {**payload, "name": "other"})
    fell = "small version 3 fell below its gate"
    wait_until(lambda: any(one["title"] == fell for one in heard), timeout_s=120)
    (alert,) = (one for one in heard if one["title"] == fell)
    assert (alert["name"], alert["kind"]) == ("small", "fell")
    assert alert["card"][0] == {"label": "fell", "text": "; ".join(reasons)}


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_run_completes_with_a_task_for_every_stage(up: Up, run: dict[str, Any]) -> None:
    assert run["state_type"] == "COMPLETED", run["state"]
    tasks = up.find("task_runs", run["id"])
    assert {task["name"].split()[0] for task in tasks} >= STAGES
    assert len({task["name"] for task in tasks}) == len(tasks)
    assert {task["state_type"] for task in tasks} == {"COMPLETED"}


@pytest.mark.slow
def test_a_run_shows_its_progress_and_its_report(up: Up, run: dict[str, Any]) -> None:
    artifacts = {artifact["key"]: artifact for artifact in up.find("artifacts", run["id"])}
    assert artifacts["progress-train"]["type"] == "progress"
    assert artifacts["progress-train"]["data"] == 100
    report = artifacts["report"]
    assert report["description"] == "small version 1, gate passed"
    assert report["data"].count("](data:image/png;base64,") == 4
    assert "**Promoted: small, 512 to 1,024 tokens**" in report["data"]
    assert f"{up.service.mlflow_uri}/#/models/small/versions/1" in report["data"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_version_is_pulled(up: Up, run: dict[str, Any], tmp_path: Path) -> None:
    pulled = up.command("pull", "small", "--tag", "context_length=1024", "--to", tmp_path / "model")
    assert pulled.returncode == 0, pulled.stderr
    assert (tmp_path / "model" / "config.json").is_file()


@pytest.mark.slow
def test_another_shell_uses_the_service(up: Up, run: dict[str, Any], small_recipe: Path) -> None:
    extended = up.command("extend", small_recipe, "--set", "publish.name=shell")
    assert extended.returncode == 0, extended.stderr
    newest = next(found for found in up.runs() if found["name"] == "shell")
    assert newest["state_type"] == "COMPLETED"
    assert newest["deployment_id"] is None
    (report,) = [found for found in up.find("artifacts", newest["id"]) if found["key"] == "report"]
    assert f"{up.service.mlflow_uri}/#/models/shell/versions/1" in report["data"]


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason="no chromium here: apt-get install chromium")
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
        person.empty_the_short_form()
    ours = (up.service.prefect_ui_url, up.service.mlflow_uri, "data:", "blob:")
    assert [url for url in person.addresses if not url.startswith(ours)] == []
