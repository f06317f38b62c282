"""What an MLflow knows, read in milliseconds: MLflow's own client takes seconds to import.

Only what is sure is told here. Whatever is unusual (no database yet, another schema, a refusal) is left to
the client, which makes what is missing and knows what to say.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from math import nan
from pathlib import Path
from typing import Any

GATE_TAG = "gate"
APPROVAL_TAG = "approval"
"""pending, approved or rejected, of a version that a person has to promote"""
DIGEST_TAG = "tree_digest"
"""of the released directory: names and sha256 of its files (`digests.tree_digest`)"""
PASSED = "passed"
READY = "READY"
ACTIVE = "active"
"""MLflow's stage of a run or experiment that was not deleted"""
DELETED = "Deleted_Internal"
"""MLflow's stage of a version that was deleted"""
FAULTS = (OSError, ValueError, KeyError, TypeError, sqlite3.Error)
ANSWER_S = 10.0
PAGE = 1000


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model. `source` is the URI of its directory."""

    name: str
    version: int
    source: str
    mlflow_run_id: str
    tags: dict[str, str]
    aliases: tuple[str, ...]
    description: str
    created_at: datetime

    @property
    def passed(self) -> bool:
        """Its gate, and whoever had to approve it."""
        approved = self.tags.get(APPROVAL_TAG, "approved") == "approved"
        return approved and self.tags.get(GATE_TAG) == PASSED

    @property
    def tree_digest(self) -> str | None:
        """None: released before 2026-11-29, or by another program."""
        return self.tags.get(DIGEST_TAG)


@dataclass(frozen=True)
class Experiment:
    """Where runs belong. `stage`: active or deleted."""

    id: str
    stage: str
    artifact_location: str


@dataclass(frozen=True)
class TrackedRun:
    """A run in MLflow; `metrics`: the newest value of each."""

    artifact_uri: str
    metrics: dict[str, float]


def read_run(uri: str, run_id: str, auth: tuple[str, str] | None = None) -> TrackedRun | None:
    """The run, unless it was deleted; None where there is none, or MLflow's client has to be asked."""
    try:
        if uri.startswith("sqlite:///"):
            with _database(uri) as database:
                found = database.execute(
                    "SELECT artifact_uri FROM runs WHERE run_uuid = ? AND lifecycle_stage = ?",
                    (run_id, ACTIVE),
                ).fetchone()
                metrics = database.execute(
                    "SELECT key, value, is_nan FROM latest_metrics WHERE run_uuid = ?", (run_id,)
                ).fetchall()
            values = {name: nan if is_nan else float(value) for name, value, is_nan in metrics}
            return None if found is None else TrackedRun(found[0], values)
        run = _answer(uri.rstrip("/"), "runs/get", {"run_id": run_id}, auth)["run"]
        if run["info"]["lifecycle_stage"] != ACTIVE:
            return None
        values = {metric["key"]: float(metric["value"]) for metric in run["data"].get("metrics", ())}
        return TrackedRun(run["info"]["artifact_uri"], values)
    except FAULTS:
        return None


def read_experiment(uri: str, name: str, auth: tuple[str, str] | None = None) -> Experiment | None:
    """The experiment of this name; None where there is none, or MLflow's client has to be asked."""
    try:
        if uri.startswith("sqlite:///"):
            with _database(uri) as database:
                found = database.execute(
                    "SELECT experiment_id, lifecycle_stage, artifact_location FROM experiments "
                    "WHERE name = ?",
                    (name,),
                ).fetchone()
            return None if found is None else Experiment(str(found[0]), *found[1:])
        asked = {"experiment_name": name}
        told = _answer(uri.rstrip("/"), "experiments/get-by-name", asked, auth)["experiment"]
        return Experiment(told["experiment_id"], told["lifecycle_stage"], told["artifact_location"])
    except FAULTS:
        return None


def read_versions(uri: str, auth: tuple[str, str] | None = None) -> list[ModelVersion] | None:
    """Every usable version: by name, newest first; None where MLflow's client has to be asked.

    `uri`: http://… or sqlite:///file. `auth`: user and password of a server that wants them.
    """
    try:
        if uri.startswith("sqlite:///"):
            if not _path(uri).exists() and _path(uri).parent.is_dir():
                return []  # MLflow makes it when there is something to keep
            with _database(uri) as database:
                found = list(_in_database(database))
        else:
            found = list(_on_server(uri.rstrip("/"), auth))
    except FAULTS:
        return None
    return sorted(found, key=lambda version: (version.name, -version.version))


