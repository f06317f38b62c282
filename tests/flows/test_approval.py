"""A release that a person promotes: from a terminal, and in Prefect over a restart of the service."""

from __future__ import annotations

import json
import signal
import tomllib
from pathlib import Path
from typing import Any

import pytest
from service_up import Up, wait_until

APPROVAL = ("--set", "publish.approval=true")


def aliases(models: str) -> dict[int, list[str]]:
    return {one["version"]: one["aliases"] for one in json.loads(models)}


@pytest.mark.slow
def test_a_person_promotes_from_a_terminal(cli: Any, small_recipe: Path, tmp_path: Path) -> None:
    waits = cli("extend", small_recipe, *APPROVAL)
    assert waits.returncode == 0, waits.stderr
    assert "waits for approval: yarn-ops approve" in waits.stdout and ", alias champion" not in waits.stdout
    assert aliases(cli("models", "--json").stdout) == {1: []}
    refused = cli("pull", "small", "--to", tmp_path / "small")
    assert refused.returncode == 2 and "version 1 matches but waits for approval" in refused.stderr
    assert "waits for" in cli("runs").stdout

    approved = cli("approve", "last", "--note", "looks sound")
    assert approved.returncode == 0, approved.stderr
    assert "small version 1: approved by " in approved.stdout and "alias champion moved" in approved.stdout
    shown = json.loads(cli("runs", "show", "--last", "--json").stdout)
    assert (shown["status"], shown["approval"]["decision"]) == ("completed", "approved")
    assert shown["approval"]["note"] == "looks sound" and shown["release"]["alias"] == "champion"
    assert aliases(cli("models", "--json").stdout) == {1: ["champion"]}
    assert cli("approve", shown["id"], "--reject").returncode == 2  # the first decision stays

    assert cli("extend", small_recipe, *APPROVAL, "--set", "train.steps=5").returncode == 0
    rejected = cli("approve", "last", "--reject", "--note", "worse prose")
    assert rejected.returncode == 0 and "rejected by" in rejected.stdout
    last = cli("runs", "show", "--last").stdout
    assert ": rejected" in last and "worse prose" in last
    assert aliases(cli("models", "--json").stdout) == {1: ["champion"], 2: []}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_wait_outlives_the_service(tmp_path: Path, small_recipe: Path) -> None:
    """Suspended with a form; decided by the form after a restart, and by a command while nothing runs."""
    recipe = tomllib.loads(small_recipe.read_text("utf-8"))
    recipe["publish"]["approval"] = True
    other = {**recipe, "publish": {**recipe["publish"], "name": "other"}}
    state = tmp_path / "state"
    first = Up(state)
    runs = {name: first.begin(asked) for name, asked in (("small", recipe), ("other", other))}
    for run in runs.values():
        wait_until(lambda run=run: first.run(run)["state_name"] == "Suspended", timeout_s=240)
    ours = {run["name"]: run["id"] for run in json.loads(first.command("runs", "--json").stdout)}
    assert first.end(signal.SIGTERM) == []
    kept = first.command("approve", ours["other"], "--note", "by night")
    assert kept.returncode == 0 and "its run goes on when the service runs" in kept.stdout, kept.stderr

    second = Up(state)
    try:
        assert second.run(runs["small"])["state_name"] == "Suspended"
        faulty = second.resume(runs["small"], {"decision": "perhaps", "person": "Ada"})
        assert faulty["status"] == "REJECT"
        answer = {"decision": "approve", "person": "Ada", "note": "as good as before"}
        assert second.resume(runs["small"], answer)["status"] == "ACCEPT"
        for run in runs.values():
            wait_until(lambda run=run: second.run(run)["state_type"] == "COMPLETED", timeout_s=240)
        shown = json.loads(second.command("runs", "show", ours["small"], "--json").stdout)
        assert shown["approval"]["person"] == "Ada" and shown["release"]["alias"] == "champion"
        versions = json.loads(second.command("models", "--json").stdout)
        assert {one["name"]: one["aliases"] for one in versions} == {
            "small": ["champion"], "other": ["champion"],
        }  # fmt: skip
    finally:
        assert second.end(signal.SIGTERM) == []
