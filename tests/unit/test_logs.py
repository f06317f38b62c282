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
