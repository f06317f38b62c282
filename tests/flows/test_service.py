"""The service while nothing runs: what it prints, offers, refuses and tells; and strangers before it: over
the wire, from a page of another origin, as another user."""

from __future__ import annotations

import http.server
import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from attacks import Target, attack, files_of_living, mlflow_of, prefect_of
from browser import browser, chromium
from listeners import ports_of
from playwright import sync_api as playwright
from service_up import Up, wait_until

pytestmark = pytest.mark.timeout(400)

AUTOMATION = {
    "name": "intruder",
    "trigger": {"type": "event", "posture": "Reactive", "expect": ["x"], "threshold": 1, "within": 0},
    "actions": [{"type": "do-nothing"}],
}


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


def test_a_value_out_of_bounds_is_refused_at_once(up: Up, recipe: dict[str, Any]) -> None:
    recipe["train"]["rank"] = -3
    answer = up.submit(recipe)
    assert answer.status_code == 409
    told = "recipe: train.rank: input should be greater than or equal to 1 (found -3)"
    assert answer.json() == {"detail": told}


def test_an_unknown_key_is_refused_at_once(up: Up, recipe: dict[str, Any]) -> None:
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


def targets(up: Up) -> list[Target]:
    service = up.service
    mlflow_auth = f"{service.mlflow_username}:{service.mlflow_password}"
    return [
        prefect_of(service.prefect_api_url, str(service.prefect_auth)),
        mlflow_of(service.mlflow_uri, mlflow_auth),
    ]


def test_no_attack_passes_the_servers_of_up(up: Up) -> None:
    for target in targets(up):
        attack(target)


def test_every_socket_of_prefect_asks(up: Up) -> None:
    prefect = targets(up)[0]
    for path in ("events/in", "events/out", "logs/out", "task_runs/subscriptions/scheduled",
                 "work_pools/yarn-ops/workers/connect"):  # fmt: skip
        strange = Target(prefect.port, prefect.password, "/", "/", {}, f"/api/{path}")
        assert strange.greet(token="wrong") == "closed", path
        assert strange.greet(token=prefect.password, origin="http://evil.example") == "handshake refused"
        assert json.loads(strange.greet(token=prefect.password)) == {"type": "auth_success"}, path


def test_what_else_mlflow_takes_asks_too(up: Up) -> None:
    mlflow = targets(up)[1]
    for path in (
        "/v1/traces",
        "/api/2.0/mlflow-artifacts/artifacts/a",
        "/ajax-api/2.0/mlflow/upload-artifact",
    ):
        for method in ("POST", "PUT"):
            body = {"body": b"x"}
            assert mlflow.ask(method, path, "Content-Type: a/b", password=False, **body)[0] == 401
            foreign = ("Content-Type: a/b", "Origin: http://evil.example")
            assert mlflow.ask(method, path, *foreign, **body)[0] == 403
            assert mlflow.ask(method, path, "Content-Type: a/b", **body)[0] not in (401, 403)


def test_the_password_lies_in_closed_files_and_nowhere_else(up: Up) -> None:
    state = Path(up.environment["YARN_OPS_STATE_DIR"])
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    closed = [state / name for name in ("password", "service.json", "addresses")]
    assert [stat.S_IMODE(path.stat().st_mode) for path in closed] == [0o600] * 3
    token = up.addresses["Prefect"].partition("token=")[2]
    secrets = [closed[0].read_text(), token]
    assert secrets[0] in closed[1].read_text() and token in closed[2].read_text()
    files = {path: content for path, content in files_of_living(state) if path not in closed}
    assert len(files) > 5
    assert [path for path, content in files.items() if any(one.encode() in content for one in secrets)] == []
    assert [p for p in up.processes() if any(one in " ".join(p.cmdline()) for one in secrets)] == []


def listening(up: Up) -> set[int]:
    return ports_of(process.pid for process in up.processes())


