"""compose.yaml and kubernetes/ are what their tools read, and speak of variables that the programs read."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from prefect.settings.legacy import _get_valid_setting_names
from prefect.settings.models.root import Settings as PrefectSettings

from yarn_ops.servers import WORK_POOLS
from yarn_ops.settings import Settings, read_settings

INFRA = Path(__file__).parents[2] / "infra"
KUBERNETES = "1.37"
OTHERS = {
    *("POSTGRES_PASSWORD", "REGISTRY_PASSWORD", "PREFECT_DB_PASSWORD", "MLFLOW_DB_PASSWORD"),
    *("MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD", "HEALTH", "DO_NOT_TRACK"),
    *("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"),
}
"""read by PostgreSQL's image and its script here, MinIO, the health checks, boto3 and Prefect's client"""


def compose() -> dict[str, Any]:
    return yaml.safe_load((INFRA / "compose.yaml").read_text("utf-8"))


def manifests() -> list[tuple[str, dict[str, Any]]]:
    """(what it is, the manifest) of every object, those that the pools make for a run included."""
    found = []
    for path in sorted((INFRA / "kubernetes").glob("*.yaml")):
        for manifest in yaml.safe_load_all(path.read_text("utf-8")):
            found.append((f"{path.stem} {manifest['kind']} {manifest['metadata']['name']}", manifest))
    for path in sorted((INFRA / "kubernetes" / "pools").glob("*.json")):
        template = json.loads(path.read_text("utf-8"))
        values = {name: variable["default"] for name, variable in template["variables"]["properties"].items()}
        manifest = filled(template["job_configuration"]["job_manifest"], values)
        found.append((f"job of pool {path.stem}", manifest))
    return found


def filled(node: Any, values: dict[str, Any]) -> Any:
    """A job template with its {{ variables }} replaced, as Prefect does it."""
    if isinstance(node, dict):
        return {key: filled(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [filled(value, values) for value in node]
    if isinstance(node, str) and (placeholder := re.fullmatch(r"\{\{ (\w+) \}\}", node)):
        return values[placeholder[1]]
    return node


def pods() -> list[tuple[str, dict[str, Any]]]:
    return [
        (name, manifest["spec"]["template"]["spec"])
        for name, manifest in manifests()
        if manifest["kind"] in ("Deployment", "Job")
    ]


def environments() -> Iterator[tuple[str, dict[str, Any]]]:
    """(whose, {variable: value, or the name of the secret's key}) of everything that runs."""
    for name, service in compose()["services"].items():
        yield f"compose {name}", service.get("environment", {})
    for name, pod in pods():
        for container in pod["containers"]:
            yield (
                name,
                {
                    entry["name"]: entry.get("value") or entry["valueFrom"]["secretKeyRef"]["key"]
                    for entry in container["env"]
                },
            )


def source_of(package: str, *files: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return "".join((Path(spec.origin).parent / file).read_text("utf-8") for file in files)


def test_the_compose_file_is_one() -> None:
    jsonschema.validate(compose(), get_builtin_schema("vendor.compose-spec"))


@pytest.mark.parametrize("name", [name for name, _ in manifests()])
def test_a_manifest_is_one(name: str) -> None:
    kubernetes_validate.validate(dict(manifests())[name], KUBERNETES, strict=True)


def test_every_variable_is_one_that_a_program_reads() -> None:
    ours = {f"YARN_OPS_{name.upper()}" for name in Settings.model_fields}
    mlflow = source_of("mlflow", "environment_variables.py", "cli/__init__.py")
    prefect = _get_valid_setting_names(PrefectSettings)
    unknown = []
    for whose, variables in environments():
        for variable in variables:
            known = variable in ours or variable in OTHERS or variable in prefect
            if not known and not re.search(rf"\b{variable}\b", mlflow if "MLFLOW" in variable else ""):
                unknown.append(f"{whose}: {variable}")
    assert unknown == []


@pytest.mark.parametrize(
    "client", ["compose setup", "compose worker-cpu", "compose worker-gpu", "job of pool gpu"]
)
def test_a_client_gets_every_address_and_secret(client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = dict(environments())[client]
    samples = {"YARN_OPS_DATABASE_URL": "postgresql://a:b@c/d", "YARN_OPS_STORE_URL": "s3://bucket/store"}
    for name, value in variables.items():
        if name.startswith("YARN_OPS_"):
            monkeypatch.setenv(name, samples.get(name, value))
    settings = read_settings()
    embedded = {"state_dir", "lease_s", "device", "work_dir", "alert_url"}
    missing = [
        name
        for name, field in Settings.model_fields.items()
        if field.default is None and name not in embedded and getattr(settings, name) is None
    ]
    assert missing == []


def test_no_secret_has_a_default_or_lies_here() -> None:
    text = (INFRA / "compose.yaml").read_text("utf-8").partition("\nname:")[2]
    asked = re.findall(r"(?<!\$)\$\{([^}]*)\}", text)
    assert len(asked) > 10
    assert [one for one in asked if not one.endswith(":?")] == []
    for whose, variables in environments():
        for name, value in variables.items():
            if re.search("PASSWORD|SECRET|AUTH_STRING|_AUTH$", name):
                assert value.startswith(("${", "yarn-ops:${")) or value.isupper(), f"{whose}: {name}"


def test_only_the_two_pages_are_published_and_on_loopback() -> None:
    published = {name: one["ports"] for name, one in compose()["services"].items() if "ports" in one}
    assert published == {"prefect": ["127.0.0.1:4200:4200"], "mlflow": ["127.0.0.1:5000:5000"]}
    services = [manifest["spec"] for _, manifest in manifests() if manifest["kind"] == "Service"]
    assert [service.get("type", "ClusterIP") for service in services] == ["ClusterIP"] * 2


def test_nothing_of_ours_runs_as_root_or_may_become_it() -> None:
    for name, pod in pods():
        assert pod["securityContext"]["runAsNonRoot"], name
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
    assert "\nUSER 10001\n" in (INFRA / "images" / "Dockerfile").read_text("utf-8")


def test_both_pools_have_a_worker() -> None:
    started = [service.get("command", []) for service in compose()["services"].values()]
    started += [container.get("command", []) for _, pod in pods() for container in pod["containers"]]
    for pool in WORK_POOLS:
        ours = [one for one in started if one[:3] == ["prefect", "worker", "start"] and pool in one]
        assert len(ours) == 2
