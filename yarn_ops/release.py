"""Releases: MLflow's experiments, runs and model versions, over explicit URIs and without its chatter.

A model version is found by name and by tag, alias or number. Its tags say what it is: context_length,
original_context_length, rope_method, factor, base, recipe, run, gate, git_commit, tree_digest.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from yarn_ops.catalogue import (
    ACTIVE,
    APPROVAL_TAG,
    GATE_TAG,
    Experiment,
    ModelVersion,
    TrackedRun,
    listed,
    matches,
    model_version,
    read_experiment,
    read_run,
    read_versions,
    wanted,
)
from yarn_ops.errors import ReleaseError
from yarn_ops.mlflow_client import (
    complete,
    create_experiment,
    ensure_model,
    fault,
    gone,
    log_dataset,
    mlflow_exception,
    open_client,
    pages,
    probe_artifacts,
    registered,
)
from yarn_ops.secrecy import without_secrets
from yarn_ops.settings import Settings, adopt_environment, mlflow_environment

End = Literal["completed", "rejected", "failed", "stopped"]
END_STATUS = {"completed": "FINISHED", "rejected": "KILLED", "failed": "FAILED", "stopped": "KILLED"}
"""MLflow's word for each end of a run; the tag `outcome` has ours"""

UNAPPROVED = {"pending": "waits for approval", "rejected": "was rejected by a person"}
"""what is said of a version that passed its gate, by its tag `approval`"""
PICTURES = "pictures"
"""folder of a run's artifacts"""
BATCH_ENTITIES = 100  # MLflow's limit on parameters in one call


def open_tracking(settings: Settings) -> Tracking:
    """The MLflow that the settings name; contacted at its first use.

    Its client takes a user, a password and an S3 server's address from the environment alone.
    """
    adopt_environment(mlflow_environment(settings))
    user, password = settings.mlflow_username, settings.mlflow_password
    auth = (user, password.get_secret_value()) if user and password else None
    return Tracking(settings.mlflow, settings.store, auth)


