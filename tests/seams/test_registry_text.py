"""Text from anywhere is stored, never run: hostile strings on SQLite and PostgreSQL."""

from __future__ import annotations

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from registries import RECIPE

from yarn_ops.registry import Registry
from yarn_ops.registry.columns import REPLACEMENT

SQL = "'; DROP TABLE runs; --"
ANYTHING = st.text(st.characters(exclude_categories=()))  # NUL and lone surrogates too
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def stored(text: str) -> str:
    """What comes back: everything that a database can hold."""
    return "".join(REPLACEMENT if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in text)


@SHARED
@given(ANYTHING)
@example(SQL)
@example("\0")
@example("\ud800 a lone surrogate")
@example("😀" * 2500)
def test_any_reason_is_kept(registry: Registry, text: str) -> None:
    run = registry.begin_run(RECIPE, "d" * 64)
    registry.finish_run(run.id, "failed", text)
    assert registry.run_view(run.id).reason == stored(text)


@SHARED
@given(ANYTHING, ANYTHING)
@example(SQL, SQL)
@example("\0", "\udfff")
@example("x" * 10_000, "y" * 10_000)
def test_any_recipe_is_kept(registry: Registry, name: str, value: str) -> None:
    run = registry.begin_run({name: value}, "d" * 64)
    view = registry.run_view(run.id)
    registry.finish_run(run.id, "completed")
    assert view.recipe == {name: value}


@SHARED
@given(ANYTHING, ANYTHING)
@example(SQL, SQL)
@example("\0", "\ud800")
@example("%s %(x)s :y", "{}")
@example("k" * 2000, "h" * 10_000)
def test_any_key_is_claimed_once(registry: Registry, key: str, holder: str) -> None:
    run = registry.begin_run(RECIPE, "d" * 64)
    lease = registry.claim(key, stage=holder, run_id=run.id, holder=holder, lease_s=60)
    assert lease is not None
    assert registry.claim(key, stage=holder, run_id=run.id, holder=holder, lease_s=60) is None
    registry.fail(lease, holder)
    assert registry.run_view(run.id).stages[-1].error == stored(holder)
