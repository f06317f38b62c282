"""Leases: one holder at a time, fenced writes; the same on SQLite and PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from yarn_ops.errors import LeaseLost, Stopped
from yarn_ops.records import Corpus, Tree
from yarn_ops.registry import Lease, Registry, hold, leases, this_process
from yarn_ops.registry.holder import has_ended

KEY = "k" * 64
LONG_S = 60.0
EXPIRED_S = -1.0
CORPUS = Corpus(
    files=2, size_bytes=7, tree=Tree(uri="file:///corpus", digest="c" * 64, files=2, size_bytes=7)
)


def claim(registry: Registry, run_id: str, lease_s: float = LONG_S, key: str = KEY) -> Lease | None:
    return registry.claim(key, stage="collect", run_id=run_id, holder="a process", lease_s=lease_s)


def claimed(registry: Registry, run_id: str, lease_s: float = LONG_S) -> Lease:
    lease = claim(registry, run_id, lease_s)
    assert lease is not None
    return lease


def test_of_16_threads_one_gets_the_lease(registry: Registry, run_id: str) -> None:
    for round_ in range(5):
        start = threading.Barrier(16)

        def race(_: int, start: threading.Barrier = start, key: str = f"{round_:064}") -> Lease | None:
            start.wait()
            return claim(registry, run_id, key=key)

        with ThreadPoolExecutor(16) as pool:
            winners = [lease for lease in pool.map(race, range(16)) if lease]
        assert [lease.fence for lease in winners] == [1]


def test_of_16_threads_one_takes_over_an_expired_lease(registry: Registry, run_id: str) -> None:
    claimed(registry, run_id, EXPIRED_S)
    start = threading.Barrier(16)

    def race(_: int) -> Lease | None:
        start.wait()
        return claim(registry, run_id)

    with ThreadPoolExecutor(16) as pool:
        winners = [lease for lease in pool.map(race, range(16)) if lease]
    assert [lease.fence for lease in winners] == [2]


def test_a_live_lease_is_not_given_twice(registry: Registry, run_id: str) -> None:
    claimed(registry, run_id)
    assert claim(registry, run_id) is None


def test_the_old_fence_is_refused_everywhere(registry: Registry, run_id: str) -> None:
    old = claimed(registry, run_id, EXPIRED_S)
    new = claimed(registry, run_id)
    for write in (
        lambda lease: leases.renew(registry.database, lease),
        lambda lease: registry.complete(lease, CORPUS),
        lambda lease: registry.fail(lease, "x"),
    ):
        with pytest.raises(LeaseLost, match="another process has taken it over"):
            write(old)
    registry.release(old)
    assert claim(registry, run_id) is None, "a stale release freed the new holder's lease"
    registry.complete(new, CORPUS)
    assert registry.finished(KEY) == CORPUS.model_dump(mode="json")


def test_a_lease_that_expired_unnoticed_is_still_its_holders(registry: Registry, run_id: str) -> None:
    lease = claimed(registry, run_id, EXPIRED_S)
    leases.renew(registry.database, lease)
    registry.complete(lease, CORPUS)
    assert registry.finished(KEY) is not None


def test_renewal_keeps_others_out(registry: Registry, run_id: str) -> None:
    lease = claimed(registry, run_id, EXPIRED_S)
    leases.renew(registry.database, replace(lease, life_s=LONG_S))
    assert claim(registry, run_id) is None


@pytest.mark.parametrize("give_back", ["fail", "release"])
def test_a_stage_given_back_can_be_claimed_at_once(registry: Registry, run_id: str, give_back: str) -> None:
    lease = claimed(registry, run_id)
    registry.fail(lease, "no luck") if give_back == "fail" else registry.release(lease)
    again = claimed(registry, run_id)
    assert again.fence == 2
    with pytest.raises(LeaseLost):
        registry.complete(lease, CORPUS)


def test_a_finished_stage_is_not_claimed(registry: Registry, run_id: str) -> None:
    lease = claimed(registry, run_id)
    assert registry.finished(KEY) is None
    registry.complete(lease, CORPUS)
    assert claim(registry, run_id) is None
    with pytest.raises(LeaseLost):
        registry.complete(lease, CORPUS)


def test_a_discarded_stage_is_computed_again(registry: Registry, run_id: str) -> None:
    registry.complete(claimed(registry, run_id), CORPUS)
    record = registry.finished(KEY)
    assert record is not None
    registry.discard(KEY, {**record, "files": 3}, "another record: must change nothing")
    assert registry.finished(KEY) == record
    registry.discard(KEY, record, "two files are missing")
    assert registry.finished(KEY) is None
    registry.complete(claimed(registry, run_id), CORPUS)
    assert registry.finished(KEY) == record


def test_hold_computes_once_for_16_threads(registry: Registry, run_id: str) -> None:
    """The winner computes; the others wait, join and get its record."""
    start, computed = threading.Barrier(16), []

    def extend(worker: int) -> object:
        start.wait()
        with hold(registry, KEY, stage="collect", run_id=run_id, holder=f"{worker}", lease_s=LONG_S) as held:
            if held.record is None:
                computed.append(worker)
                held.complete(CORPUS)
            return held.record

    with ThreadPoolExecutor(16) as pool:
        records = list(pool.map(extend, range(16)))
    assert len(computed) == 1
    assert records.count(CORPUS.model_dump(mode="json")) == 15


def test_hold_renews_and_a_taken_lease_is_noticed(registry: Registry, run_id: str) -> None:
    holding = hold(registry, KEY, stage="collect", run_id=run_id, holder="a", lease_s=0.6)
    with pytest.raises(LeaseLost), holding as held:
        assert held.lease is not None
        registry.fail(held.lease, "as if it had expired and somebody else had claimed it")
        thief = claimed(registry, run_id)
        assert held.lost.wait(10)
        held.complete(CORPUS)
    registry.complete(thief, CORPUS)


def test_a_held_stage_outlives_its_lease(registry: Registry, run_id: str) -> None:
    """Work of more than a lease's life: asked all the time, nobody else gets the stage."""
    life_s = 2.0
    with hold(registry, KEY, stage="collect", run_id=run_id, holder="a", lease_s=life_s) as held:
        for _ in range(30):
            assert claim(registry, run_id) is None
            assert not held.lost.wait(0.1)
        held.complete(CORPUS)
    assert registry.finished(KEY) is not None


