"""The passwords of our servers: made by us, kept in closed files, given to browsers in addresses."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from pydantic import SecretStr

from yarn_ops.atomic import atomic_write
from yarn_ops.errors import SettingsError
from yarn_ops.guard import TOKEN, address_token
from yarn_ops.secrecy import hide_values
from yarn_ops.settings import Settings

USER = "yarn-ops"
"""of every server that we start"""
PASSWORD_BYTES = 32


def new_password() -> str:
    return secrets.token_urlsafe(PASSWORD_BYTES)


def with_passwords(settings: Settings, password: str) -> Settings:
    """The settings of the servers that we start: `password` for each that has none of its own.

    A server elsewhere, which the settings name, is never told ours.
    """
    hide_values([password], more=True)
    new: dict[str, str | SecretStr] = {"session_key": settings.session_key or SecretStr(password)}
    if settings.prefect_api_url is None and settings.prefect_auth is None:
        new["prefect_auth"] = SecretStr(f"{USER}:{password}")
    if not settings.mlflow.startswith("http"):
        new["mlflow_username"] = settings.mlflow_username or USER
        new["mlflow_password"] = settings.mlflow_password or SecretStr(password)
    return settings.model_copy(update=new)


def kept_password(settings: Settings) -> str:
    """The password of the state directory; made when there is none, or one that others could read."""
    path = settings.home / "password"
    try:
        if (
            path.exists()
            and not stat.S_IMODE(path.stat().st_mode) & 0o077
            and (kept := path.read_text("ascii"))
        ):
            return kept
        made = new_password()
        write_private(path, made)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not ASCII"
        raise SettingsError(
            f"{path}: cannot be read or written ({reason}); remove it, a new one is made"
        ) from None
    return made


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner reads; it appears whole."""
    with atomic_write(path, durable=True) as draft:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)


def for_browser(settings: Settings, address: str) -> str:
    """An address of a server of ours that lets the browser in by which it is opened."""
    assert settings.session_key is not None
    return f"{address}?{TOKEN}={address_token(settings.session_key)}"
