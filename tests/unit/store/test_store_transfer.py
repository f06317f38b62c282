"""Transfers at once: one failure ends all, and it is the one that is told."""

from __future__ import annotations

import pytest

from yarn_ops.errors import StoreError
from yarn_ops.store.transfer import Transfer


def test_a_failure_stops_a_transfer_that_began_before() -> None:
    transfer = Transfer(0, None)

    def work(item: str) -> None:
        if item == "fails":
            raise StoreError("the cause")
        while True:
            transfer.advance(0)

    with pytest.raises(StoreError, match="the cause"):
        transfer.run(work, ["goes on", "fails"])
