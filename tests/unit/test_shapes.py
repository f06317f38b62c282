"""compose.yaml and kubernetes/ are what their tools read, and speak of variables that the programs read."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet
from kubernetes_objects import KUBERNETES, OVERLAYS, as_kept, job_of_pool, pod_of, rendered, template_of
from prefect.settings.legacy import _get_valid_setting_names
from prefect.settings.models.root import Settings as PrefectSettings

from yarn_ops.servers import WORK_POOLS
from yarn_ops.settings import Settings, read_settings

INFRA = Path(__file__).parents[2] / "infra"
VERSION = "1.37"
"""of Kubernetes"""
OTHERS = {
    *("POSTGRES_PASSWORD", "REGISTRY_PASSWORD", "PREFECT_DB_PASSWORD", "MLFLOW_DB_PASSWORD"),
    *("MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD", "HEALTH", "DO_NOT_TRACK"),
    *("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"),
    "POOLS",
}
"""read by PostgreSQL's image and its script here, MinIO, the health checks, boto3, Prefect's client and the
setup's script"""


def compose() -> dict[str, Any]:
    return yaml.safe_load((INFRA / "compose.yaml").read_text("utf-8"))


@cache
def manifests() -> dict[str, dict[str, Any]]:
    """{what it is: the manifest} of every object, those that the pools make for a run included."""
    found = {}
    for path in sorted((KUBERNETES / "base").glob("[!k]*.yaml")):
        for manifest in yaml.safe_load_all(path.read_text("utf-8")):
            found[f"{path.stem} {manifest['kind']} {manifest['metadata']['name']}"] = manifest
    for pool in ("cpu", "gpu"):
        found[f"job of pool {pool}"] = as_kept(job_of_pool(template_of(pool)))
    return found


@cache
def addresses() -> dict[str, str]:
    """The config map that everything reads."""
    base = yaml.safe_load((KUBERNETES / "base" / "kustomization.yaml").read_text("utf-8"))
    return dict(literal.split("=", 1) for literal in base["configMapGenerator"][0]["literals"])


def training() -> dict[str, Any]:
    return yaml.safe_load((KUBERNETES / "training" / "train.yaml").read_text("utf-8"))


def pods() -> list[tuple[str, dict[str, Any]]]:
    """(whose, the pod's specification) of everything that runs."""
    found = [(name, pod_of(one)) for name, one in manifests().items() if one["kind"] in ("Deployment", "Job")]
    return [*found, ("training", pod_of(training()["spec"]["replicatedJobs"][0]["template"]))]


def environments() -> Iterator[tuple[str, dict[str, Any]]]:
    """(whose, {variable: value, or the name of the secret's key}) of everything that runs."""
    for name, service in compose()["services"].items():
        yield f"compose {name}", service.get("environment", {})
    for name, pod in pods():
        for container in pod["containers"]:
            yield (
                name,
                {entry["name"]: told(entry) for entry in container.get("env", ())},
            )


def told(entry: dict[str, Any]) -> str:
    """A variable's value: written there, in the config map, or named by its secret's key."""
    if "value" in entry:
        return entry["value"]
    ((kind, reference),) = entry["valueFrom"].items()
    assert reference["name"] == "yarn-ops"
    return addresses()[reference["key"]] if kind == "configMapKeyRef" else reference["key"]


