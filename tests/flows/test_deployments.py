"""Every deployment's form, and its parameters sent through its flow as a worker does."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.utilities.names import generate_slug
from prefect.utilities.schema_tools.validation import ValidationError, validate
from prefect_here import at, post
from small_recipe import SMALL

from flows.deploy import deployments
from flows.forms import CheckedForms
from flows.outcome import is_made_up
from yarn_ops.settings import read_settings

pytestmark = pytest.mark.timeout(400)

WORKER = """
import json, sys
from prefect.flows import load_flow_from_entrypoint
from flows.deploy import deployments
(deployment,) = (one for one in deployments() if one.name == sys.argv[1])
flow = load_flow_from_entrypoint(deployment.entrypoint)
sent = json.loads(json.dumps(deployment.parameters)) | json.loads(sys.argv[2])
print("result:", flow(**sent))
"""


@pytest.mark.parametrize("deployment", deployments(), ids=lambda one: one.name)
def test_the_first_values_fit_the_form(deployment: Any) -> None:
    schema = deployment._parameter_openapi_schema.model_dump(exclude_unset=True)
    values = json.loads(json.dumps(deployment.parameters))
    validate(values, schema, raise_on_error=True)
    for name, field in schema["properties"].items():
        assert field["title"] and field["description"]
        assert name in values or "default" in field
    assert deployment.description


@pytest.mark.parametrize(
    "secret", ["s3://me:hunter2@bucket/a", "s3://AKIA:ab/hunter2@bucket/a", "s3://b/a?token=hunter2"]
)
@pytest.mark.parametrize("field", [("base", "model"), ("data", "sources"), ("publish", "tags")], ids=".".join)
def test_a_form_with_a_password_is_refused_before_prefect_keeps_it(
    field: tuple[str, str], secret: str
) -> None:
    (deployment,) = (one for one in deployments() if one.name == "extend-context")
    values = json.loads(json.dumps(deployment.parameters))
    section, name = field
    values["recipe"][section][name] = {"sources": [secret], "tags": {"from": secret}}.get(name, secret)
    with pytest.raises(ValidationError, match="does not match"):
        validate(values, deployment._parameter_openapi_schema.model_dump(exclude_unset=True), True)


def ask(path: str, asked: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    """What the check of forms before an application that echoes answers to a POST: status and JSON."""

    checked = httpx.ASGITransport(CheckedForms(echo))

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=checked, base_url="http://here") as client:
            return await client.post(path, json=asked, headers=headers)

    answer = asyncio.run(post())
    return answer.status_code, answer.json()


CREATE = "/api/deployments/00000000-0000-0000-0000-000000000000/create_flow_run"
PAGE = {"sec-fetch-site": "same-origin"}


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body that reached it."""
    body = (await receive())["body"]
    assert dict(scope["headers"])[b"content-length"] == str(len(body)).encode()
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 201, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize(
    ("emptied", "left"),
    [
        ("base.model", "base.model: is empty; name the model to extend"),
        ("data.sources", "data.sources: is empty; name the documents"),
        ("publish.name", "publish.name: is empty; name the model that is registered"),
        ("train.steps", "train.steps: is empty; fill it in (Steps)"),
        ("gate.min_recall_kept", None),
    ],
)
def test_an_emptied_field_of_a_form_is_empty(emptied: str, left: str | None) -> None:
    (deployment,) = (one for one in deployments() if one.name == "extend-context")
    asked = json.loads(json.dumps({"parameters": deployment.parameters}))
    section, name = emptied.split(".")
    del asked["parameters"]["recipe"][section][name]
    status, answer = ask(CREATE, asked, **PAGE)
    if left is None:
        assert (status, answer["parameters"]["recipe"][section][name]) == (201, None)
    else:
        assert status == 409 and left in answer["detail"]
    if section == "train":  # a program that leaves something out means its default
        assert ask(CREATE, asked)[0] == 201


