"""Devices: one stage at a time, the most urgent next; the same on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from yarn_ops.errors import LeaseLost
from yarn_ops.records import Corpus
from yarn_ops.registry import Lease, Registry, hold, keys_at_work, leases, occupied, this_process
from yarn_ops.registry.devices import give_back, take
from yarn_ops.registry.upkeep import free_leases

GPU = "gpu-0"
CORPUS = Corpus(files=0, size_bytes=0)
DEAD = this_process().replace(this_process().partition("@")[0], "999999999", 1)


def claimed(registry: Registry, run_id: str, key: str, lease_s: float = 60.0, holder: str = "a") -> Lease:
    lease = registry.claim(key, stage=f"stage {key}", run_id=run_id, holder=holder, lease_s=lease_s)
    assert lease is not None
    return lease


def test_of_4_threads_one_has_the_device_at_a_time(registry: Registry, run_id: str) -> None:
    start, room, alone = threading.Barrier(4), threading.Semaphore(1), []

    def compute(worker: int) -> None:
        start.wait()
        key = f"{worker:064}"
        with (
            hold(registry, key, stage="train", run_id=run_id, holder="a", lease_s=60) as held,
            occupied(registry, held, GPU, rank=1),
        ):
            alone.append(room.acquire(blocking=False) and keys_at_work(registry) == {key})
            room.release()
            held.complete(CORPUS)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(compute, range(4)))
    assert alone == [True] * 4
    assert keys_at_work(registry) == set()


def test_of_16_threads_one_takes_a_free_device(registry: Registry, run_id: str) -> None:
    leases = [claimed(registry, run_id, f"{number:02}") for number in range(16)]
    start = threading.Barrier(16)

    def race(lease: Lease) -> bool:
        start.wait()
        return take(registry, lease, GPU, 1) is None

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(race, leases)) == len(keys_at_work(registry)) <= 1
    # Where nobody got it, all had seen one that came before them: the first one's turn.
    assert any(take(registry, lease, GPU, 1) is None for lease in leases)


def test_the_most_urgent_is_next_then_who_asked_first(registry: Registry, run_id: str) -> None:
    ranks = {"late": 2, "later": 2, "urgent": 1}
    first = claimed(registry, run_id, "first")
    leases = {key: claimed(registry, run_id, key) for key in ranks}
    assert take(registry, first, GPU, 2) is None
    for key, rank in ranks.items():
        ahead = take(registry, leases[key], GPU, rank)
        assert ahead is not None and (ahead.key, ahead.has_it) == ("first", True)
    give_back(registry, first)
    served: list[str] = []
    while ranks:
        (served[len(served) :],) = (
            [key] for key, rank in ranks.items() if take(registry, leases[key], GPU, rank) is None
        )
        del ranks[served[-1]]
        give_back(registry, leases[served[-1]])
    assert served == ["urgent", "late", "later"]


def test_two_devices_know_nothing_of_each_other(registry: Registry, run_id: str) -> None:
    assert take(registry, claimed(registry, run_id, "one"), GPU, 1) is None
    assert take(registry, claimed(registry, run_id, "two"), "gpu-1", 1) is None
    assert keys_at_work(registry) == {"one", "two"}


@pytest.mark.parametrize("end", ["complete", "fail", "release", "claimed by another", "reconciled"])
def test_the_device_goes_with_the_lease(registry: Registry, run_id: str, end: str) -> None:
    lease = claimed(registry, run_id, "one", -1.0 if end == "claimed by another" else 60.0, holder=DEAD)
    assert take(registry, lease, GPU, 1) is None
    match end:
        case "complete":
            registry.complete(lease, CORPUS)
        case "fail":
            registry.fail(lease, "no luck")
        case "release":
            registry.release(lease)
        case "reconciled":
            assert [one.key for one in free_leases(registry)] == ["one"]
        case _:
            claimed(registry, run_id, "one")
    assert keys_at_work(registry) == set()
    with pytest.raises(LeaseLost):
        take(registry, lease, GPU, 1)
    assert take(registry, claimed(registry, run_id, "two"), GPU, 1) is None


@pytest.mark.parametrize(("holder", "life_s"), [("a process elsewhere", -1.0), (DEAD, 60.0)])
def test_nobody_waits_for_one_that_has_ended(
    registry: Registry, run_id: str, holder: str, life_s: float
) -> None:
    gone = claimed(registry, run_id, "gone", life_s, holder)
    assert take(registry, gone, GPU, 1) is None
    waited: list[object] = []
    with (
        hold(registry, "next", stage="train", run_id=run_id, holder="a", lease_s=60) as held,
        occupied(registry, held, GPU, rank=1, on_wait=waited.append),
    ):
        assert keys_at_work(registry) == {"next"}
    assert waited == []
    with pytest.raises(LeaseLost):
        leases.renew(registry.database, gone)


def test_a_list_of_runs_tells_who_computes_and_who_waits(registry: Registry, run_id: str) -> None:
    other = registry.begin_run({"rope": {}}, "e" * 64).id
    first, second = claimed(registry, run_id, "one"), claimed(registry, other, "two")
    claimed(registry, other, "three")
    take(registry, first, GPU, 1)
    take(registry, second, GPU, 1)
    told = {run.id: [(one.stage, one.device, one.waits) for one in run.at_work] for run in registry.runs()}
    assert told == {
        run_id: [("stage one", GPU, False)],
        other: [("stage two", GPU, True), ("stage three", None, False)],
    }
    assert len(registry.run_view(other).at_work) == 2
