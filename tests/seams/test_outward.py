"""Proxies and certificates of an environment: used, or named before any client fails on them."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from yarn_ops.errors import SettingsError
from yarn_ops.settings import read_settings

pytestmark = pytest.mark.usefixtures("own_environment")
DEAD = "http://127.0.0.1:9"


def test_who_spares_everything_goes_on_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", DEAD)
    monkeypatch.setenv("no_proxy", "*")
    read_settings()
    assert os.environ["no_proxy"] == "*"


UNUSABLE = {
    "ALL_PROXY": ("nowhere://127.0.0.1:9", "is no proxy that is known; write http://host:port, or unset it"),
    "https_proxy": ("http://[::1", "is no proxy that is known"),
    "HTTP_PROXY": ("http://127.0.0.1:99999", "is no proxy that is known"),
    "SSL_CERT_FILE": ("/no/such.pem", "/no/such.pem: is not there; correct it, or unset it"),
    "REQUESTS_CA_BUNDLE": ("/no/such.pem", "is not there"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_no_client_can_use_is_named_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Clients fail on it when they are made, those of loopback servers too."""
    value, line = UNUSABLE[name]
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name}: ") as fault:
        read_settings()
    assert line in str(fault.value) and "\n" not in str(fault.value)


@pytest.mark.parametrize("there", [False, True])
def test_a_socks_proxy_wants_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: bool
) -> None:
    (tmp_path / "socksio.py").touch()
    monkeypatch.setenv("ALL_PROXY", "socks5://me:hunter2@127.0.0.1:9")
    if there:
        monkeypatch.syspath_prepend(tmp_path)
        read_settings()
    elif find_spec("socksio") is None:
        with pytest.raises(SettingsError, match=r"^ALL_PROXY: a SOCKS proxy needs the package socksio"):
            read_settings()