def test_a_contradiction_is_refused_in_the_form_and_in_a_schedule() -> None:
    (deployment,) = (one for one in deployments() if one.name == "compare-methods")
    asked = json.loads(json.dumps({"parameters": deployment.parameters}))
    asked["parameters"]["recipe"]["rope"]["beta_fast"] = 0.5
    schedules = CREATE.replace("create_flow_run", "schedules")
    for path, body in ((CREATE, asked), (schedules, [asked])):
        status, answer = ask(path, body, **PAGE)
        told = "recipe: rope: beta_fast (0.5) must be above beta_slow (1)"
        assert (status, answer) == (409, {"detail": told})
    asked["parameters"]["recipe"]["rope"]["beta_fast"] = {"__prefect_kind": "jinja", "template": "{{ 32 }}"}
    assert ask(CREATE, asked, **PAGE)[0] == 201


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({"base": "  "}, "base: is blank; fill it in"),
        ({"base": "shipped:base512\n"}, "base: 'shipped:base512\\n' begins or ends with a blank; remove it"),
        ({"base": "models/llama"}, "write it whole, e.g. /…/models/llama, or hf:models/llama from the hub"),
        ({"base": "meta-llama/Llama-3.2-1B"}, ", or hf:meta-llama/Llama-3.2-1B from the hub"),
        ({"base": None}, "base: is empty; fill it in"),
        ({"documents": ["/data/a.txt", " "]}, "documents.1: is blank; fill it in"),
        ({"documents": ["docs/*.txt"]}, "documents: 'docs/*.txt' is a relative path"),
        ({"documents": []}, "documents: is empty; fill it in"),
        ({"target_context_tokens": 0}, "target_context_tokens: input should be greater than 0 (found 0)"),
        ({"target_context_tokens": -5}, "target_context_tokens: input should be greater than 0 (found -5)"),
        ({"name": "a b/c"}, "name: input should be at most 128 letters, digits, '.', '_' and '-'"),
        ({"preset": None}, "preset: is empty; fill it in"),
    ],
)
def test_a_fault_in_the_short_form_names_its_own_field(answers: dict[str, Any], told: str) -> None:
    (deployment,) = (one for one in deployments() if one.name == "extend-model")
    status, answer = ask(CREATE, {"parameters": deployment.parameters | answers}, **PAGE)
    assert status == 409 and told in answer["detail"] and "recipe:" not in answer["detail"]
    named = next(iter(answers))
    assert answer["detail"].startswith((f"{named}:", f"{named}."))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base.model", "./llama"),
        ("data.sources", ["docs/*"]),
        ("data.evaluation_sources", ["../exams.jsonl"]),
    ],
)
def test_a_form_takes_no_relative_path(field: str, value: Any) -> None:
    """A run's working directory is one that Prefect's worker makes for it, and empty."""
    (deployment,) = (one for one in deployments() if one.name == "extend-context")
    asked = json.loads(json.dumps({"parameters": deployment.parameters}))
    section, name = field.split(".")
    asked["parameters"]["recipe"]["data"]["shared_words"] = 50  # or nothing is kept from training
    for given, whole in ((value, False), (["/data/*", "~/b", "s3://b/c", "stdlib:*"], True)):
        asked["parameters"]["recipe"][section][name] = given if name != "model" or not whole else given[0]
        for headers in (PAGE, {}):  # a program has no folder there either
            status, answer = ask(CREATE, asked, **headers)
            assert status == (201 if whole else 409)
            assert whole or answer["detail"].startswith(f"recipe: {field}: ")


def test_a_form_of_nothing_is_none_and_a_schedule_of_it_keeps_its_deployments_values() -> None:
    """The newer page shows a schedule's own values alone, and sends what it shows of an empty section."""
    nothing = {"recipe": {"publish": {"tags": {"__prefect_kind": "json"}}, "base": {}}}
    validate_path = "/api/ui/schemas/validate"
    assert ask(validate_path, {"schema": {}, "values": nothing}, **PAGE) == (
        200,
        {"errors": [], "valid": True},
    )
    filled = {"schema": {}, "values": {"recipe": {"publish": {"name": "a"}}}}
    assert ask(validate_path, filled, **PAGE) == (201, filled)
    schedules = CREATE.replace("create_flow_run", "schedules")
    for path in (schedules, f"{schedules}/00000000-0000-0000-0000-000000000000"):
        assert ask(path, {"parameters": nothing, "active": True}, **PAGE)[1] == {
            "parameters": {},
            "active": True,
        }
    assert ask(CREATE, {"parameters": nothing}, **PAGE)[0] == 409


def test_every_run_has_the_command_that_imports_prefect_once() -> None:
    command = [sys.executable, "-m", "flows.engine"]
    waits = read_settings().home / "standby.sock"
    for deployment in deployments():
        trains = ["--trainer", "--standby", str(waits)] if deployment.name.startswith("extend-") else []
        assert deployment.job_variables == {"command": shlex.join([*command, *trains])}


def test_the_form_of_a_comparison_offers_methods_and_knows_arms() -> None:
    (deployment,) = (one for one in deployments() if one.name == "compare-methods")
    fields = deployment._parameter_openapi_schema.model_dump()["properties"]
    assert {"yarn", "by-parts", "longrope"} <= set(fields["methods"]["items"]["enum"])
    assert "lora+norms" in fields["arms"]["items"]["examples"]


