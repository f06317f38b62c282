"""The session's Prefect server, as tests reach it: its password and its API over HTTP."""

from __future__ import annotations

from typing import Any

import httpx

AUTH = "yarn-ops:a password"


def at(api: str) -> dict[str, str]:
    """The settings of who uses this server."""
    return {"YARN_OPS_PREFECT_API_URL": api, "YARN_OPS_PREFECT_AUTH": AUTH}


def client(api: str) -> httpx.Client:
    user, _, password = AUTH.partition(":")
    return httpx.Client(base_url=api, auth=(user, password), timeout=30)


def post(api: str, path: str, **values: Any) -> Any:
    return client(api).post(path, json=values).raise_for_status().json()