def source_of(package: str, *files: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return "".join((Path(spec.origin).parent / file).read_text("utf-8") for file in files)


def test_the_compose_file_is_one() -> None:
    jsonschema.validate(compose(), get_builtin_schema("vendor.compose-spec"))


@pytest.mark.parametrize("name", manifests())
def test_a_manifest_is_one(name: str) -> None:
    kubernetes_validate.validate(manifests()[name], VERSION, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_kustomize_renders_is_valid_and_whole(overlay: str) -> None:
    objects = rendered(overlay)
    for one in objects:
        if one["kind"] != "JobSet":
            kubernetes_validate.validate(one, VERSION, strict=True)
    assert {one["metadata"].get("namespace", "yarn-ops") for one in objects} == {"yarn-ops"}
    if overlay == "training":
        return
    (namespace,) = (one for one in objects if one["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    made = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    pools = made["ConfigMap", "yarn-ops-pools"]["data"]
    assert pools == {
        f"{pool}.json": (KUBERNETES / "base/pools" / f"{pool}.json").read_text("utf-8")
        for pool in ("cpu", "gpu")
    }
    asked = made["ConfigMap", "yarn-ops"]["data"]
    assert set(asked) == set(addresses())
    for pool in asked["POOLS"].split():
        name, _, template = pool.partition(":")
        assert name in WORK_POOLS and f"{template}.json" in pools
    expected = {"overlays/without-gpu": ("cpu", "1"), "overlays/gpu-pool": ("gpu", "4")}.get(
        overlay, ("gpu", "1")
    )
    assert (asked["POOLS"].rpartition(":")[2], asked["YARN_OPS_GRID_WORKERS"]) == expected


def test_training_over_nodes_is_a_job_set_whose_job_is_one() -> None:
    job_set, job = training(), training()["spec"]["replicatedJobs"][0]["template"]
    read = JobsetV1alpha2JobSet.from_dict(job_set)
    assert read is not None and covers(read.to_dict(), job_set)  # no field but those that it knows
    kubernetes_validate.validate(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "train"}, **job}, VERSION, strict=True
    )


def test_training_starts_a_process_for_every_gpu_of_every_node() -> None:
    from torch.distributed.run import parse_args

    job = training()["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert container["command"][:3] == ["python", "-m", "torch.distributed.run"]
    asked = parse_args(container["command"][3:])
    assert asked.module and asked.training_script == "yarn_ops.train"
    assert importlib.util.find_spec("yarn_ops.train.__main__") is not None
    assert int(asked.nnodes) == job["parallelism"] == job["completions"]
    assert asked.nproc_per_node == container["resources"]["limits"]["nvidia.com/gpu"]
    host, _, port = asked.rdzv_endpoint.partition(":")
    assert host == "train-node-0-0.train"  # JobSet's name of the first pod
    assert int(port) == container["ports"][0]["containerPort"]


def covers(found: Any, asked: Any) -> bool:
    """Whether everything that `asked` says is in `found`."""
    if isinstance(asked, dict):
        return all(key in found and covers(found[key], value) for key, value in asked.items())
    if isinstance(asked, list):
        return len(found) == len(asked) and all(map(covers, found, asked))
    return bool(found == asked)


@pytest.mark.parametrize("pool", ["cpu", "gpu"])
def test_what_a_job_asks_for_is_the_pools_to_say(pool: str) -> None:
    values = {"cpu": "7", "memory": "99Gi", "shm": "5Gi", "scratch": "77Gi"}
    chosen = {"node_selector": {"zone": "b"}, "tolerations": [{"operator": "Exists"}]}
    gpus = {"gpus": "3"} if pool == "gpu" else {}
    job = as_kept(job_of_pool(template_of(pool), **values, **chosen, **gpus))
    kubernetes_validate.validate(job, VERSION, strict=True)
    pod = pod_of(job)
    (container,) = pod["containers"]
    assert container["resources"]["requests"] == {"cpu": "7", "memory": "99Gi", "ephemeral-storage": "77Gi"}
    limits = container["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == gpus.get("gpus") and limits["memory"] == "99Gi"
    assert (pod["nodeSelector"], pod["tolerations"]) == (chosen["node_selector"], chosen["tolerations"])
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
    assert volumes["shm"] == {"medium": "Memory", "sizeLimit": "5Gi"}
    assert volumes["state"] == {"sizeLimit": "77Gi"}


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
    samples = {"YARN_OPS_DATABASE_URL": "postgresql://a:b@c/d", "YARN_OPS_STORE_URL": "s3://bucket/store",
               "YARN_OPS_S3_ENDPOINT_URL": "http://c:1"}  # fmt: skip
    for name, value in variables.items():
        if name.startswith("YARN_OPS_"):
            monkeypatch.setenv(name, samples.get(name, value))
    settings = read_settings()
    embedded = {"state_dir", "lease_s", "device", "work_dir", "notify", "cluster", "processes"}
    embedded |= {"openlineage_url", "openlineage_key"}  # of who collects lineage, if anybody
    embedded |= {"server_names", "session_key"}  # a server's own
    embedded |= {"server_key", "registry_user", "registry_password"}  # of what a person asks
    embedded |= {"signing_key", "verify_key"}  # of who signs and verifies
    embedded |= {"s3_session_token"}  # of temporary keys, which outlive no worker
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
    services = [one["spec"] for one in manifests().values() if one["kind"] == "Service"]
    assert [service.get("type", "ClusterIP") for service in services] == ["ClusterIP"] * 2


def test_nothing_of_ours_runs_as_root_may_become_it_or_writes_elsewhere_than_in_its_volumes() -> None:
    for name, pod in pods():
        assert pod["securityContext"]["runAsNonRoot"], name
        for container in pod["containers"]:
            held = container["securityContext"]
            assert held["allowPrivilegeEscalation"] is False and held["readOnlyRootFilesystem"], name
            assert {"/state", "/tmp"} <= {mount["mountPath"] for mount in container["volumeMounts"]}, name
            assert container["resources"]["requests"], name
    image = (INFRA / "images" / "Dockerfile").read_text("utf-8")
    assert "HOME=/state" in image and "YARN_OPS_STATE_DIR=/state" in image
    assert "\nUSER 10001\n" in (INFRA / "images" / "Dockerfile").read_text("utf-8")


def test_both_pools_have_a_worker() -> None:
    started = [service.get("command", []) for service in compose()["services"].values()]
    started += [container.get("command", []) for _, pod in pods() for container in pod["containers"]]
    for pool in WORK_POOLS:
        ours = [one for one in started if one[:3] == ["prefect", "worker", "start"] and pool in one]
        assert len(ours) == 2