class Workplace:
    """A person's state directory, and what the flows of deployments leave there."""

    def __init__(self, folder: Path, api: str) -> None:
        self.recipe_path = folder / "small.toml"
        self.recipe_path.write_text(SMALL, "utf-8")
        self._environment = {**os.environ, "YARN_OPS_STATE_DIR": str(folder / "state"), **at(api)}
        self._api = api

    def cli(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return self._run("-m", "yarn_ops.cli", *arguments)

    def work(self, deployment: str, **parameters: Any) -> str:
        """What a run of a deployment returns, with these parameters over its own."""
        recipe = tomllib.loads(self.recipe_path.read_text("utf-8"))
        recipe["evaluate"]["windows"] = 4
        takes_recipe = any(one.name == deployment and "recipe" in one.parameters for one in deployments())
        sent = json.dumps({**({"recipe": recipe} if takes_recipe else {}), **parameters})
        done = self._run("-c", WORKER, deployment, sent, PREFECT_API_URL=self._api)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.rpartition("result: ")[2].strip()

    def last_run(self, flow: str) -> dict[str, Any]:
        """The flow's newest run in Prefect, with its artifacts."""
        asked = {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_DESC", "limit": 1}
        (run,) = post(self._api, "/flow_runs/filter", **asked)
        artifacts = post(self._api, "/artifacts/filter", flow_runs={"id": {"any_": [run["id"]]}})
        return {**run, "artifacts": {one["key"]: one for one in artifacts}}

    def shown(self, run_id: str, *options: str) -> str:
        """What `runs show` prints."""
        done = self.cli("runs", "show", run_id, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _run(self, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, arguments)]
        environment = {**self._environment, **variables}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("deployments"), prefect_api)


SHORT = {"base": "shipped:base512", "target_context_tokens": 1024, "documents": ["stdlib:json/*.py"],
         "name": "short", "preset": "quick"}  # fmt: skip
ENDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "extend-model": ("report", SHORT | {"documents": ["stdlib:asyncio/*.py", "stdlib:email/*.py"]}, "sees "),
    "extend-context": ("report", {}, "pull      yarn-ops pull small --alias champion --to ./small"),
    "compare-methods": (
        "comparison",
        {"methods": ["yarn"], "arms": ["zero-shot"]},
        "passed the gate; winner",
    ),
    "fit-rope": ("fit", {}, '[rope]\nmethod = "yarn"'),
    "reevaluate": ("reevaluation", {"name": "small"}, "gate: passed"),
    "measure-cells": ("measured-cells", {}, ""),
    "alert": ("alert", {}, ""),
    "watch-models": ("asked-for", {}, ""),
    "reconcile": ("reconciled", {}, ""),
}
"""Of every deployment: its artifact, what to send, and what `runs show` prints of its run, if any."""


def test_the_end_of_every_deployment_is_known() -> None:
    assert set(ENDS) == {one.name for one in deployments()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDS)
def test_a_run_of_every_deployment_ends_in_an_artifact_and_a_row(place: Workplace, name: str) -> None:
    artifact, sent, shown = ENDS[name]
    place.work(name, **sent)
    run = place.last_run(name)
    assert run["state"]["type"] == "COMPLETED", run["state"]
    assert run["artifacts"][artifact]["data"]
    if shown:
        (row,) = (
            one for one in json.loads(place.cli("runs", "--json").stdout) if one["flow_run_id"] == run["id"]
        )
        assert (row["name"], row["status"]) == (run["name"], "completed")
        assert shown in place.shown(row["id"])
    if name == "fit-rope":
        assert run["artifacts"]["fit"]["data"].startswith("```toml\n[rope]\n")
        assert run["name"] == "fit small"


@pytest.mark.slow
def test_a_fit_by_command_and_by_form_is_one(place: Workplace) -> None:
    done = place.cli("fit", place.recipe_path, "--set", "evaluate.windows=4", "--json", "--name", "ramps")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["rope"]["method"], found["rope"]["factor"]) == ("yarn", 2)
    assert found["adopted"] == (found["low_nats"] > 0)
    assert found["windows"] == 4 and found["evaluations"] > 2
    assert place.last_run("fit-rope")["name"] == "ramps"
    again = place.work("fit-rope")
    assert f"gain_nats={found['gain_nats']}" in again
    run = json.loads(place.shown("--last", "--json"))
    (stage,) = (stage for stage in run["stages"] if stage["stage"] == "fit")
    assert stage["reused"] and run["kind"] == "fit"


def test_a_name_that_nobody_chose_is_known() -> None:
    made_up = [
        *("beta3-bilaren-y", "gamma430-remus", "sigma85-rokkaku-boundary", "phi-canum-venaticorum"),
        *("kappa3", "omega-orionis", "tau-canis-majoris-b", "Small-Elk", *map(generate_slug, [2] * 50)),
    ]
    assert [name for name in made_up if not is_made_up(name)] == []
    chosen = [
        "beta-test",
        "my run",
        "demo-long",
        "people's first",
        "extend {recipe}",
        "8k-to-32k",
        "alpha-beta",
    ]
    assert [name for name in chosen if is_made_up(name)] == []
