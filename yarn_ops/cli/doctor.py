"""`yarn-ops doctor`: every dependency, whether it is reachable and right, and the remedy where it is not."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from yarn_ops import servers, services
from yarn_ops.errors import YarnOpsError
from yarn_ops.notify import require_addresses
from yarn_ops.registry import RunView, database
from yarn_ops.settings import Settings
from yarn_ops.shown import counted, one_line
from yarn_ops.store import open_store, store_options

FREE_BYTES = 5 * 2**30


@dataclass(frozen=True)
class Finding:
    """One examined dependency. `remedy` is empty when it is healthy."""

    name: str
    healthy: bool
    found: str
    remedy: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Examine everything that a run with these settings needs; embedded databases are made."""
    checks: list[tuple[str, Callable[[Settings], str]]] = [
        ("python", _python),
        ("packages", _packages),
        ("state directory", _state),
        ("registry", _registry),
        ("store", _store),
        ("mlflow", _mlflow),
        ("prefect", _prefect),
        ("workers", _workers),
        ("cluster", services.try_cluster),
        ("device", _device),
        ("notify", _notify),
    ]
    return [_finding(name, check, settings) for name, check in checks]


def _finding(name: str, check: Callable[[Settings], str], settings: Settings) -> Finding:
    try:
        return Finding(name, True, one_line(check(settings)))
    except YarnOpsError as error:
        return Finding(name, False, str(error).partition(";")[0], str(error).partition("; ")[2] or str(error))


def _python(settings: Settings) -> str:
    return sys.version.split()[0]


def _packages(settings: Settings) -> str:
    """Every requirement of ours, as installed."""
    wrong = []
    for text in importlib.metadata.requires("yarn-ops") or ():
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{need.name} is missing")
            continue
        if not need.specifier.contains(re.sub(r"\+.*", "", version), prereleases=True):
            wrong.append(f"{need.name} {version} is not {need.specifier}")
    if wrong:
        raise YarnOpsError(
            f"{', '.join(wrong)}; install yarn-ops again, with the pins of infra/constraints.txt"
        )
    shown = ("torch", "transformers", "peft", "prefect", "mlflow")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in shown)


def _state(settings: Settings) -> str:
    settings.make_home()
    free = shutil.disk_usage(settings.home).free
    if free < FREE_BYTES:
        raise YarnOpsError(
            f"{settings.home}: {free / 2**30:.1f} GiB free; make room, a run wants 5 GiB at least"
        )
    return f"{settings.home}, {free / 2**30:.0f} GiB free"


def _undamaged(path: Path | None, remedy: str) -> None:
    damage = None if path is None else database.sqlite_damage(path)
    if damage is not None:
        raise YarnOpsError(f"{path}: damaged ({damage.replace(';', ',')}); {remedy}")


def _registry(settings: Settings) -> str:
    _undamaged(
        database.sqlite_file(settings.database),
        "run `yarn-ops db rebuild`: it moves the file aside and makes the registry again from the store",
    )
    registry = services.open_run_registry(settings)
    runs = registry.runs(1)
    if runs:
        _require_place(registry.run_view(runs[0].id), settings)
    return f"{settings.database}, " + (f"last run {runs[0].id}" if runs else "no runs yet")


def _require_place(run: RunView, settings: Settings) -> None:
    """StoreError where what a run made, or used, lies outside of the store."""
    store = open_store(settings.store, store_options(settings))
    for stage in run.stages:
        if tree := (stage.record or {}).get("tree"):
            store.key_of(tree["uri"])


def _store(settings: Settings) -> str:
    services.try_store(settings)
    return settings.store


def _mlflow(settings: Settings) -> str:
    _undamaged(
        Path(settings.mlflow.removeprefix("sqlite:///"))
        if settings.mlflow.startswith("sqlite:///")
        else None,
        "restore a backup; without one move it away and run the recipes again: finished stages are reused, "
        "every release is whole in the store, and `yarn-ops db rebuild` tells which MLflow misses",
    )
    services.try_mlflow(settings).models()
    return settings.mlflow


def _prefect(settings: Settings) -> str:
    if settings.prefect_api_url is None:
        _undamaged(
            settings.home / "prefect/prefect.db",
            "stop `yarn-ops up` and move the file away: it is made again, with the runs' history alone lost",
        )
    services.try_prefect(settings)
    if settings.prefect_api_url is not None:
        return settings.prefect_api_url
    service = servers.running_service(settings)
    return service.prefect_api_url if service else "our own, started when needed"


def _workers(settings: Settings) -> str:
    address = settings.prefect_api_url
    if address is None:
        service = servers.running_service(settings)
        if service is None:
            return "none: runs are done by who asks for them"
        settings, address = service.settings(settings), service.prefect_api_url
    return f"of {', '.join(services.try_workers(settings, address))}"


def _notify(settings: Settings) -> str:
    """Of every address its kind: the address itself is a secret."""
    return ", ".join(require_addresses(settings)) or "nobody is told"


def _device(settings: Settings) -> str:
    import torch

    services.try_device(settings)
    if settings.device != "cpu" and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"{torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    return f"cpu, {counted(torch.get_num_threads(), 'thread')}"