def test_hold_says_once_for_whom_it_waits(registry: Registry, run_id: str) -> None:
    heard: list[str] = []
    lease = claimed(registry, run_id)

    def finish(holder: str) -> None:
        heard.append(holder)
        registry.complete(lease, CORPUS)

    with hold(
        registry, KEY, stage="collect", run_id=run_id, holder="b", lease_s=LONG_S, on_wait=finish
    ) as held:
        assert held.record == CORPUS.model_dump(mode="json")
    assert heard == ["a process"]


@pytest.mark.parametrize("reaped", [True, False])
def test_a_holder_of_this_machine_that_has_ended_is_not_waited_for(
    registry: Registry, database_url: str, run_id: str, reaped: bool
) -> None:
    claims = (
        "import sys; from yarn_ops.registry import open_registry, this_process\n"
        "open_registry(sys.argv[1]).claim(sys.argv[2], stage='collect', run_id=sys.argv[3], "
        "holder=this_process(), lease_s=60) or sys.exit(1)\n"
        "print(this_process(), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", claims, database_url, KEY, run_id],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    holder = process.stdout.readline().strip()
    assert registry.holder(KEY) == holder
    assert not has_ended(holder)
    process.kill()
    if reaped:
        process.wait()
    else:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert has_ended(holder)
    with hold(registry, KEY, stage="collect", run_id=run_id, holder="b", lease_s=LONG_S) as held:
        assert held.lease is not None and held.lease.fence == 2
        held.complete(CORPUS)
    assert registry.holder(KEY) is None
    process.communicate()


def test_nothing_is_known_of_other_machines_processes() -> None:
    assert not has_ended("a process")
    assert not has_ended("999999999@node-3/5c0f1d6e/4026531836")
    assert not has_ended(this_process())
    assert has_ended(this_process().replace(str(os.getpid()), "999999999", 1))


def test_a_stage_is_taken_only_from_the_named_holder(registry: Registry, run_id: str) -> None:
    lease = claimed(registry, run_id)
    registry.take_from(KEY, "another process")
    leases.renew(registry.database, lease)
    registry.take_from(KEY, "a process")
    with pytest.raises(LeaseLost):
        leases.renew(registry.database, lease)
    registry.complete(claimed(registry, run_id), CORPUS)
    registry.take_from(KEY, "a process")
    assert registry.finished(KEY) is not None


def test_a_failure_is_kept_and_goes_on_up(registry: Registry, run_id: str) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        hold(registry, KEY, stage="collect", run_id=run_id, holder="a", lease_s=LONG_S),
    ):
        raise ZeroDivisionError("by nought")
    stage = registry.run_view(run_id).stages[0]
    assert (stage.status, stage.error, stage.reused) == ("failed", "ZeroDivisionError: by nought", None)


@pytest.mark.parametrize("end", [Stopped("asked to"), KeyboardInterrupt(), None])
def test_a_stop_gives_the_stage_back(registry: Registry, run_id: str, end: BaseException | None) -> None:
    try:
        with hold(registry, KEY, stage="collect", run_id=run_id, holder="a", lease_s=LONG_S):
            if end is not None:
                raise end
    except BaseException as error:
        assert error is end
    assert registry.run_view(run_id).stages[0].status == "stopped"
    assert claimed(registry, run_id).fence == 2
