"""Of a schedule: its times, which are UTC, and its name; what is refused says what to write."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from flows.deploy import next_run, require_free_name
from yarn_ops.errors import SettingsError


@pytest.mark.parametrize(
    "cron",
    ["nonsense", "", "* * * *", "0 25 * * *", "0 2 * * *;", "0 0 31 2 *", "* * * * * *"],
    ids=["words", "nothing", "four fields", "hour 25", "a sign", "31 February", "every second"],
)
def test_times_that_are_none_are_refused_with_what_to_write(cron: str) -> None:
    with pytest.raises(SettingsError) as refused:
        next_run(cron)
    assert str(refused.value).startswith(f"--cron {cron!r}: no times that ever come; give five fields")


def test_times_are_utc_wherever_the_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        for cron in ("30 2 * * *", "30 2 * * MON"):
            found = next_run(cron)
            assert found > datetime.now(UTC) and found.utcoffset() == timedelta(0)
            assert (found.hour, found.minute) == (2, 30)
        assert next_run("@daily").hour == 0
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("name", ["", " ", "a/b", "x" * 129, "extend-context", "reconcile"])
def test_a_schedule_takes_no_name_that_is_none_or_the_services_own(name: str) -> None:
    """`--name extend-context` replaced the form's first values and its schedule `nightly`."""
    with pytest.raises(SettingsError, match=r"^--name "):
        require_free_name(name)
    require_free_name("every night")
