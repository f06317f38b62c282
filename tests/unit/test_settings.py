"""Settings come from the environment only, and keep their secrets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from yarn_ops.errors import SettingsError
from yarn_ops.settings import Settings, as_environment, read_settings

NUMBERS = ("LEASE_S", "PROCESSES", "GRID_WORKERS", "GPU_HOUR", "NODE_HOUR")

OF_TORCH = {
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED",
    "OMP_WAIT_POLICY",
}


def test_embedded_defaults_lie_in_the_state_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("YARN_OPS_STATE_DIR", str(tmp_path))
    settings = read_settings()
    assert settings.database == f"sqlite:///{tmp_path}/registry.db"
    assert settings.store == f"file://{tmp_path}/store"
    assert settings.mlflow == f"sqlite:///{tmp_path}/mlflow.db"


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a shell's or a container's unset one is written; the state was made where the command stood."""
    monkeypatch.setenv("HOME", str(tmp_path))
    usual = read_settings()
    for name in Settings.model_fields:
        monkeypatch.setenv(f"YARN_OPS_{name.upper()}", "")
    assert read_settings() == usual and usual.home == tmp_path / ".yarn-ops"


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("STORE_URL", "http://somewhere", "neither file:///… nor s3://bucket/prefix"),
        ("DATABASE_URL", "mysql://x", "only sqlite:/// and postgresql:// databases"),
        *(
            (name, f"{scheme}://me:hunter2@{host}", f"YARN_OPS_{name}: host and port cannot be told in it")
            for name, scheme in (("DATABASE_URL", "postgresql"), ("MLFLOW_URI", "http"), ("CLUSTER", "tcp"))
            for host in ("[::bad", "host:port", "host:99999")
        ),
        ("DEVICE", "tpu", "YARN_OPS_DEVICE: input should be"),
        ("LEASE_S", "0", "YARN_OPS_LEASE_S: input should be greater than 1"),
        *((name, "inf", f"YARN_OPS_{name}: input should be") for name in NUMBERS),
        *((name, "nan", f"YARN_OPS_{name}: input should be") for name in NUMBERS),
        *((name, "1e300", f"YARN_OPS_{name}: input should be") for name in NUMBERS),
    ],
)
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, line: str) -> None:
    monkeypatch.setenv(f"YARN_OPS_{name}", value)
    with pytest.raises(SettingsError, match="YARN_OPS_") as fault:
        read_settings()
    assert line in str(fault.value) and "hunter2" not in str(fault.value)


def test_the_numbers_are_all_tried() -> None:
    kinds = {name.upper(): field.annotation for name, field in Settings.model_fields.items()}
    assert {name for name, kind in kinds.items() if kind in (int, float, int | None)} == {*NUMBERS}


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YARN_OPS_S3_SECRET_KEY", "hunter2")
    settings = read_settings()
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in settings.model_dump_json()


def test_every_secret_and_every_password_in_a_url_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "DATABASE_URL": "postgresql://me:hunter2@host/runs",
        "MLFLOW_URI": "http://me:hunter2@host:5000",
        "PREFECT_API_URL": "http://me:hunter2@host:4200/api",
        "PREFECT_AUTH": "me:hunter2",
        "MLFLOW_PASSWORD": "hunter2",
        "S3_ACCESS_KEY": "hunter2",
        "S3_SECRET_KEY": "hunter2",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"YARN_OPS_{name}", value)
    settings = read_settings()
    for shown in (repr(settings), str(settings), settings.model_dump_json(), f"{settings.model_dump()}"):
        assert "hunter2" not in shown
        assert "me:***@host" in shown
    assert as_environment(settings)["YARN_OPS_PREFECT_AUTH"] == "me:hunter2"  # for a child, plain


def test_a_state_directory_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("YARN_OPS_STATE_DIR", str(tmp_path / "file" / "state"))
    with pytest.raises(SettingsError, match="set YARN_OPS_STATE_DIR to one that can"):
        read_settings().make_home()


def test_what_torch_reads_is_set_unless_a_person_has_set_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in OF_TORCH:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    monkeypatch.setenv("YARN_OPS_STATE_DIR", str(tmp_path / "state"))
    settings = read_settings()
    assert settings.torch_environment.keys() == OF_TORCH - {"TRITON_CACHE_DIR"}
    settings.make_home()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith(f"{tmp_path}/state/cache/")
    assert os.environ["TRITON_CACHE_DIR"] == "/mine" and not settings.torch_environment
    for name in OF_TORCH - {"TRITON_CACHE_DIR"}:
        monkeypatch.delenv(name)
