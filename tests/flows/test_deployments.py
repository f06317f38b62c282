"""Every deployment's form, and its parameters sent through its flow as a worker does."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.utilities.schema_tools.validation import ValidationError, validate

from flows.deploy import deployments
from flows.forms import CheckedForms

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
    asked["parameters"]["recipe"]["rope"]["target_context_tokens"] = 1536
    schedules = CREATE.replace("create_flow_run", "schedules")
    for path, body in ((CREATE, asked), (schedules, [asked])):
        status, answer = ask(path, body, **PAGE)
        told = "recipe: rope: give factor or target_context_tokens, not both"
        assert (status, answer) == (409, {"detail": told})
    asked["parameters"]["recipe"]["rope"]["factor"] = {"__prefect_kind": "jinja", "template": "{{ 4 }}"}
    assert ask(CREATE, asked, **PAGE)[0] == 201


def test_every_run_has_the_command_that_imports_prefect_once() -> None:
    command = f"{sys.executable} -m flows.engine"
    for deployment in deployments():
        trains = " --trainer" if deployment.name == "extend-context" else ""
        assert deployment.job_variables == {"command": command + trains}


def test_the_form_of_a_comparison_offers_methods_and_knows_arms() -> None:
    (deployment,) = (one for one in deployments() if one.name == "compare-methods")
    fields = deployment._parameter_openapi_schema.model_dump()["properties"]
    assert {"yarn", "by-parts", "longrope"} <= set(fields["methods"]["items"]["enum"])
    assert "lora+norms" in fields["arms"]["items"]["examples"]


@pytest.fixture
def work(environment: dict[str, str], small_recipe: Path) -> Any:
    """What a run of a deployment returns, with these parameters over its own."""

    def run(name: str, **parameters: Any) -> str:
        recipe = tomllib.loads(small_recipe.read_text("utf-8"))
        recipe["evaluate"]["windows"] = 4
        sent = json.dumps({"recipe": recipe, **parameters})
        environment["PREFECT_API_URL"] = environment["YARN_OPS_PREFECT_API_URL"]
        done = subprocess.run(
            [sys.executable, "-c", WORKER, name, sent],
            env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.rpartition("result: ")[2].strip()

    return run


@pytest.mark.slow
def test_a_comparison_asked_for_by_form(work: Any, cli: Any) -> None:
    run_id = work("compare-methods", methods=["yarn"], arms=["zero-shot"])
    run = json.loads(cli("runs", "show", run_id, "--json").stdout)
    assert run["status"] == "completed"
    (comparison,) = (stage["record"] for stage in run["stages"] if stage["stage"] == "compare")
    assert [(one["method"], one["arm"]) for one in comparison["contenders"]] == [("yarn", "zero-shot")]


@pytest.mark.slow
def test_a_fit_by_command_and_by_form_is_one(work: Any, cli: Any, small_recipe: Path) -> None:
    done = cli("fit", small_recipe, "--set", "evaluate.windows=4", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["rope"]["method"], found["rope"]["factor"]) == ("yarn", 2)
    assert found["adopted"] == (found["low_nats"] > 0)
    assert found["windows"] == 4 and found["evaluations"] > 2
    again = work("fit-rope")
    assert f"gain_nats={found['gain_nats']}" in again
    run = json.loads(cli("runs", "show", "--last", "--json").stdout)
    (stage,) = (stage for stage in run["stages"] if stage["stage"] == "fit")
    assert stage["reused"]
