"""How an environment has this process reach servers elsewhere: through which proxy, trusting whom."""

from __future__ import annotations

from collections.abc import MutableMapping
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from yarn_ops.errors import SettingsError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
TRUSTED = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""name who is trusted; libraries fail wherever they meet one that is not there"""


def readable(url: str) -> str:
    """The address; ValueError where its host or port cannot be told, on which libraries fail as they like."""
    try:
        urlsplit(url).port  # noqa: B018
    except ValueError:
        raise ValueError("host and port cannot be told in it; correct them") from None
    return url


def spare_loopback(environment: MutableMapping[str, str]) -> None:
    """Add the loopback interface to what is asked for without a proxy, where one is named."""
    if not any(name.lower().endswith("_proxy") for name in environment):
        return
    for name in ("no_proxy", "NO_PROXY"):
        spared = environment.get(name, environment.get(name.swapcase(), ""))
        missing = [host for host in LOOPBACK if host not in spared.split(",")]
        if spared.strip() != "*" and missing:
            environment[name] = ",".join([*filter(None, [spared]), *missing])


def require_usable(environment: MutableMapping[str, str]) -> None:
    """SettingsError for a proxy that our HTTP clients cannot use, which fail on it even where they spare it,
    and for certificates that are not there."""
    for name, value in environment.items():
        if name.lower() in PROXIES and value:
            _require_proxy(name, value)
        if name in TRUSTED and value and not Path(value).exists():
            raise SettingsError(f"{name}: {value}: is not there; correct it, or unset it")


def _require_proxy(name: str, value: str) -> None:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        known = parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
    if not known or parts.scheme not in ("http", "https", "socks5", "socks5h"):
        raise SettingsError(f"{name}: is no proxy that is known; write http://host:port, or unset it")
    if parts.scheme.startswith("socks5") and find_spec("socksio") is None:
        raise SettingsError(f"{name}: a SOCKS proxy needs the package socksio; install it, or unset {name}")
