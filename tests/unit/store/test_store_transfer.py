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


@pytest.mark.parametrize(
    ("total", "told"),
    [(900, "450 of 900 bytes"), (3 << 19, "0.8 of 1.5 MiB"), (400 << 10, "200.0 of 400.0 KiB")],
)
def test_progress_is_told_in_a_unit_of_its_size(total: int, told: str) -> None:
    heard: list[str] = []
    Transfer(total, lambda done, of, note: heard.append(note)).advance(total // 2)
    assert heard == [told]
