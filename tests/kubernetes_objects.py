"""The manifests as a cluster gets them: by kustomize, and by Prefect's own worker for the job of a run."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

KUBERNETES = Path(__file__).parents[1] / "infra" / "kubernetes"
OVERLAYS = ("base", "overlays/without-gpu", "overlays/gpu-pool", "training")


def rendered(overlay: str) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would apply."""
    if kustomize := shutil.which("kustomize"):
        command = [kustomize, "build"]
    elif kubectl := shutil.which("kubectl"):
        command = [kubectl, "kustomize"]
    else:
        pytest.skip("no kustomize here: install it, or kubectl")
    done = subprocess.run([*command, str(KUBERNETES / overlay)], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


def template_of(pool: str) -> dict[str, Any]:
    """A pool's base job template."""
    return json.loads((KUBERNETES / "base" / "pools" / f"{pool}.json").read_text("utf-8"))


def job_of_pool(template: dict[str, Any], **variables: Any) -> dict[str, Any]:
    """The template's job with its {{ variables }} filled in, accepted by Prefect's worker."""
    from prefect.utilities.templating import apply_values
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    known = template["variables"]["properties"]
    assert set(variables) <= set(known), "no such variable of the pool"
    values = {name: variable["default"] for name, variable in known.items()} | variables
    manifest = apply_values(copy.deepcopy(template["job_configuration"]["job_manifest"]), values)
    return KubernetesWorkerJobConfiguration(job_manifest=manifest).job_manifest


def as_kept(job: dict[str, Any]) -> dict[str, Any]:
    """A run's job without what Prefect's worker insists on in the wrong place, which the API server drops."""
    kept = copy.deepcopy(job)
    for field in ("parallelism", "completions"):
        assert pod_of(kept).pop(field) == 1
    return kept


def pod_of(owner: dict[str, Any]) -> dict[str, Any]:
    """The pod's specification in a Deployment or a Job."""
    return owner["spec"]["template"]["spec"]