@contextmanager
def _database(uri: str) -> Iterator[sqlite3.Connection]:
    """Read-only; sqlite3.Error when there is none."""
    with closing(sqlite3.connect(f"{_path(uri).as_uri()}?mode=ro", uri=True)) as database:
        yield database


def _path(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///")).absolute()


def _in_database(database: sqlite3.Connection) -> Iterator[ModelVersion]:
    tags: dict[tuple[str, int], dict[str, str]] = {}
    for name, version, key, value in database.execute(
        "SELECT name, version, key, value FROM model_version_tags"
    ):
        tags.setdefault((name, version), {})[key] = value
    aliases: dict[tuple[str, int], list[str]] = {}
    for name, version, alias in database.execute("SELECT name, version, alias FROM registered_model_aliases"):
        aliases.setdefault((name, version), []).append(alias)
    for name, version, source, run_id, description, created_ms in database.execute(
        "SELECT name, version, source, run_id, description, creation_time FROM model_versions "
        "WHERE status = ? AND current_stage <> ?",
        (READY, DELETED),
    ):
        yield ModelVersion(
            name, version, source, run_id or "", tags.get((name, version), {}),
            tuple(sorted(aliases.get((name, version), ()))), description or "",
            datetime.fromtimestamp(created_ms / 1000, UTC),
        )  # fmt: skip


def _on_server(uri: str, auth: tuple[str, str] | None) -> Iterator[ModelVersion]:
    aliases = {
        (model["name"], int(alias["version"]), alias["alias"])
        for model in _pages(uri, "registered-models", "registered_models", auth)
        for alias in model.get("aliases", ())
    }
    for found in _pages(uri, "model-versions", "model_versions", auth):
        if found.get("status") != READY:
            continue
        name, version = found["name"], int(found["version"])
        yield ModelVersion(
            name=name,
            version=version,
            source=found["source"],
            mlflow_run_id=found.get("run_id") or "",
            tags={tag["key"]: tag.get("value", "") for tag in found.get("tags", ())},
            aliases=tuple(
                sorted(alias for model, number, alias in aliases if (model, number) == (name, version))
            ),
            description=found.get("description") or "",
            created_at=datetime.fromtimestamp(int(found["creation_timestamp"]) / 1000, UTC),
        )


def _pages(uri: str, path: str, field: str, auth: tuple[str, str] | None) -> Iterator[Mapping[str, Any]]:
    """All results of one of the server's searches."""
    asked: dict[str, Any] = {"max_results": PAGE}
    while True:
        page = _answer(uri, f"{path}/search", asked, auth)
        yield from page.get(field, ())
        if not page.get("next_page_token"):
            return
        asked["page_token"] = page["next_page_token"]


def _answer(uri: str, path: str, asked: Mapping[str, Any], auth: tuple[str, str] | None) -> dict[str, Any]:
    import httpx  # not where MLflow is a database

    address = f"{uri}/api/2.0/mlflow/{path}"
    try:
        answer = httpx.get(address, params=asked, auth=auth, timeout=ANSWER_S, follow_redirects=True)
        found: dict[str, Any] = answer.raise_for_status().json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OSError(str(error)) from None
    return found


def listed(versions: list[ModelVersion], shown: Iterable[str], most: int = 3) -> str:
    """The newest versions with their aliases and some tags, e.g. `3 (champion, factor=4), 2 (no factor)`."""
    words = []
    for version in versions[:most]:
        tags = [f"{tag}={version.tags[tag]}" if tag in version.tags else f"no {tag}" for tag in shown]
        words.append(f"{version.version} ({', '.join([*version.aliases, *tags])})")
    return ", ".join(words) + (f" and {len(versions) - most} older" if len(versions) > most else "")


def model_version(version: Any, aliases: Mapping[str, Any]) -> ModelVersion:
    # Searching leaves a version's aliases out; the registered model has them all.
    number = int(version.version)
    return ModelVersion(
        name=version.name,
        version=number,
        source=version.source,
        mlflow_run_id=version.run_id or "",
        tags=dict(version.tags),
        aliases=tuple(sorted(alias for alias, target in aliases.items() if int(target) == number)),
        description=version.description or "",
        created_at=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
    )


def matches(version: ModelVersion, tags: Mapping[str, str]) -> bool:
    return all(version.tags.get(tag) == value for tag, value in tags.items())


def wanted(tags: Mapping[str, str] | None, alias: str | None, version: int | None) -> str:
    parts = [f"tag {tag}={value}" for tag, value in (tags or {}).items()]
    parts += [f"alias {alias}"] if alias is not None else []
    parts += [f"number {version}"] if version is not None else []
    return "with " + " and ".join(parts)
