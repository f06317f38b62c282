"""The services around a run, tried before anything costs time: each is there and does its part."""

from __future__ import annotations

import re
import time
import uuid
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from yarn_ops.errors import ReleaseError, SettingsError, StoreError
from yarn_ops.heads import basic
from yarn_ops.release import Tracking, open_tracking
from yarn_ops.servers import WORK_POOLS
from yarn_ops.settings import Settings
from yarn_ops.shown import counted
from yarn_ops.store import open_store, store_options

if TYPE_CHECKING:
    import httpx

    from yarn_ops.registry import Registry

PROBE = b"probe"
ANSWER_S = 5.0
PAUSES_S = (0.5, 1.0, 2.0)
"""before a server that answers that it cannot just now is asked again"""


def require_services(settings: Settings, experiment: str) -> None:
    """Raise the fault of the settings that a run, logging to this MLflow experiment, would meet later.

    SettingsError, RegistryError, StoreError, ReleaseError or TrainError, in one line.
    """
    open_run_registry(settings).close()
    try_cluster(settings)
    try_store(settings)
    try_prefect(settings)
    if settings.mlflow_uri is not None:  # the embedded one is a file of ours, made when first needed
        try_mlflow(settings).ensure_experiment(experiment)
    if settings.store.startswith("s3://"):
        try_mlflow(settings).try_artifacts(experiment)
    try_device(settings)


def open_run_registry(settings: Settings) -> Registry:
    """The run registry of these settings; the embedded one is made, or brought up to date, first.

    A shared database is upgraded by hand: other machines may still run an older program on it.
    """
    from yarn_ops import registry  # SQLAlchemy and Alembic: not for who only asks MLflow

    settings.make_home()
    if settings.database_url is None:
        registry.upgrade(settings.database)
    return registry.open_registry(settings.database)


def try_store(settings: Settings) -> None:
    """Write, read and delete a small object. StoreError when one of these fails."""
    store = open_store(settings.store, store_options(settings))
    key = f"probe-{uuid.uuid4().hex}"
    store.write(key, PROBE)
    read = store.read(key)
    store.delete(key)
    if read != PROBE:
        raise StoreError(f"{settings.store}: returned other bytes than were written; check the storage")


def try_prefect(settings: Settings) -> None:
    """SettingsError when nothing answers at the address that the settings name, or refuses us."""
    url = settings.prefect_api_url
    if url is None:
        return
    for pause_s in PAUSES_S:
        answer = _ask("GET", f"{url}/admin/version", settings.prefect_auth)
        if answer is None or answer.status_code < 500:
            break
        time.sleep(pause_s)
    if answer is None:
        raise SettingsError(
            f"YARN_OPS_PREFECT_API_URL: nothing answers at {url}; start it, or unset the variable"
        )
    if answer.status_code == 401:
        raise SettingsError(
            f"YARN_OPS_PREFECT_AUTH: {url} refuses this user and password; write user:password"
        )
    if answer.status_code != 200 or not re.fullmatch(r'"\d+\.[^"]{1,40}"', answer.text):
        told = f"is no Prefect API (status {answer.status_code})"
        hint = "" if url.endswith("/api") else "; a Prefect server's ends in /api"
        raise SettingsError(f"YARN_OPS_PREFECT_API_URL: what answers at {url} {told}{hint}")
    theirs, ours = answer.text.strip('"'), version("prefect")
    if theirs.partition(".")[0] != ours.partition(".")[0]:
        raise SettingsError(
            f"YARN_OPS_PREFECT_API_URL: {url} is a Prefect {theirs}, and this is Prefect {ours}; name a "
            "server of the same first figure"
        )


def try_workers(settings: Settings, api_url: str) -> list[str]:
    """The work pools that a worker asks for runs; SettingsError when one of ours has none, or is paused."""
    answer = _ask("POST", f"{api_url}/work_pools/filter", settings.prefect_auth, json={})
    try:
        found = {} if answer is None else {pool["name"]: pool for pool in answer.json()}
    except (ValueError, TypeError, KeyError):
        answer = None
    if answer is None:
        raise SettingsError(f"{api_url}: does not tell its work pools; see what is said of prefect")
    for name in WORK_POOLS:
        if name not in found:
            raise SettingsError(f"work pool {name}: not there; run `python -m flows.deploy`")
        if found[name]["is_paused"]:
            raise SettingsError(f"work pool {name}: paused; resume it in Prefect's UI")
        if found[name]["status"] != "READY":
            command = f"`prefect worker start --pool {name}`"
            raise SettingsError(f"work pool {name}: no worker asks it for runs; start one: {command}")
    return list(WORK_POOLS)


def try_mlflow(settings: Settings) -> Tracking:
    """The MLflow of these settings; ReleaseError, soon, when it is a server and nothing answers there."""
    if settings.mlflow_uri is None:
        settings.make_home()
    tracking = open_tracking(settings)
    address = urlsplit(settings.mlflow)
    host = address.netloc.rpartition("@")[2]
    if host and _status(address._replace(netloc=host).geturl()) is None:
        # MLflow's own client would try for a quarter of a minute.
        raise ReleaseError(
            f"MLflow at {address.scheme}://{host}: nothing answers; start it, or correct YARN_OPS_MLFLOW_URI"
        )
    return tracking


def try_cluster(settings: Settings) -> str:
    """How many workers the cluster has, in words; SettingsError when it is named and cannot be used."""
    if settings.cluster is None:
        return "none: documents are prepared here"
    from yarn_ops.cluster import workers_of  # NumPy and boto3: not for who asks for no cluster

    return f"{settings.cluster}, {counted(workers_of(settings), 'worker')}"


def try_device(settings: Settings) -> None:
    """TrainError when a GPU is asked for that torch does not see."""
    if settings.device == "cuda":
        from yarn_ops.models.device import resolve_device  # torch: seconds

        resolve_device(settings.device)


def _status(url: str, auth: SecretStr | None = None) -> int | None:
    """The HTTP status of a GET, with this user:password; None when nothing answers."""
    answer = _ask("GET", url, auth)
    return None if answer is None else answer.status_code


def _ask(method: str, url: str, auth: SecretStr | None = None, **more: Any) -> httpx.Response | None:
    """The answer to a request with this user:password; None when there is none."""
    import httpx

    try:
        return httpx.request(
            method,
            url,
            headers=basic(auth),
            timeout=ANSWER_S,
            follow_redirects=True,
            verify=url.startswith("https://"),
            **more,
        )
    except (httpx.HTTPError, httpx.InvalidURL):
        return None
