"""The service stopped or killed in the middle of a run: nothing is left, and the next one goes on."""

from __future__ import annotations

import signal
import tomllib
from pathlib import Path

import pytest
from service_up import Up, wait_until

from yarn_ops.recipe import parse_recipe


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_goes_on(tmp_path: Path, small_recipe: Path, number: signal.Signals) -> None:
    recipe = tomllib.loads(small_recipe.read_text("utf-8"))
    recipe["train"]["steps"] = 12
    state = tmp_path / "state"
    first = Up(state)
    first.change_deployment(parameters={"recipe": recipe})
    first.switch_on(first.deployment["schedules"][0])
    run_id = first.submit(recipe).raise_for_status().json()["id"]
    wait_until(first.trains, timeout_s=120)
    assert first.end(number) == []

    second = Up(state)
    try:
        run = second.finished(run_id)
        assert (run["state_type"], run["run_count"]) == ("COMPLETED", 2)
        assert parse_recipe(second.deployment["parameters"]["recipe"]) == parse_recipe(recipe)
        assert second.deployment["schedules"][0]["active"] is True
        assert second.command("models").stdout.count("small") == 1
    finally:
        assert second.end(signal.SIGTERM) == []


@pytest.mark.slow
def test_a_server_that_cannot_start_is_told_in_one_line(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(AssertionError, match="the mlflow-server ended by itself; the end of") as failed:
        Up(state)
    assert "Traceback" not in str(failed.value)
