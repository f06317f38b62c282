"""Settings: WHERE to do it. The only reader of the environment (prefix `YARN_OPS_`)."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_serializer, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from yarn_ops.errors import SettingsError
from yarn_ops.outward import readable, require_usable, spare_loopback
from yarn_ops.secrecy import hide_values, holds_password, secrets_of, without_secrets
from yarn_ops.secret_names import ANYWHERE, weight

UNSET = "\0"
"""in an environment: a variable that is to be taken out; none can have this value"""
OF_OTHER_KEYS = ("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE")
"""what belongs to other keys of S3 than the settings'"""
RENAMED = {"YARN_OPS_ALERT_URL": "YARN_OPS_NOTIFY"}
GPU_HOUR = 3.0
"""US dollars for a GPU of the H100 class, with its share of the machine: an assumption near list prices"""
NODE_HOUR = 1.5
"""US dollars for a machine of 32 cores without GPUs: an assumption near list prices"""
MOST_DOLLARS = 1e6
MOST_PROCESSES = 4096
ADDRESSES = (
    "database_url",
    "store_url",
    "s3_endpoint_url",
    "mlflow_uri",
    "prefect_api_url",
    "openlineage_url",
    "cluster",
)


class Settings(BaseSettings):
    """Embedded defaults for one person on one machine: SQLite, a local directory, servers on loopback.

    Every field is read from the environment variable `YARN_OPS_<FIELD>`.
    """

    model_config = SettingsConfigDict(
        env_prefix="YARN_OPS_", env_ignore_empty=True, frozen=True, extra="ignore", hide_input_in_errors=True
    )
    state_dir: Path = Field(
        Path("~/.yarn-ops"), validate_default=True, description="databases, local store, work, logs"
    )
    database_url: str | None = Field(
        None,
        description="run registry: sqlite:///file or postgresql://…; default SQLite in the state directory",
    )
    store_url: str | None = Field(
        None, description="artifacts: file:///directory or s3://bucket/prefix; default a local directory"
    )
    s3_endpoint_url: str | None = Field(None, description="of an S3 server that is not AWS")
    s3_access_key: SecretStr | None = Field(None, description="default: boto3's own chain")
    s3_secret_key: SecretStr | None = None
    s3_session_token: SecretStr | None = Field(None, description="that belongs to temporary keys")
    s3_region: str | None = None
    mlflow_uri: str | None = Field(
        None, description="tracking and model registry: http://… or sqlite:///file; default SQLite"
    )
    mlflow_username: str | None = Field(None, description="of an MLflow server with basic auth")
    mlflow_password: SecretStr | None = None
    prefect_api_url: str | None = Field(
        None, description="a Prefect server; default one of our own on loopback, started when needed"
    )
    prefect_auth: SecretStr | None = Field(None, description="user:password of a Prefect server with auth")
    server_names: str | None = Field(
        None, description="host:port,… by which our servers are asked, beside those of the loopback interface"
    )
    session_key: SecretStr | None = Field(
        None, description="what our servers make browsers' cookies from: one for Prefect's and MLflow's"
    )
    notify: SecretStr | None = Field(
        None,
        description="who is told what came of a run: webhooks, e-mail, Apprise addresses, by spaces between",
    )
    openlineage_url: str | None = Field(
        None, description="who collects lineage: http://host:port/api/v1/lineage; default nobody is told"
    )
    openlineage_key: SecretStr | None = Field(None, description="of that collector, sent as a bearer token")
    server_key: SecretStr | None = Field(
        None, description="of the inference server that is asked, sent as a bearer token"
    )
    registry_user: str | None = Field(None, description="of the OCI registry that push sends to")
    registry_password: SecretStr | None = None
    signing_key: Path | None = Field(
        None, description="file of a private key that signs releases: ECDSA P-256 or Ed25519, PEM"
    )
    verify_key: Path | None = Field(
        None,
        description="file of the public key by which pull and serve-check verify them; default they do not",
    )
    cluster: str | None = Field(
        None, description="a Dask scheduler, tcp://host:8786, whose workers prepare documents; default none"
    )
    language: Literal["en", "zh"] = Field("en", description="of the run forms and of the verdict card")
    standby: bool = Field(True, description="whether the service keeps a process ready for runs: 1 GB")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where models run")
    processes: int | None = Field(
        None, ge=1, le=MOST_PROCESSES,
        description="that train together at most; default one for every GPU, one on a CPU",
    )  # fmt: skip
    grid_workers: int = Field(
        1, ge=1, le=MOST_PROCESSES,
        description="that share the cells of a suite: the run itself, and helpers in the GPU pool",
    )  # fmt: skip
    gpu_hour: float = Field(
        GPU_HOUR, ge=0, le=MOST_DOLLARS, description="dollars for a GPU's hour and its share of the host"
    )
    node_hour: float = Field(
        NODE_HOUR, ge=0, le=MOST_DOLLARS, description="dollars for an hour of a machine without GPUs"
    )
    lease_s: float = Field(60.0, gt=1, le=86_400, description="life of a lease; renewed at a third of it")

    @field_validator(*ADDRESSES)
    @classmethod
    def _whole(cls, url: str | None) -> str | None:
        """An address is read alike by every library, so that none takes a part of a password for a host."""
        if url is None or url.startswith(("sqlite:", "file:")):
            return url
        scheme, _, rest = url.partition("://")
        if "@" not in url:
            return readable(url)
        user = rest.rpartition("@")[0]
        if not rest or "/" in scheme or (":" in user and re.search(r"[/@?#\[\]]", user)):
            raise ValueError(
                "a user and a password stand between :// and the last @, and their own /, @, ?, #, [ and ] "
                "are written %2F, %40, %3F, %23, %5B and %5D"
            )
        return readable(url)

    @field_validator("s3_endpoint_url", "prefect_api_url", "openlineage_url")
    @classmethod
    def _of_the_web(cls, url: str | None) -> str | None:
        if url is not None and not re.match("https?://[^/]", url):
            raise ValueError("write http://host:port or https://host:port")
        return None if url is None else url.rstrip("/")

    @field_validator("signing_key", "verify_key")
    @classmethod
    def _for_children(cls, file: Path | None) -> Path | None:
        """Absolute: children of this process may work elsewhere."""
        return None if file is None else file.expanduser().absolute()

    @field_validator("state_dir")
    @classmethod
    def _named_in_addresses(cls, folder: Path) -> Path:
        """MLflow and SQLAlchemy take %, ? and # in an address of a file for something else, if quoted too."""
        try:
            place = str(folder.expanduser().absolute())
        except RuntimeError:  # ~ of nobody
            raise ValueError("begins with ~, and there is no home directory; write a whole path") from None
        if re.search("[%?#\\x00-\\x1f\ud800-\udfff]", place):  # the last: bytes that Python cannot decode
            raise ValueError("holds %, ?, #, a control character or undecodable bytes; choose another")
        return folder

    @field_serializer(*ADDRESSES)
    def _masked(self, url: str | None) -> str | None:
        return None if url is None else without_secrets(url)

    def __repr_args__(self) -> Any:
        for name, value in super().__repr_args__():
            yield name, without_secrets(value) if isinstance(value, str) else value

    @cached_property
    def home(self) -> Path:
        """The state directory, absolute."""
        return self.state_dir.expanduser().absolute()

    @cached_property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.home / 'registry.db'}"

    @cached_property
    def store(self) -> str:
        return self.store_url or (self.home / "store").as_uri()

    @cached_property
    def mlflow(self) -> str:
        return self.mlflow_uri or f"sqlite:///{self.home / 'mlflow.db'}"

    @property
    def torch_environment(self) -> dict[str, str]:
        """Variables that PyTorch and what compiles for it read when they are loaded, without those that are
        set already: kernels are kept in the state directory for later processes, and threads that wait for
        each other give their processors away."""
        folder = self.home / "cache" / "kernels"
        values = {
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "TRITON_CACHE_DIR": str(folder / "triton"),
            "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": str(folder / "flash-attention-4"),
            "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        return {name: value for name, value in values.items() if name not in os.environ}

    def make_home(self) -> None:
        """Create the state directory, where scratch and compiled kernels lie from now on; SettingsError in
        one line when that is impossible. Call it before torch is imported."""
        from yarn_ops.processes import scratch_in  # its imports are not for --help

        try:
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
            tempfile.TemporaryFile(dir=self.home).close()
            scratch_in(self.home / "work")
            adopt_environment(self.torch_environment)
        except OSError as error:
            raise SettingsError(
                f"{self.home}: the state directory cannot be written ({error.strerror}); "
                "set YARN_OPS_STATE_DIR to one that can"
            ) from None


class MlflowServerSettings(BaseSettings):
    """Where our MLflow server keeps what, from the variables that `mlflow server` reads."""

    model_config = SettingsConfigDict(env_prefix="MLFLOW_", frozen=True, extra="ignore")

    backend_store_uri: SecretStr
    default_artifact_root: str


def read_settings() -> Settings:
    """Settings from the environment; SettingsError in one line that names the variable.

    From then on this process, and those that it starts, reach the loopback interface without a proxy, and
    texts of this one are without the secrets of its environment.
    """
    spare_loopback(os.environ)
    _hide_secrets(os.environ)
    require_usable(os.environ)
    for old, new in RENAMED.items():
        if old in os.environ:
            raise SettingsError(f"{old}: is now {new}; write that")
    try:
        settings = Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "YARN_OPS_" + "_".join(str(part) for part in first["loc"]).upper()
        told = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{name}: {told[:1].lower()}{told[1:]}") from None
    if settings.store_url and not settings.store_url.startswith(("file:///", "s3://")):
        raise SettingsError(
            f"YARN_OPS_STORE_URL: {settings.store_url!r} is neither file:///… nor s3://bucket/prefix"
        )
    if settings.store_url and settings.store_url.startswith("s3://") and holds_password(settings.store_url):
        raise SettingsError(
            "YARN_OPS_STORE_URL: holds a user or a password, which S3 has none of; keys are set by "
            "YARN_OPS_S3_ACCESS_KEY and YARN_OPS_S3_SECRET_KEY"
        )
    if settings.database_url and not settings.database_url.startswith(("sqlite:///", "postgresql")):
        raise SettingsError(
            "YARN_OPS_DATABASE_URL: only sqlite:/// and postgresql:// databases are supported"
        )
    return settings


def _hide_secrets(environment: Mapping[str, str]) -> None:
    """Have every secret of an environment masked from now on, wherever a text holds it."""
    secret = {
        f"YARN_OPS_{name.upper()}"
        for name, field in Settings.model_fields.items()
        if field.annotation == SecretStr | None
    }
    values: set[str] = set()
    for name, value in environment.items():
        if "://" in value:
            values |= secrets_of(value)
        if name == "YARN_OPS_NOTIFY":
            values.update(*(address.split("/", 3)[3:] for address in value.split()))
        elif name in secret or weight(name) == ANYWHERE:
            values.add(value.partition(":")[2] if name.endswith("_AUTH") else value)
    hide_values(values)


def as_environment(settings: Settings, names: Iterable[str] | None = None) -> dict[str, str]:
    """The variables from which these settings, or the named ones, are read again.

    Secrets are plain: for a child, never for a log.
    """
    values = {name: getattr(settings, name) for name in names or Settings.model_fields}
    return {
        f"YARN_OPS_{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in values.items()
        if value is not None
    }


def mlflow_environment(settings: Settings) -> dict[str, str]:
    """What MLflow's client reads from the environment alone: its user, and how it reaches our S3 server."""
    secrets = {
        "MLFLOW_TRACKING_PASSWORD": settings.mlflow_password,
        "AWS_ACCESS_KEY_ID": settings.s3_access_key,
        "AWS_SECRET_ACCESS_KEY": settings.s3_secret_key,
        "AWS_SESSION_TOKEN": settings.s3_session_token,
    }
    others = {} if settings.s3_access_key is None else dict.fromkeys(OF_OTHER_KEYS, UNSET)
    values = {
        "MLFLOW_TRACKING_USERNAME": settings.mlflow_username,
        "MLFLOW_S3_ENDPOINT_URL": settings.s3_endpoint_url,
        "AWS_DEFAULT_REGION": settings.s3_region,
        **{name: None if secret is None else secret.get_secret_value() for name, secret in secrets.items()},
    }
    if settings.s3_endpoint_url is not None:  # servers other than AWS need not know its newer checksums
        values["AWS_REQUEST_CHECKSUM_CALCULATION"] = "when_required"
        values["AWS_RESPONSE_CHECKSUM_VALIDATION"] = "when_required"
    return others | {name: value for name, value in values.items() if value is not None}


def clean_environment() -> dict[str, str]:
    """This process's environment without what would turn a server, or its clients, to other services."""
    ours = ("YARN_OPS_", "PREFECT_", "MLFLOW_", "AWS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def child_environment(values: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with `values` on top, for a child process."""
    return without_unset({**os.environ, **values})


def without_unset(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of an environment that are to be there."""
    return {name: value for name, value in environment.items() if value != UNSET}


def started_by_torchrun() -> bool:
    """Whether this process is one of several that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def adopt_environment(values: Mapping[str, str]) -> None:
    """Put `values` into this process's environment, before the packages that read them are imported.

    An UNSET one is taken out of it.
    """
    kept = without_unset(values)
    os.environ.update(kept)
    for name in values.keys() - kept.keys():
        os.environ.pop(name, None)
