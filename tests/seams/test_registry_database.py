"""Opening and migrating; the same on SQLite and PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from postgres import PostgresCluster
from registries import RECIPE
from sqlalchemy import text

from yarn_ops.errors import RegistryError
from yarn_ops.registry import Registry, open_registry, upgrade
from yarn_ops.registry.database import migrations, open_database


def test_a_database_that_is_not_migrated_is_told(database_url: str) -> None:
    with pytest.raises(RegistryError, match="run `yarn-ops db upgrade`"):
        open_registry(database_url)


def test_the_migrations_make_the_tables_of_the_models(database_url: str) -> None:
    """What `alembic check` says."""
    upgrade(database_url)
    database = open_database(database_url)
    with database.engine.begin() as connection:
        command.check(migrations(connection))
    database.close()


def test_a_filled_database_is_upgraded_without_loss(database_url: str, registry: Registry) -> None:
    run = registry.begin_run(RECIPE, "a" * 64)
    upgrade(database_url)
    assert registry.run_view(run.id).recipe == RECIPE


def test_8_processes_may_upgrade_at_once(database_url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(upgrade, [database_url] * 8))
    open_registry(database_url).close()


def test_a_newer_database_is_refused(database_url: str, registry: Registry) -> None:
    database = open_database(database_url)
    with database.begin() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    for use in (open_registry, upgrade):
        with pytest.raises(RegistryError, match="newer yarn-ops"):
            use(database_url)


def test_a_failed_transaction_leaves_nothing(database_url: str, registry: Registry) -> None:
    database = open_database(database_url)
    with pytest.raises(ZeroDivisionError), database.begin() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        raise ZeroDivisionError
    database.close()
    open_registry(database_url).close()


@pytest.mark.parametrize("use", [open_registry, upgrade])
def test_a_wrong_password_is_told_and_not_shown(postgres: PostgresCluster, use: object) -> None:
    with pytest.raises(RegistryError, match="password authentication failed") as raised:
        use(postgres.url(password="hunter2"))  # type: ignore[operator]
    assert "hunter2" not in str(raised.value)
    assert "check the user and password in YARN_OPS_DATABASE_URL" in str(raised.value)
    assert raised.value.__suppress_context__


def test_a_missing_postgresql_database_is_told(postgres: PostgresCluster) -> None:
    with pytest.raises(RegistryError, match='database "nope" does not exist; create it first'):
        open_registry(postgres.url("nope"))


def test_a_postgresql_connection_that_was_cut_is_replaced(postgres: PostgresCluster) -> None:
    url = postgres.create_database()
    upgrade(url)
    registry, killer = open_registry(url), open_database(url)
    run = registry.begin_run(RECIPE, "a" * 64)
    with killer.begin() as session:
        session.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    assert registry.run_view().id == run.id
    registry.close()
    killer.close()