def test_the_table_of_ports_leaves_none_out(up: Up) -> None:
    """A port that begins to listen unnoticed, or that answers a stranger, fails this."""
    wait_until(lambda: len(listening(up)) == 4, timeout_s=120)  # two servers, a channel of each worker
    before = listening(up)
    told = up.command("doctor", "--security", "--json")
    after = listening(up)  # a run of the schedule may have come or gone
    assert told.returncode == 0, told.stdout + told.stderr
    table = json.loads(told.stdout)
    assert before & after <= {door["port"] for door in table} <= before | after
    assert {door["address"] for door in table} == {"127.0.0.1"}
    guarded = [door for door in table if door["what"].startswith(("Prefect", "MLflow"))]
    assert [(one["password"], one["foreign_host"], one["foreign_origin"]) for one in guarded] == [
        ("asked", "refused", "refused")
    ] * 2
    assert {door["password"] for door in table if door not in guarded} == {"asked: closes without a word"}
    shown = up.command("doctor", "--security").stdout
    assert all(f"{door['address']}:{door['port']}" in shown for door in guarded) and "✗" not in shown


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_reads_neither_the_password_nor_the_api(up: Up) -> None:
    state = Path(up.environment["YARN_OPS_STATE_DIR"])
    for parent in [state.parent, *state.parents][:-1]:  # pytest's folders are closed; ours has to be
        if parent.owner() == "root" and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    assert subprocess.run([*nobody, "ls", state.parent], capture_output=True).returncode == 0
    pids = [str(process.pid) for process in up.processes()]
    shut = [state / "password", state / "service.json", state, *(f"/proc/{pid}/environ" for pid in pids)]
    for path in shut:
        reading = ["ls", path] if path == state else ["cat", path]
        assert subprocess.run([*nobody, *reading], capture_output=True).returncode != 0, path
    for url in (f"{up.service.prefect_api_url}/admin/version", f"{up.service.mlflow_uri}/"):
        answer = subprocess.run([*nobody, "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url],
                                capture_output=True, text=True)  # fmt: skip
        assert answer.stdout == "401", url


PAGE = Path(__file__).with_name("stranger.html").read_text("utf-8")


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The address of a page that another user of this machine serves; its cookies are what browsers sent."""
    heard: list[str] = []

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers.get("Cookie", ""))
            body = PAGE.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.skipif(chromium() is None, reason="no chromium here: apt-get install chromium")
def test_a_page_elsewhere_reads_and_changes_nothing(up: Up, elsewhere: str) -> None:
    """Opened where somebody is logged in: a site of the world, and a port of this machine ("same site")."""
    servers = {"prefect": up.service.prefect_ui_url, "mlflow": up.service.mlflow_uri}
    with playwright.sync_playwright() as driver, browser(driver) as page:
        page.goto(up.addresses["Prefect"])
        page.get_by_text("extend-context").first.wait_for()
        world = elsewhere.replace("127.0.0.1", "localhost")
        for origin, host in (
            *((elsewhere, "127.0.0.1"), (elsewhere, "localhost")),  # the same site, another site
            *((world, "127.0.0.1"), ("about:blank", "127.0.0.1")),
        ):
            page.goto(origin)
            if origin == "about:blank":
                page.set_content(PAGE)  # an origin that is null
            learnt = page.evaluate("args => tryAll(...args)", [servers, json.dumps(AUTOMATION), host])
            assert len(learnt) > 80
            assert {name: value for name, value in learnt.items() if value} == {}, (origin, host)
        page.goto(f"{up.service.prefect_ui_url}/deployments")  # and the person goes on
        page.get_by_text("extend-context").first.wait_for()
    assert [one["name"] for one in up.post("/automations/filter") if one["name"] == "intruder"] == []
    auth = (str(up.service.mlflow_username), str(up.service.mlflow_password))
    search = f"{up.service.mlflow_uri}/api/2.0/mlflow/experiments/search"
    found = httpx.post(search, json={"max_results": 99}, auth=auth).raise_for_status()
    assert [one["name"] for one in found.json()["experiments"]] == ["Default"]


@pytest.mark.skipif(chromium() is None, reason="no chromium here: apt-get install chromium")
def test_the_printed_address_opens_both_interfaces(up: Up) -> None:
    with playwright.sync_playwright() as driver, browser(driver) as page:
        answers: list[Any] = []
        page.on("response", lambda answer: answers.append(answer))
        page.goto(up.addresses["Prefect"])
        page.get_by_text("extend-context").first.wait_for()
        page.get_by_text("Deployments").first.wait_for()
        page.goto(f"{up.service.prefect_ui_url}/deployments/deployment/{up.deployment['id']}/run")
        page.get_by_role("button", name="Submit").wait_for()
        page.goto(f"{up.service.mlflow_uri}/#/models")  # from Prefect's login
        page.get_by_text("Registered Models").or_(page.get_by_text("Models")).first.wait_for()
        page.get_by_text("Model registry", exact=True).first.wait_for()  # in its menu
        assert [answer.url for answer in answers if answer.status in (401, 403, 415)] == []
    with playwright.sync_playwright() as driver, browser(driver) as page:
        assert page.request.get(up.service.mlflow_uri).status == 401
        assert page.goto(up.addresses["MLflow"].replace("127.0.0.1", "localhost")).ok
        page.get_by_text("Experiments").first.wait_for()
        assert "token" not in page.url
