"""The password of a state directory: made once, kept closed, told to no server that is not ours."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from pydantic import SecretStr

from yarn_ops.errors import SettingsError
from yarn_ops.passwords import USER, for_browser, kept_password, with_passwords
from yarn_ops.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path)


def test_a_password_is_made_once_and_kept_closed(settings: Settings) -> None:
    made = kept_password(settings)
    assert len(made) >= 43 and kept_password(settings) == made
    assert stat.S_IMODE((settings.home / "password").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604])
def test_one_that_others_could_read_is_replaced(settings: Settings, mode: int) -> None:
    made = kept_password(settings)
    (settings.home / "password").chmod(mode)
    assert kept_password(settings) != made
    assert stat.S_IMODE((settings.home / "password").stat().st_mode) == 0o600


def test_one_that_was_cut_off_is_made_again(settings: Settings) -> None:
    kept_password(settings)
    (settings.home / "password").write_text("")
    assert len(kept_password(settings)) >= 43


@pytest.mark.parametrize("wrong", ["bytes", "directory"])
def test_one_that_cannot_be_read_is_named(settings: Settings, wrong: str) -> None:
    path = settings.home / "password"
    if wrong == "bytes":
        path.write_bytes(b"\xff\xfe")
        path.chmod(0o600)
    else:
        path.mkdir(mode=0o700)
    with pytest.raises(SettingsError, match=f"{path}: cannot be read or written") as told:
        kept_password(settings)
    assert "\n" not in str(told.value)


def test_a_persons_own_passwords_stay(settings: Settings) -> None:
    theirs = {
        "prefect_auth": SecretStr("me:mine"),
        "mlflow_username": "me",
        "mlflow_password": SecretStr("x"),
    }
    given = with_passwords(settings.model_copy(update=theirs), "ours")
    assert {name: getattr(given, name) for name in theirs} == theirs


def test_a_server_elsewhere_is_never_told_ours(settings: Settings) -> None:
    elsewhere = {"prefect_api_url": "http://far:4200/api", "mlflow_uri": "http://far:5000"}
    given = with_passwords(settings.model_copy(update=elsewhere), "ours")
    assert (given.prefect_auth, given.mlflow_username, given.mlflow_password) == (None, None, None)
    here = with_passwords(settings, "ours")
    assert here.prefect_auth == SecretStr(f"{USER}:ours") and here.mlflow_password == SecretStr("ours")


def test_an_address_holds_a_token_and_not_the_password(settings: Settings) -> None:
    given = with_passwords(settings, "a long password")
    address = for_browser(given, "http://127.0.0.1:4200/deployments")
    assert address.startswith("http://127.0.0.1:4200/deployments?token=") and "password" not in address
