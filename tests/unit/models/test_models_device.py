"""Work side by side: results, faults, and the threads it runs in."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from yarn_ops.models.device import side_by_side

THREADS = 3
LONG_S = 30


@pytest.fixture(autouse=True)
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def test_as_many_items_at_once_as_torch_has_threads_each_in_one() -> None:
    together = threading.Barrier(THREADS, timeout=LONG_S)  # broken unless all are there at once

    def work(number: int) -> tuple[int, int]:
        together.wait()
        torch.ones(1 << 10).sum()
        return number, torch.get_num_threads()

    assert side_by_side(work, range(2 * THREADS), "cpu") == [(number, 1) for number in range(2 * THREADS)]
    assert torch.get_num_threads() == THREADS
    seen: list[int] = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [THREADS]  # threads that come later have torch's number again


def test_a_gpu_is_given_one_item_after_the_other() -> None:
    threads = side_by_side(lambda _: threading.get_ident(), range(2 * THREADS), "cuda")
    assert len({*threads}) == 1


def test_a_fault_of_one_item_is_raised() -> None:
    def work(number: int) -> None:
        if number == 1:
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        side_by_side(work, range(THREADS), "cpu")
    assert torch.get_num_threads() == THREADS
