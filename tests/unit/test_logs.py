"""Every line of a run says which run, stage and key it is about."""

from __future__ import annotations

import logging

import pytest

from flows.logs import about


def test_lines_say_what_they_are_about(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ours, theirs = logging.getLogger("yarn_ops.registry.hold"), logging.getLogger("urllib3")
    with about(run="20261124-1", stage="train"):
        ours.info("begins")
        with about(key="50%"):
            ours.warning("step %d of %d", 3, 9)
            ours.info("100% of it")
            theirs.info("connection")
    ours.info("afterwards")
    assert [record.getMessage() for record in caplog.records] == [
        "run=20261124-1 stage=train begins",
        "run=20261124-1 stage=train key=50% step 3 of 9",
        "run=20261124-1 stage=train key=50% 100% of it",
        "connection",
        "afterwards",
    ]


def test_a_block_that_fails_leaves_no_facts_behind(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError), about(run="1"):
        raise ValueError
    logging.getLogger("flows").warning("later")
    assert caplog.records[-1].getMessage() == "later"


def test_a_stopped_run_did_not_crash(caplog: pytest.LogCaptureFixture) -> None:
    with about(run="1"):
        pass
    log = logging.getLogger("prefect.flow_runs")
    log.error("Crash detected! Execution was aborted by a termination signal.")
    log.error("Crash detected! Request failed")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "asked to stop: finished stages are kept, and the same recipe goes on from them"),
        ("ERROR", "Crash detected! Request failed"),
    ]
