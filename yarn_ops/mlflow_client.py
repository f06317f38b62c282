"""MLflow's own client: opened without its chatter, its failures in words, and calls that may be repeated."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from yarn_ops.errors import service_fault
from yarn_ops.secrecy import without_secrets

FAILURES = {
    "Max retries exceeded": "cannot be reached; is the server running there?",
    "file is not a database": "the file is something else; correct YARN_OPS_MLFLOW_URI",
    "disk is full": "the disk is full; free some and run again",
    "disk I/O error": "the disk is full or fails; free some and run again",
    "error code 401": "refuses us; check YARN_OPS_MLFLOW_USERNAME and YARN_OPS_MLFLOW_PASSWORD",
}
"""What MLflow's words mean to a person."""

# MLflow takes these from the environment alone; what the user has set stays.
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # its 7 mean four minutes for a server that is down
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "GIT_PYTHON_REFRESH": "quiet",
}
DATASET_DIGEST = 36
"""MLflow keeps no longer digest of a data set"""
USED_AS = "mlflow.data.context"


def open_client(uri: str) -> Any:
    """An `MlflowClient` for the MLflow at `uri`; contacted at its first use."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if uri.startswith("sqlite:///"):
        # The experiment that MLflow begins with; else it is in the working directory, whose quotes break SQL.
        folder = Path(uri.removeprefix("sqlite:///")).absolute().parent
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = f"{folder.as_uri()}/store/mlflow"
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # what goes wrong arrives as an exception
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def fault(error: Exception, uri: str) -> str | None:
    """Why MLflow, or what is below it, refused: one line, without the password in `uri`, or None."""
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, mlflow_exception() | SQLAlchemyError | OSError):
        return _cause(error)
    return service_fault(error)


def _cause(error: Exception) -> str:
    text = str(getattr(error, "orig", None) or error).strip() or type(error).__name__
    for symptom, told in FAILURES.items():
        if symptom in text:
            return told
    return without_secrets(text.splitlines()[0])


def mlflow_exception() -> Any:
    from mlflow.exceptions import MlflowException

    return MlflowException


def ensure_model(client: Any, name: str) -> None:
    try:
        client.create_registered_model(name)
    except mlflow_exception() as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def registered(client: Any, name: str, source_uri: str, run_id: str) -> list[Any]:
    """MLflow's versions of a model with this source and run, the oldest first."""
    found = pages(client.search_model_versions, filter_string=f"name = '{name}' AND run_id = '{run_id}'")
    same = [version for version in found if version.source == source_uri]
    return sorted(same, key=lambda version: int(version.version))


def gone(delete: Callable[..., Any], *what: str) -> None:
    """Delete something; one that is gone already is fine."""
    try:
        delete(*what)
    except mlflow_exception() as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def complete(client: Any, version: Any, tags: Mapping[str, str], description: str) -> None:
    for tag, value in tags.items():
        if version.tags.get(tag) != value:
            client.set_model_version_tag(version.name, str(version.version), tag, value)
    if (version.description or "") != description:
        client.update_model_version(version.name, str(version.version), description)


def probe_artifacts(location: str) -> None:
    """Write a copy of this file below `location` as MLflow's client writes artifacts, and remove it."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    artifacts = get_artifact_repository(f"{location}/probe-{uuid.uuid4().hex}")
    artifacts.log_artifact(__file__)
    artifacts.delete_artifacts()


def create_experiment(client: Any, name: str, location: str) -> Any:
    try:
        client.create_experiment(name, artifact_location=location)
    except mlflow_exception() as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.get_experiment_by_name(name)


def log_dataset(client: Any, run_id: str, name: str, digest: str, source: str) -> None:
    """Say that a run was trained on a data set. Of two runs that do so at once, MLflow lets one fail."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = Dataset(name, digest[:DATASET_DIGEST], "yarn-ops", source, profile=source)
    inputs = [DatasetInput(data, [InputTag(USED_AS, "train")])]
    try:
        client.log_inputs(run_id, datasets=inputs)
    except mlflow_exception() as error:
        if "unique constraint" not in str(error).lower():
            raise
        client.log_inputs(run_id, datasets=inputs)  # the other run's is there now


def pages(search: Callable[..., Any], **arguments: Any) -> list[Any]:
    """All results of one of MLflow's paged searches."""
    page = search(**arguments)
    found = list(page)
    while page.token:
        page = search(**arguments, page_token=page.token)
        found += page
    return found
