"""The alert that is sent when a release falls below its gate."""

from __future__ import annotations

import ssl

import httpx
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from flows.liveness import sign
from yarn_ops.errors import SettingsError
from yarn_ops.settings import read_settings

ANSWER_S = 10.0


@flow(name="alert", flow_run_name="{name} version {version}", persist_result=False)
def alert(name: str, version: str, reasons: str = "") -> None:
    """Tell that a released model no longer passes its gate: an artifact here, and YARN_OPS_ALERT_URL if set.

    Args:
        name: The registered model.
        version: Its version.
        reasons: Which conditions of the gate it no longer meets.
    """
    sign()
    told = f"{name} version {version} fell below its gate: {reasons}"
    get_run_logger().error(told)
    create_markdown_artifact(told, key="alert", description=f"{name} version {version} fell below its gate")
    address = read_settings().alert_url
    if address is not None:
        _post(address.get_secret_value(), {"text": told, "name": name, "version": version})


def _post(address: str, message: dict[str, str]) -> None:
    """As JSON, with the `text` that chat systems show. SettingsError, without the address, when refused."""
    trusted = ssl.create_default_context()  # the machine's certificate authorities
    try:
        answer = httpx.post(address, json=message, timeout=ANSWER_S, verify=trusted, follow_redirects=True)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError):  # they repeat the address
        raise SettingsError("YARN_OPS_ALERT_URL: no address that can be asked; check it") from None
    except httpx.HTTPError as error:
        raise SettingsError(f"YARN_OPS_ALERT_URL: not told there ({error}); check the address") from None
    if not answer.is_success:
        told = f"{answer.status_code} {answer.reason_phrase}"
        raise SettingsError(f"YARN_OPS_ALERT_URL: not told there ({told}); check the address")