class Tracking:
    """An MLflow server (http://…) or database (sqlite:///file), with artifacts below `store_url`.

    Every method raises ReleaseError, in one line, when MLflow cannot be reached or refuses.
    """

    def __init__(self, uri: str, store_url: str, auth: tuple[str, str] | None = None) -> None:
        if not uri.startswith(("http://", "https://", "sqlite:///")):
            raise ReleaseError(f"MLflow at {uri}: write http://… or sqlite:///file")
        self.uri = uri
        self._auth = auth
        self._artifact_root = f"{store_url.rstrip('/')}/mlflow"

    def __repr__(self) -> str:
        return f"Tracking({without_secrets(self.uri)!r})"

    # Runs

    def ensure_experiment(self, name: str) -> str:
        """The experiment's id; made when missing, with its artifacts below the store.

        ReleaseError when it was deleted, or keeps its artifacts outside the store.
        """
        experiment = read_experiment(self.uri, name, self._auth) or self._make_experiment(name)
        if experiment.stage != ACTIVE:
            raise ReleaseError(f"experiment {name!r}: deleted in MLflow; restore it or name another")
        if not experiment.artifact_location.startswith(f"{self._artifact_root}/"):
            raise ReleaseError(
                f"experiment {name!r}: keeps its artifacts at {experiment.artifact_location}, outside "
                f"{self._artifact_root}; choose another publish.experiment"
            )
        return experiment.id

    def _make_experiment(self, name: str) -> Experiment:
        with self._mlflow() as client:
            place = f"{self._artifact_root}/{name}"
            found = client.get_experiment_by_name(name) or create_experiment(client, name, place)
        if not found.experiment_id:  # MLflow's client reads any JSON as an experiment without anything
            raise ReleaseError(f"MLflow at {self._shown}: another service; correct YARN_OPS_MLFLOW_URI")
        return Experiment(found.experiment_id, found.lifecycle_stage, found.artifact_location)

    def start_run(self, experiment: str, run: str, tags: Mapping[str, str], name: str | None = None) -> str:
        """The id of the experiment's run of ours, begun with these tags unless there is one.

        run: the id of our run, by which it is found again. name: what MLflow shows; left out: that id.
        """
        experiment_id = self.ensure_experiment(experiment)
        with self._mlflow() as client:
            found = client.search_runs([experiment_id], f"tags.run = '{run}'", max_results=1)
            if found:
                return str(found[0].info.run_id)
            made = client.create_run(experiment_id, run_name=name or run, tags={**tags, "run": run})
        return str(made.info.run_id)

    def keep_run(self, experiment: str, run: str, run_id: str) -> None:
        """Of the experiment's runs of ours keep this one: an answer that was lost is asked for again."""
        experiment_id = self.ensure_experiment(experiment)
        with self._mlflow() as client:
            for found in client.search_runs([experiment_id], f"tags.run = '{run}'"):
                if found.info.run_id != run_id:
                    gone(client.delete_run, found.info.run_id)

    def try_artifacts(self, experiment: str) -> None:
        """Write and remove a small artifact, which MLflow's client does in a way of its own."""
        with self._mlflow():
            probe_artifacts(f"{self._artifact_root}/{experiment}")

    def log_params(self, run_id: str, values: Mapping[str, Any]) -> None:
        """What was asked for. The same again is fine; ReleaseError when a value differs from before."""
        with self._mlflow() as client:
            from mlflow.entities import Param

            params = [Param(name, str(value)) for name, value in values.items()]
            for start in range(0, len(params), BATCH_ENTITIES):
                client.log_batch(run_id, params=params[start : start + BATCH_ENTITIES])

    def log_metrics(self, run_id: str, step: int, values: Mapping[str, float]) -> None:
        """Measurements at one step."""
        now_ms = time.time_ns() // 1_000_000
        with self._mlflow() as client:
            from mlflow.entities import Metric

            metrics = [Metric(name, value, now_ms, step) for name, value in values.items()]
            client.log_batch(run_id, metrics=metrics)

    def last_step(self, run_id: str, metric: str) -> int:
        """The newest step at which the run logged the metric; 0 when it never did."""
        with self._mlflow() as client:
            return max((point.step for point in client.get_metric_history(run_id, metric)), default=0)

    def log_picture(self, run_id: str, path: Path) -> None:
        """Show a picture with the run, as pictures/<file name>."""
        with self._mlflow() as client:
            client.log_artifact(run_id, str(path), PICTURES)

    def log_dataset(self, run_id: str, name: str, digest: str, source: Mapping[str, Any]) -> None:
        """Say what the run learnt from: a data set by its name, digest and where it comes from."""
        with self._mlflow() as client:
            log_dataset(client, run_id, name, digest, json.dumps(dict(source)))

    def log_text(self, run_id: str, text: str, name: str) -> None:
        """Keep a text with the run, as a file of this name."""
        with self._mlflow() as client:
            client.log_text(run_id, text, name)

    def finish(self, run_id: str, status: End, outcome: str) -> None:
        """Give the run its end; outcome: our word for it, as the tag `outcome`."""
        with self._mlflow() as client:
            client.set_tag(run_id, "outcome", outcome)
            client.set_terminated(run_id, END_STATUS[status])

    def run(self, run_id: str) -> TrackedRun | None:
        """The run, None when it is gone. A model to `register` lies in `model` below its artifacts."""
        if found := read_run(self.uri, run_id, self._auth):
            return found
        with self._mlflow() as client:
            try:
                run = client.get_run(run_id)
            except mlflow_exception() as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise
        gone = run.info.lifecycle_stage != ACTIVE
        return None if gone else TrackedRun(run.info.artifact_uri, dict(run.data.metrics))

    def artifact_uri(self, run_id: str) -> str:
        """Where the run's artifacts lie; ReleaseError when it is gone."""
        run = self.run(run_id)
        if run is None:
            raise ReleaseError(f"MLflow at {self._shown}: run {run_id} is gone; restore it there")
        return run.artifact_uri

    # Model versions

    def register(
        self, name: str, source_uri: str, run_id: str, tags: Mapping[str, str], description: str = ""
    ) -> int:
        """The version of `name` with this source and run: one, whatever is repeated or interrupted.

        MLflow has no unique constraint here, and its client asks again when an answer is lost: of several
        the oldest one stays.
        """
        with self._mlflow() as client:
            ensure_model(client, name)
            if not registered(client, name, source_uri, run_id):
                client.create_model_version(
                    name, source=source_uri, run_id=run_id, tags=dict(tags), description=description or None
                )
            version, *twins = registered(client, name, source_uri, run_id)
            for twin in twins:
                gone(client.delete_model_version, name, str(twin.version))
            complete(client, version, tags, description)
        return int(version.version)

    def move_alias(self, name: str, alias: str, version: int) -> None:
        """Let the alias name this version; it names no other one from then on."""
        with self._mlflow() as client:
            client.set_registered_model_alias(name, alias, str(version))

    def find(
        self,
        name: str,
        *,
        tags: Mapping[str, str] | None = None,
        alias: str | None = None,
        version: int | None = None,
        include_rejected: bool = False,
    ) -> ModelVersion:
        """The newest version that matches all that is given; only with a passed gate unless asked otherwise.

        ReleaseError names what there is instead.
        """
        every = self._versions(name)
        if not every:
            names = ", ".join(sorted({found.name for found in self.models()})) or "none"
            raise ReleaseError(f"model {name!r}: not registered at {self._shown}; registered: {names}")
        candidates = [
            found
            for found in every
            if matches(found, tags or {})
            and alias in (None, *found.aliases)
            and version in (None, found.version)
        ]
        chosen = [found for found in candidates if found.passed or include_rejected]
        if chosen:
            return chosen[0]
        if candidates:
            why = UNAPPROVED.get(candidates[0].tags.get(APPROVAL_TAG, ""), "did not pass its gate")
            raise ReleaseError(
                f"model {name!r}: version {candidates[0].version} matches but {why}; add --any-gate to use it"
            )
        there = listed(every, tags or (GATE_TAG,))
        raise ReleaseError(f"model {name!r}: no version {wanted(tags, alias, version)}; there is {there}")

    def behind(self, reference: str) -> ModelVersion:
        """The version that models:/name@alias or models:/name/version names, of any gate."""
        match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", reference)
        if match is None:
            raise ReleaseError(f"{reference}: write models:/name@alias or models:/name/version")
        name, alias, version = match.groups()
        return self.find(name, alias=alias, version=int(version) if version else None, include_rejected=True)

    def models(self, tags: Mapping[str, str] | None = None) -> list[ModelVersion]:
        """Every released version with these tags: by name, newest first; no other programs' models."""
        found = read_versions(self.uri, self._auth)
        if found is None:
            with self._mlflow() as client:
                names = [model.name for model in pages(client.search_registered_models)]
            found = [version for name in sorted(names) for version in self._versions(name)]
        return [version for version in found if GATE_TAG in version.tags and matches(version, tags or {})]

    def sources(self) -> list[str]:
        """The URIs of all versions' directories, of any program."""
        found = read_versions(self.uri, self._auth)
        if found is not None:
            return [version.source for version in found]
        with self._mlflow() as client:
            return [version.source for version in pages(client.search_model_versions)]

    def params(self, run_id: str) -> dict[str, str]:
        """What the run was asked for, as it was logged."""
        with self._mlflow() as client:
            return dict(client.get_run(run_id).data.params)

    def asking(self, tag: str) -> list[ModelVersion]:
        """Every usable version, of any program, that carries this tag; oldest first."""
        with self._mlflow() as client:
            found = pages(client.search_model_versions, filter_string=f"tags.`{tag}` LIKE '%'")
        versions = [model_version(version, {}) for version in found if version.status == "READY"]
        return sorted(versions, key=lambda version: (version.created_at, version.name))

    def set_tag(self, name: str, version: int, tag: str, value: str) -> None:
        """Put a tag on a version, replacing the one of the same name."""
        with self._mlflow() as client:
            client.set_model_version_tag(name, str(version), tag, value)

    def _versions(self, name: str) -> list[ModelVersion]:
        """Every usable version of a model, newest first; none when it is not registered."""
        from yarn_ops.recipe import MODEL_NAME  # the schema takes longer than all that lists models

        if not re.fullmatch(MODEL_NAME, name):
            return []
        with self._mlflow() as client:
            try:
                aliases = client.get_registered_model(name).aliases
            except mlflow_exception() as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return []
                raise
            found = pages(client.search_model_versions, filter_string=f"name = '{name}'")
        versions = [model_version(version, aliases) for version in found if version.status == "READY"]
        return sorted(versions, key=lambda version: version.version, reverse=True)

    # The client

    @contextmanager
    def _mlflow(self) -> Iterator[Any]:
        """The client; failures of MLflow, and of the database, S3 or disk below it, become ReleaseError."""
        try:
            yield self._client
        except Exception as error:
            told = fault(error, self.uri)
            if told is None:
                raise
            raise ReleaseError(f"MLflow at {self._shown}: {told}") from None

    @cached_property
    def _client(self) -> Any:
        return open_client(self.uri)

    @property
    def _shown(self) -> str:
        return without_secrets(self.uri)
