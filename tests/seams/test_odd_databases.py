"""PostgreSQL of other encodings, addresses and passwords: each letter is kept, or one line says why not."""

from __future__ import annotations

import uuid
from functools import partial
from urllib.parse import quote

import psycopg
import pytest
from postgres import PostgresCluster
from psycopg import sql
from refusals import told_of
from sqlalchemy import make_url

from yarn_ops.registry import open_registry, upgrade


@pytest.fixture(scope="module")
def encoded(postgres: PostgresCluster) -> dict[str, str]:
    """Databases of several encodings, by these."""
    found = {}
    for encoding in ("SQL_ASCII", "LATIN1", "UTF8"):
        name = f"enc_{uuid.uuid4().hex[:8]}"
        with psycopg.connect(postgres.url(), autocommit=True) as connection:
            connection.execute(
                f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"  # type: ignore[arg-type]
            )
        found[encoding] = postgres.url(name)
    return found


@pytest.mark.parametrize(
    ("encoding", "query", "says"),
    [
        ("SQL_ASCII", "", None),
        ("UTF8", "?prepare_threshold=0", None),
        ("UTF8", "?prepare_threshold=None&connect_timeout=5", None),
        ("UTF8", "?application_name=me", None),
        ("UTF8", "?client_encoding=latin1", None),
        ("UTF8", "?prepare_threshold=often", "prepare_threshold is no number"),
        ("UTF8", "?wrong=1", 'invalid connection option "wrong"'),
        ("LATIN1", "", "the database's encoding is LATIN1"),
    ],
)
def test_a_database_of_any_kind_keeps_every_letter_or_is_refused(
    encoded: dict[str, str], encoding: str, query: str, says: str | None
) -> None:
    url = f"{encoded[encoding]}{query}"

    def keep() -> None:
        upgrade(url)
        registry = open_registry(url)
        run = registry.begin_run({"publish": {"name": "Grüße 中 🌍"}}, uuid.uuid4().hex * 2)
        assert registry.run_view(run.id).recipe["publish"]["name"] == "Grüße 中 🌍"
        registry.close()

    told = told_of(keep)
    assert told is None if says is None else says in str(told)


@pytest.mark.parametrize("form", ["{user}:{password}@", "?user={user}&password={password}"])
def test_a_password_of_any_letters_opens_the_database_and_is_not_shown(
    postgres: PostgresCluster, form: str
) -> None:
    """The user's own password is another for as long as this takes."""
    password = "p/@:?#[]% &=;'\"\\ü+"
    url = make_url(postgres.create_database())
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        changed = sql.SQL("ALTER ROLE {} PASSWORD {}")
        try:
            connection.execute(changed.format(sql.Identifier(str(url.username)), sql.Literal(password)))
            for given, says in ((password, ""), (f"{password}hunter2", "password authentication failed")):
                written = form.format(user=url.username, password=quote(given, safe=""))
                place = f"{url.host}:{url.port}/{url.database}"
                address = f"{place}{written}" if written.startswith("?") else f"{written}{place}"
                told = told_of(partial(upgrade, f"postgresql://{address}"))
                assert (told is None) == (says == "") and says in str(told), told
                assert "hunter2" not in str(told) and quote(password, safe="") not in str(told)
        finally:
            connection.execute(changed.format(sql.Identifier(str(url.username)), sql.Literal(url.password)))
