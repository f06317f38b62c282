"""The same tests for every registry: SQLite and a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres import PostgresCluster

from yarn_ops.registry import Registry, open_registry, upgrade

RECIPE = {"rope": {"method": "yarn", "factor": 4.0}}


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    postgres: PostgresCluster = request.getfixturevalue("postgres")
    postgres.empty("postgres")
    return postgres.url("postgres")


@pytest.fixture
def registry(database_url: str) -> Iterator[Registry]:
    """A migrated registry of each kind."""
    upgrade(database_url)
    registry = open_registry(database_url)
    yield registry
    registry.close()


@pytest.fixture
def run_id(registry: Registry) -> str:
    return registry.begin_run(RECIPE, "d" * 64).id
