"""The ports and secrets of one stack: made at its first start, kept in a file that only its owner reads."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shlex
from pathlib import Path

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError, field_serializer, field_validator

from yarn_ops.errors import SettingsError
from yarn_ops.passwords import USER, write_private
from yarn_ops.servers import LOOPBACK, WORK_POOLS, free_port, free_ports, prefect_url
from yarn_ops.settings import Settings, as_environment
from yarn_ops.stack.postgres import owner
from yarn_ops.stack.swift import Swift

BUCKET = "yarn-ops"
DATABASES = ("registry", "prefect", "mlflow")
WANTED = {"prefect": 4200, "mlflow": 5000}
"""where people look for them; taken at the first start if they are free"""


class Secrets(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    postgres: SecretStr
    registry: SecretStr
    prefect: SecretStr
    """of Prefect's database, as the two beside it are of theirs"""
    mlflow: SecretStr
    prefect_user: SecretStr
    mlflow_user: SecretStr
    mlflow_sessions: SecretStr
    """of browsers with Prefect and MLflow"""
    s3: SecretStr

    @field_serializer("*", when_used="json")
    def _plain(self, secret: SecretStr) -> str:
        return secret.get_secret_value()

    def plain(self, name: str) -> str:
        secret: SecretStr = getattr(self, name)
        return secret.get_secret_value()


class StackPlan(BaseModel):
    """What a stack keeps from start to start: its addresses are the same, so links to it stay right."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ports: dict[str, int]
    secrets: Secrets

    @field_validator("ports")
    @classmethod
    def _one_s3_server(cls, ports: dict[str, int]) -> dict[str, int]:
        """Stacks made before 2026-11-29 had four, with a port each."""
        renamed = {{"s3-proxy": "s3"}.get(name, name): port for name, port in ports.items()}
        return {name: port for name, port in renamed.items() if not name.startswith("s3-")}


class StackPaths:
    """Where a stack keeps what."""

    def __init__(self, home: Path) -> None:
        self.home, self.folder = home, home / "stack"
        self.plan, self.lock = self.folder / "plan.json", self.folder / "lock"
        self.status, self.logs = self.folder / "status.json", self.folder / "logs"
        self.environment = self.folder / "environment"
        """variables for a shell: `set -a; . FILE`"""
        self.swift = self.folder / "s3"

    @property
    def postgres(self) -> Path:
        """PostgreSQL's directory; for root in the home of its user, who cannot enter the state directory."""
        if os.geteuid() != 0:
            return self.folder / "postgres"
        name = hashlib.sha256(str(self.home).encode()).hexdigest()[:12]
        return Path(owner().pw_dir) / f"yarn-ops-{name}"


def ensure_plan(paths: StackPaths) -> StackPlan:
    """The stack's plan; made, with secrets of its own, when there is none."""
    if paths.plan.exists():
        try:
            return StackPlan.model_validate_json(paths.plan.read_bytes())
        except (OSError, ValidationError) as error:
            raise SettingsError(
                f"{paths.plan}: cannot be read ({type(error).__name__}); restore it"
            ) from None
    plan = StackPlan(
        ports=_choose_ports(),
        secrets=Secrets(**{name: SecretStr(secrets.token_urlsafe(24)) for name in Secrets.model_fields}),
    )
    paths.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(paths.plan, plan.model_dump_json(indent=2))
    return plan


def settings_of(settings: Settings, paths: StackPaths, plan: StackPlan) -> Settings:
    """The settings of a process that works in this stack; device and lease are the given ones."""
    values = {
        "state_dir": paths.home,
        "device": settings.device,
        "lease_s": settings.lease_s,
        "database_url": database_url(plan, "registry"),
        "store_url": f"s3://{BUCKET}/store",
        "s3_endpoint_url": f"http://{LOOPBACK}:{plan.ports['s3']}",
        "s3_access_key": Swift.access_key,
        "s3_secret_key": plan.secrets.s3,
        "s3_region": Swift.region,
        "mlflow_uri": f"http://{LOOPBACK}:{plan.ports['mlflow']}",
        "mlflow_username": USER,
        "mlflow_password": plan.secrets.mlflow_user,
        "prefect_api_url": prefect_url(plan.ports["prefect"]),
        "prefect_auth": f"{USER}:{plan.secrets.plain('prefect_user')}",
        "session_key": plan.secrets.mlflow_sessions,
    }
    return Settings.model_validate(values)


def database_url(plan: StackPlan, name: str, driver: str = "postgresql") -> str:
    password = plan.secrets.plain(name)
    return f"{driver}://{name}:{password}@{LOOPBACK}:{plan.ports['postgres']}/{name}"


def write_environment(paths: StackPaths, settings: Settings) -> None:
    """Leave the settings, secrets included, where a person's shell can read them."""
    lines = [f"{name}={shlex.quote(value)}" for name, value in sorted(as_environment(settings).items())]
    write_private(paths.environment, "\n".join(lines) + "\n")


def read_status(paths: StackPaths) -> dict[str, object]:
    """What the supervisor last wrote down; nothing before its first start."""
    try:
        found: dict[str, object] = json.loads(paths.status.read_bytes())
    except (OSError, ValueError):
        return {}
    return found


def _choose_ports() -> dict[str, int]:
    names = ["postgres", "s3", *(f"worker-{pool}" for pool in WORK_POOLS), "metrics"]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    return ports | {name: free_port(wanted) for name, wanted in WANTED.items()}
